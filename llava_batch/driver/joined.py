"""Which questions of a file joined an image, told as units are committed and kept for the next run.

    OUT/_manifest/_joined.json   {"questions": the file's hash, "units": those it speaks of, each with
                                  its input's fingerprint, "rows": one bit for each question, packed, in base64}

Only the tables that it does not speak of are read again: those of a run that was killed, or of an
earlier version; all of them where a unit that it speaks of is answered anew. Memory is a byte for each
question.
"""

import base64
import json
from collections.abc import Iterable, Sequence, Set
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from llava_batch.answers.folder import Answers
from llava_batch.driver.several_images import sharing_a_key
from llava_batch.errors import UsageError, counted
from llava_batch.prompts.questions.table import Questions
from llava_batch.storage import read_bytes, write_whole
from llava_batch.tables import load_schema
from llava_batch.unit import Unit
from llava_batch.write.ledger import Ledger

_IMAGE = ["unit", "key", "image_sha256"]


def refuse_unjoined(questions: Questions, units: Sequence[Unit]) -> None:
    """Refuse questions of which none joins an image, where all images are known by their names.

    Raises:
        UsageError: that.
    """
    by_bytes = pc.any(pc.starts_with(questions.joins, "sha256:")).as_py()
    if by_bytes or not units or not all(unit.members for unit in units):
        return
    files = [(unit.name, name) for unit in units for name in unit.members]
    if not any(questions.of(unit=unit, key=name) for unit, name in sharing_a_key(questions, files)):
        count = sum(len(unit.members) for unit in units)
        raise UsageError(unjoined(count, units[0].members[0]))


def unjoined(num_images: int, key: str | None = None) -> str:
    """What is said where no question of the file is any image's; `key` is of one of these."""
    named = "" if key is None else f", such as {key}"
    return (
        f"--questions: none of the file's questions joins any of "
        f"{counted(num_images, 'image')}{named}; have it name them by id, key or file name"
    )


class Joined:
    """The questions that have an image among the answers of one folder.

    Every question that joins an image has a row there, good or in error, so the images that stand
    there are looked up again.
    """

    def __init__(self, questions: Questions, ledger: Ledger) -> None:
        self._questions, self._ledger = questions, ledger
        self._seen = np.zeros(len(questions), bool)
        self._units: set[str] = set()

    def begin(self, anew: Set[str]) -> npt.NDArray[np.bool_]:
        """bool `[questions]`: those with an image among the units that stand, but for those of the
        names `anew`, which this run answers from the beginning. To be asked before the first `mark`."""
        ledger = self._ledger
        standing = {unit: of for unit, of in ledger.standing().items() if unit not in anew}
        told, seen = ledger.patience.keep_trying(self._held)
        if told.items() <= standing.items():
            self._seen |= seen
        else:
            told = {}
        unknown = sorted(standing.keys() - told.keys())
        ledger.patience.keep_trying(lambda: self._read(unknown))
        self._units.update(standing)
        return self._seen.copy()

    def mark(self, unit: str, table: pa.Table) -> None:
        """`table` now stands for `unit`."""
        self._units.add(unit)
        for batch in table.select(_IMAGE).to_batches():
            self._look_up(batch.to_pylist())

    def count_unjoined(self) -> int:
        """How many questions have no image among all committed units; written down for the next run."""
        ledger = self._ledger
        standing = ledger.standing()
        told, seen = ledger.patience.keep_trying(self._held)
        if told.items() <= standing.items():
            self._seen |= seen
        else:  # a unit has gone, or was answered from other images: bits of it cannot be taken back
            told = {}
        unknown = sorted(standing.keys() - self._units - told.keys())
        ledger.patience.keep_trying(lambda: self._read(unknown))
        said = {
            "questions": ledger.settings["questions"],
            "units": standing,
            "rows": base64.b64encode(np.packbits(self._seen).tobytes()).decode(),
        }
        write_whole(ledger.out.fs, self._path, json.dumps(said).encode(), ledger.patience)
        return int(len(self._seen) - self._seen.sum())

    @property
    def _path(self) -> str:
        return f"{self._ledger.out.path}/_manifest/_joined.json"

    def _held(self) -> tuple[dict[str, str], np.ndarray]:
        """What the last run wrote down: units with their inputs' fingerprints, and bool `[questions]`;
        nothing where it does not fit."""
        size = len(self._seen)
        try:
            said = json.loads(read_bytes(self._ledger.out.fs, self._path) or b"{}")
            packed = np.frombuffer(base64.b64decode(said["rows"]), np.uint8)
            seen = np.unpackbits(packed, count=size).astype(bool)
            if said["questions"] == self._ledger.settings["questions"] and len(seen) == size:
                return dict(said["units"]), seen
        except (ValueError, KeyError, TypeError):
            pass  # cut or of another version: the tables say the same
        return {}, np.zeros(size, bool)

    def _read(self, units: list[str]) -> None:
        out = self._ledger.out
        paths = tuple(f"{out.path}/{self._ledger.table_name(unit)}" for unit in units)
        tables = Answers(location=out, paths=paths, schema=load_schema("answers"))
        self._look_up(tables.rows(_IMAGE))

    def _look_up(self, rows: Iterable[dict[str, Any]]) -> None:
        last = None
        for row in rows:
            image = tuple(row[name] for name in _IMAGE)
            if image != last:  # rows of one image stand together
                unit, key, sha256 = last = image
                for question in self._questions.of(unit=unit, key=key, sha256=sha256):
                    self._seen[question.row] = True
