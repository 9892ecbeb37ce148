"""Hive partitions: `dt=2026-11-01` among the folders of a path is a column of all rows below it.

Values are text, percent-decoded; `__HIVE_DEFAULT_PARTITION__` is null. A column of the same name within a file
gives way to it, as in Spark, DuckDB and pyarrow. Of two of one key on the way, the deeper one counts.
"""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from urllib.parse import unquote

from llava_batch.errors import UsageError

Partition = tuple[tuple[str, str | None], ...]
"""Each key's value, outermost first."""

LEFT_OUT = "outside --partition"

_NULL = "__HIVE_DEFAULT_PARTITION__"
_SHOWN = 3


def partition_of(folder: str) -> Partition:
    """The partition that the files in a folder are of; none where no part of its path is one."""
    if "=" not in folder:
        return ()
    found: dict[str, str | None] = {}
    for part in filter(_is_partition, folder.split("/")):
        key, _, value = part.partition("=")
        found[unquote(key)] = None if value == _NULL else unquote(value)
    return tuple(found.items())


def table_of(folder: str) -> str:
    """The folder itself; where it lies in a partition, the one that the partitions lie in."""
    if "=" not in folder:
        return folder
    parts = folder.split("/")
    first = next((n for n, part in enumerate(parts) if _is_partition(part)), len(parts))
    return "/".join(parts[:first])


def innermost(folder: str) -> str:
    """The folder of the last partition on the way to a folder; "" where there is none."""
    parts = folder.split("/")
    last = max((n for n, part in enumerate(parts) if _is_partition(part)), default=-1)
    return "/".join(parts[: last + 1])


def fits(partition: Partition, patterns: Sequence[str]) -> bool:
    """Whether it is one of those that `--partition` names: of each key that is named, one pattern fits."""
    there = dict(partition)
    wanted: dict[str, list[str]] = {}
    for pattern in patterns:
        key, _, value = pattern.partition("=")
        wanted.setdefault(key, []).append(value)
    return all(
        key in there and any(fnmatchcase(there[key] or _NULL, value) for value in values)
        for key, values in wanted.items()
    )


def refuse_unfit(there: Iterable[Partition], patterns: Sequence[str]) -> None:
    """Refuse patterns that no partition fits.

    Raises:
        UsageError: none of the partitions that are `there`, empty ones too, fits.
    """
    known = {*there} - {()}
    if any(fits(partition, patterns) for partition in known):
        return
    names = sorted({f"{key}={_NULL if v is None else v}" for each in known for key, v in each})
    shown = ", ".join(names[:_SHOWN]) + (f" … {names[-1]}" if len(names) > _SHOWN else "")
    raise UsageError(
        f"--partition {' '.join(patterns)}: no partition of --input fits; "
        + (f"there are {shown}" if names else "there are none (no folder is called KEY=VALUE)")
    )


def _is_partition(part: str) -> bool:
    return part.find("=") > 0
