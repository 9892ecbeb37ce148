"""Tally: what a run has answered so far, in counts."""

from collections import Counter
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc


@dataclass
class Tally:
    """What has been answered so far in this run."""

    images: int = 0
    rows: int = 0
    images_without_question: int = 0
    rows_copied: int = 0
    rows_with_several_images: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    units: int = 0
    images_of_units: int = 0
    """Images that came back of the `units`, which are whole."""
    bytes_of_shards: int = 0
    images_of_shards: int = 0
    """Of those whose images only reading counts: the sizes of their files, and their images."""
    failed_units: dict[str, str] = field(default_factory=dict)
    answer_tokens: int = 0
    prompt_tokens: int = 0

    @property
    def num_errors(self) -> int:
        return self.errors.total()

    def count(self, asked: pa.Table) -> None:
        """Count rows that something was asked in."""
        self.rows += asked.num_rows
        self.errors.update(code for code in asked["error_code"].to_pylist() if code)
        self.rows_with_several_images += pc.sum(pc.greater(asked["num_images"], 1)).as_py() or 0
        turns = pc.list_flatten(asked["turns"])  # the row's own columns are its last turn's alone
        self.answer_tokens += pc.sum(pc.struct_field(turns, "answer_tokens")).as_py() or 0
        self.prompt_tokens += pc.sum(asked["prompt_tokens"]).as_py() or 0
