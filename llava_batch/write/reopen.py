"""Reopen: a folder that was answered before, for what is done to it without a job (publish, forget)."""

from llava_batch.errors import UsageError
from llava_batch.patience import BRIEF, Patience
from llava_batch.storage import Location
from llava_batch.write.ledger import Ledger


def reopen(out: Location, patience: Patience = BRIEF) -> Ledger:
    """The folder's ledger, under the settings that its answers were made with.

    Raises:
        UsageError: no run answered there, or one was killed that has to be finished first.
    """
    ledger = _loaded(out, "parquet", patience)
    held = ledger.held
    if held is None:
        raise UsageError(f"{out.shown}: no run answered into this folder; check the path")
    if held.format != ledger.format:
        ledger = _loaded(out, held.format, patience)
    ledger.answer_under(held.settings, held.fingerprint, held.version, as_before=True)
    if ledger.was_cut_short:
        raise UsageError(f"{out.shown}: a run was cut short there while it replaced tables; run it "
                         "again to its end first")  # fmt: skip
    return ledger


def _loaded(out: Location, format: str, patience: Patience) -> Ledger:
    ledger = Ledger(out, format, patience)
    ledger.load()
    return ledger
