"""What counts as the same run: which settings, and what of the files that they name.

A folder's answers stand where every setting that would change an answer or a row is what it was when
they were made (`Job` marks those fields). Files count by their content: a template, a questions file,
a recipe's text, the checkpoint (`model_hash.py`), wherever they lie. What counts of an input is in its unit's
`source`. A folder remembers the version of these rules that it was begun under (`_job.json`); for an
older one the older rules are computed here, compared, and the newer ones written down at the next run.

    version 1 (0.1.0): the model by its commit, or by the first 64 KiB of each file, and by its name; a
                       recipe by Python's `repr`. 2: the model by all of its content, a recipe by its text.
"""

import hashlib
import json
from collections.abc import Callable
from typing import Any

import pyarrow.fs as pafs

from llava_batch.checkpoint import Checkpoint
from llava_batch.driver.model_hash import first_bytes_hash, model_hash
from llava_batch.driver.settle import PRESET_SETTINGS, Settled
from llava_batch.errors import OutputConflict, UsageError
from llava_batch.job import Job, fingerprint, flag_name
from llava_batch.prompts.presets import PRESETS
from llava_batch.read.columns import kept_names
from llava_batch.storage import locate, read_bytes, without_credentials
from llava_batch.write.ledger import Ledger
from llava_batch.write.record import Held

VERSION = 2


def answer_settings(
    settled: Settled, checkpoint: Checkpoint, version: int = VERSION
) -> dict[str, Any]:
    """The settings that would change rows or answers, as plain JSON; files by their content."""
    job = settled.job
    settings = job.answer_settings()
    del settings["revision"]
    settings["model_name"] = job.model
    settings["keep"] = kept_names(job.keep)  # their types stand in the ledger
    settings["image_root"] = job.image_root and without_credentials(job.image_root)
    if version == 1:
        settings["model"] = checkpoint.commit or first_bytes_hash(checkpoint.folder)
    else:
        settings["model"] = model_hash(checkpoint.folder)
    if job.template not in ("auto", "llava-1.5", "checkpoint"):
        settings["template"] = _file_hash("--template", job.template)
        settings["template_name"] = job.template
    if job.questions:
        settings["questions"] = _file_hash("--questions", job.questions)
        settings["questions_name"] = without_credentials(job.questions)
    if job.json_schema:
        settings["json_schema"] = _short(job.json_schema.encode())
    if settled.recipe is not None:
        plain = json.dumps(settled.recipe.as_json(), sort_keys=True)
        settings["recipe"] = repr(settled.recipe) if version == 1 else plain
        settings["recipe_name"] = job.recipe
    return settings


def fingerprint_in(
    ledger: Ledger,
    settings: dict[str, Any],
    by_version: Callable[[int], dict[str, Any]],
    *,
    overwrite: bool,
) -> tuple[str, bool]:
    """The fingerprint to answer under in the ledger's folder, and whether that is what it was.

    A folder without one good row is begun anew under other settings: there is nothing to keep. `by_version` gives the settings as an older version wrote them down.

    Raises:
        OutputConflict: answers of other settings or another format, field by field; not with
            `overwrite`.
    """
    held = ledger.held
    if held is None:
        return _mark(settings), False
    now = settings if held.version == VERSION else by_version(held.version)
    changed = changes(held.settings, now)
    if not overwrite and (changed or held.format != ledger.format):
        if ledger.holds_good_rows():
            _refuse_other_format(ledger, held)
            _refuse_other_settings(ledger, changed)
        ledger.start_over()
    # Settings that are the same keep the fingerprint that the folder's tables carry.
    return (_mark(settings), False) if changed else (held.fingerprint, True)


def changes(held: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The settings that differ, as lines; one that was not known when `held` was written had its
    default. What counts by its content is shown by its name, and another preset by itself, without the
    settings that it brings."""
    before = Job().answer_settings() | held
    names = sorted({*held, *now} - _SHOWN_ONLY)
    differ = [name for name in names if before.get(name) != now.get(name)]
    if "preset" in differ:
        differ = [n for n in differ if not (_by_preset(before, n) and _by_preset(now, n))]
    return [_told(before, now, name) for name in differ]


_BY_CONTENT = ("questions", "template", "json_schema", "recipe")
_SHOWN_ONLY = frozenset(f"{name}_name" for name in ("model", *_BY_CONTENT))


def _by_preset(settings: dict[str, Any], name: str) -> bool:
    """Whether that setting is what its preset says, or its default (of other families a preset says less)."""
    if name not in PRESET_SETTINGS:
        return False
    sayers = (Job(), PRESETS.get(settings["preset"] or "", Job()))
    return settings[name] in [getattr(sayer, name) for sayer in sayers]


def _told(before: dict[str, Any], now: dict[str, Any], name: str) -> str:
    flag, called = flag_name(name), now.get(f"{name}_name")
    is_file = name != "template" or (called and before.get("template_name"))
    if name in _BY_CONTENT and is_file and before.get(name) and now.get(name):
        then = before.get(f"{name}_name")
        said = "what was given then" if then in (None, called) else then
        return f"{flag} {called or '(its file)'}: other content than {said}"
    return f"{flag} was {_shown(before, name)}, is {_shown(now, name)}"


def _shown(settings: dict[str, Any], name: str) -> str:
    called = settings.get(f"{name}_name")
    value = settings.get(name)
    if value in (None, []):
        return "not given"
    if name == "model" and called:
        return f"{called} ({value})"
    if called:
        return str(called)
    return ", ".join(map(repr, value)) if isinstance(value, list) else repr(value)


def _mark(settings: dict[str, Any]) -> str:
    return fingerprint({n: v for n, v in settings.items() if n not in _SHOWN_ONLY})


def _refuse_other_format(ledger: Ledger, held: Held) -> None:
    if held.format != ledger.format:
        raise OutputConflict(
            f"--format {ledger.format}: {ledger.out.shown} holds {held.format} tables; "
            "give that format or another --output"
        )


def _refuse_other_settings(ledger: Ledger, changed: list[str]) -> None:
    if changed:
        raise OutputConflict(
            f"{ledger.out.shown} holds answers of another run: {'; '.join(changed)}; "
            "give another --output, or --overwrite to replace them"
        )


def _file_hash(flag: str, text: str) -> str:
    at = locate(text)
    if at.info().type == pafs.FileType.Directory:
        raise UsageError(f"{flag} {at.shown}: a folder; give the file in it")
    data = read_bytes(at.fs, at.path)
    if data is None:
        raise UsageError(f"{flag} {at.shown}: no such file; check the path")
    return _short(data)


def _short(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
