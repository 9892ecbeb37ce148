"""Two folders joined by id, and the pairs of answers that the page shows.

What is kept of each row is two 64-bit hashes, of its id and of what it says, so that two folders of
millions of rows compare in bounded memory; the rows that are shown are read in a second pass.
"""

from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from llava_batch.answers.folder import AnswerRow, Answers
from llava_batch.report.gather import batches, find_rows, images_of
from llava_batch.report.sample import sample_rank

DIFFERING_PAIRS = 300
SAME_PAIRS = 100
_COLUMNS = ("id", "unit", "status", "error_code", "answer", "turns")

Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How two folders' rows relate, and a sample of the pairs: those that differ come first."""

    both: int
    differ: int
    only_first: int
    only_second: int
    pairs: list[tuple[AnswerRow, AnswerRow]]
    """The first `num_differing` of them differ."""
    num_differing: int


@dataclass(frozen=True)
class _Side:
    ranks: Hashes
    says: Hashes
    unseen: npt.NDArray[np.bool_]
    """True where the row's image has no thumbnail."""


def compare(
    first: Answers, second: Answers, *, seed: int, preferred: frozenset[str] = frozenset()
) -> Comparison:
    """Join two folders by id; pairs of `preferred` images are drawn before others."""
    one, two = _hash_rows(first, seed, preferred), _hash_rows(second, seed, preferred)
    ranks, at_one, at_two = np.intersect1d(
        one.ranks, two.ranks, assume_unique=True, return_indices=True
    )
    differs = one.says[at_one] != two.says[at_two]
    unseen = one.unseen[at_one]
    differing = _draw(ranks[differs], unseen[differs], DIFFERING_PAIRS)
    same = _draw(ranks[~differs], unseen[~differs], SAME_PAIRS)
    place = {rank: i for i, rank in enumerate([*differing, *same])}
    rows = [find_rows(a, lambda ident: sample_rank(seed, ident) in place) for a in (first, second)]
    ids = sorted(rows[0], key=lambda ident: place[sample_rank(seed, ident)])
    return Comparison(
        both=len(ranks),
        differ=int(differs.sum()),
        only_first=len(one.ranks) - len(ranks),
        only_second=len(two.ranks) - len(ranks),
        pairs=[(rows[0][ident], rows[1][ident]) for ident in ids],
        num_differing=len(differing),
    )


def _hash_rows(answers: Answers, seed: int, preferred: frozenset[str]) -> _Side:
    ranks: list[int] = []
    says: list[int] = []
    unseen: list[bool] = []
    for batch in batches(answers, _COLUMNS):
        ranks += (sample_rank(seed, ident) for ident in batch["id"].to_pylist())
        says += (sample_rank(0, text) for text in _texts(batch))
        unseen += (image not in preferred for image in images_of(batch))
    return _Side(np.array(ranks, np.uint64), np.array(says, np.uint64), np.array(unseen, bool))


def _texts(batch: pa.RecordBatch) -> list[str]:
    """What each row says: its status, and the answers of all its turns."""
    turns = batch["turns"]
    answers = iter(turns.flatten().field("answer").to_pylist())
    counts = turns.value_lengths().to_pylist()
    dialogues = ["\x1e".join(a or "" for a in islice(answers, n or 0)) for n in counts]
    columns = zip(
        batch["status"].to_pylist(),
        batch["error_code"].to_pylist(),
        batch["answer"].to_pylist(),
        dialogues,
        strict=True,
    )
    return ["\x1f".join(part or "" for part in row) for row in columns]


def _draw(ranks: Hashes, unseen: npt.NDArray[np.bool_], most: int) -> list[int]:
    """The smallest ranks, those with a thumbnail first."""
    order = np.lexsort((ranks, unseen))[:most]
    return [int(rank) for rank in ranks[order]]
