"""The tables among the inputs, opened once in the driver, whichever kind they are of."""

from collections.abc import Callable, Sequence

from llava_batch.errors import UsageError
from llava_batch.read.lake import delta, iceberg, lance
from llava_batch.read.lake.recognise import DELTA, ICEBERG, LANCE
from llava_batch.read.lake.table import AsOf, Opened, Place

_OPEN: dict[str, Callable[[Place, AsOf], Opened]] = {
    DELTA: delta.open_table,
    ICEBERG: iceberg.open_table,
    LANCE: lance.open_table,
}


def open_tables(places: Sequence[Place], as_of: AsOf) -> list[Opened]:
    """Each table as of one snapshot.

    Raises:
        UsageError: `--snapshot` without exactly one table to which it applies; a table that cannot be read.
    """
    if as_of.snapshot is not None and len(places) != 1:
        there = f"are {len(places)} tables" if places else "is no Delta, Iceberg or Lance table"
        raise UsageError(
            f"--snapshot {as_of.snapshot}: there {there} among the inputs; give it with exactly one"
        )
    return [_OPEN[place.kind](place, as_of) for place in places]
