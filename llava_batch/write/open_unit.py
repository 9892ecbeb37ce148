"""OpenUnit: a unit whose rows are coming in: which came, where they lie, and in which order they will stand."""

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from llava_batch.write.came import Came
from llava_batch.write.scratch import Held, Rows


@dataclass
class OpenUnit:
    """Of rows that are kept safe, memory holds 12 bytes each."""

    fresh: list[pa.Table] = field(default_factory=list)
    """Rows that no part holds yet."""
    num_images: int | None = None
    came: Came = field(default_factory=Came)
    copies: list[pa.Table] = field(default_factory=list)
    """Rows that stand for images whose answers are copied."""
    _kept: list[Rows] = field(default_factory=list)
    _places: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        return self.num_images is not None and self.came.num_whole >= self.num_images

    @property
    def nbytes(self) -> int:
        """Of all rows, wherever they lie."""
        return sum(rows.nbytes for rows in (*self._kept, *self.fresh))

    def keep(self, rows: Rows, table: pa.Table) -> None:
        """Rows that are kept safe; `table` is they."""
        self._kept.append(rows)
        self._places.append(_places(table))

    def rows(self) -> tuple[list[Rows], np.ndarray]:
        """All rows, and int64 `[rows]`: the order in which they stand in the unit, counting through them."""
        parts = [*self._kept, *(Held(batch) for table in self.fresh for batch in _batches(table))]
        places = [*self._places, *map(_places, self.fresh)]
        if not places:
            return parts, np.zeros(0, np.int64)
        ordinals, positions = (np.concatenate(of) for of in zip(*places, strict=True))
        return parts, np.lexsort((positions, ordinals))


def _places(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """The rows' images, int64, and their places among the rows of those, int32."""
    ordinals = table["ordinal"].to_numpy().astype(np.int64)
    return ordinals, table["position"].to_numpy().astype(np.int32)


def _batches(table: pa.Table) -> list[pa.Table]:
    """A table for each chunk, none of which exceeds what Arrow's `string` holds."""
    return [pa.Table.from_batches([batch]) for batch in table.to_batches()]
