"""Questions of a file that join several images: counted, and refused unless the job says it is meant.

A question for `000000.jpg` joins that name in every shard, though one image was meant. Loose files tell
by their names, before any actor starts; what lies in shards is known as its rows come, and the first
question that joins a second image ends the run: that image's unit is left open, what was committed
stands, since its rows are what they would be with `--join-anywhere` too. An image that a question brings
by its bytes is one image wherever it lies.
"""

from collections.abc import Iterable, Iterator, Sequence, Set
from hashlib import blake2b

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from llava_batch.errors import RunFailed, UsageError
from llava_batch.ids import image_of
from llava_batch.prompts.questions import Question, Questions, join_key
from llava_batch.prompts.questions.join import brings_its_bytes
from llava_batch.unit import Unit

_WHAT_TO_DO = "name the image as UNIT/KEY in the file, or give --join-anywhere if all are meant"


class SeveralImages:
    """For each question of the file the image that it joined first, as a 64-bit hash, and whether it
    joined another: 14 bytes a question, however many images there are."""

    def __init__(
        self,
        questions: Questions,
        *,
        refuse: bool,
        before: npt.NDArray[np.bool_] | None = None,
        retried: Set[str] = frozenset(),
    ) -> None:
        """`before` are the questions, bool `[questions]`, that joined an image of a unit that earlier
        runs answered; `retried` the units of those of which some images come once more."""
        self._questions, self._refuse = questions, refuse
        self._before = np.zeros(len(questions), bool) if before is None else before
        self._retried = retried
        self._first = np.zeros(len(questions), np.uint64)
        self._several = np.zeros(len(questions), bool)
        self._unit_of = np.zeros(len(questions), np.int32)
        self._units: dict[str, int] = {}

    @property
    def count(self) -> int:
        """How many questions joined several images so far."""
        return int(self._several.sum())

    def check(self, batch: pa.Table) -> None:
        """Take in answer rows, as they come.

        Raises:
            RunFailed: a question joined a second image, and that was not said to be meant.
        """
        asked = batch.filter(pc.greater(batch["siblings"], 0))
        last = None
        for row in asked.select(["id", "unit", "key", "image_sha256"]).to_pylist():
            image = image_of(row["id"], row["unit"])
            if image == last:  # rows of one image stand together
                continue
            last = image
            said = self.add(image, row["unit"], row["key"], row["image_sha256"])
            if said and self._refuse:
                raise RunFailed(
                    f"--questions: {said}; {_WHAT_TO_DO}; unit {row['unit']} is left open"
                )

    def add(self, image: str, unit: str, key: str, sha256: str | None = None) -> str | None:
        """Take in an image, perhaps again; returns what is to be said where a question of it joined
        another image before."""
        self._units.setdefault(unit, len(self._units))
        said = None
        for question in self._questions.of(unit=unit, key=key, sha256=sha256):
            other = self._joined_before(question, image, unit)
            if other:
                self._several[question.row] = True
                said = said or (
                    f"question {question.question_id} (of {self._name(question)}) joins {image} and "
                    f"an image {other}"
                )
        return said

    def _joined_before(self, question: Question, image: str, unit: str) -> str | None:
        """Which other image the question joined before this one, in words; this one is written down
        where it is the run's first."""
        row, mark = question.row, _mark(image)
        if brings_its_bytes(self._name(question)):
            return None
        if self._first[row]:
            other = list(self._units)[self._unit_of[row]]
            return f"of unit {other}" if self._first[row] != mark else None
        self._first[row], self._unit_of[row] = mark, self._units[unit]
        before = self._before[row] and unit not in self._retried
        return "that an earlier run answered" if before else None

    def _name(self, question: Question) -> str:
        """The image as the question names it."""
        name: str = self._questions.table["image"][question.row].as_py()
        return name


def refuse_shared_names(questions: Questions, units: Iterable[Unit]) -> None:
    """Refuse questions that join several loose files.

    Raises:
        UsageError: how many there are, and the first.
    """
    joined = SeveralImages(questions, refuse=False)
    said = None
    for unit, key in _doubled(questions, [(u.name, name) for u in units for name in u.members]):
        found = joined.add(f"{unit}/{key}", unit, key)
        said = said or found
    if said:
        join = "joins" if joined.count == 1 else "join"
        raise UsageError(
            f"--questions: {joined.count} of the file's questions {join} several images, such as "
            f"{said}; {_WHAT_TO_DO}"
        )


def sharing_a_key(
    questions: Questions, files: Sequence[tuple[str, str]]
) -> Iterator[tuple[str, str]]:
    """The files whose join key is a question's; which question's image they are is not asked yet."""
    keys = pa.array([_join_key(name) for _, name in files], pa.string())
    shares = pc.is_in(keys, value_set=questions.joins).to_pylist()
    return (file for file, shared in zip(files, shares, strict=True) if shared)


def _doubled(questions: Questions, files: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """The files whose join key is another's too, and a question's; few, where names are told apart."""
    keys = pa.array([_join_key(name) for _, name in files], pa.string())
    counts = pc.value_counts(keys.filter(pc.is_in(keys, value_set=questions.joins)))
    twice = {pair["values"] for pair in counts.to_pylist() if pair["counts"] > 1}
    return (file for file, key in zip(files, keys.to_pylist(), strict=True) if key in twice)


def _join_key(name: str) -> str | None:
    try:
        return join_key(name)
    except ValueError:  # a file called `data:`
        return None


def _mark(image: str) -> np.uint64:
    """A hash of the image's id that is not 0."""
    digest = blake2b(image.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "big") | 1)
