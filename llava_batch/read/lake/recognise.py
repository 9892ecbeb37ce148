"""Recognise: which folders are lake tables, by names alone.

A Delta table has `_delta_log/`, an Iceberg table `metadata/*.metadata.json`, a Lance dataset a name that
ends in `.lance`. What lies in a table's folder is the table's, and nobody else's.
"""

from collections.abc import Callable, Iterable, Sequence

DELTA, ICEBERG, LANCE = "delta", "iceberg", "lance"

CATALOG = "iceberg:"
"""How an `--input` begins that names a table in one of pyiceberg's catalogs: CATALOG.NAMESPACE.TABLE."""

LOG_FOLDER = "_delta_log"
METADATA_FOLDER = "metadata"
METADATA_FILE = ".metadata.json"


def kind_of_folder(
    name: str, entries: Iterable[str], metadata: Callable[[], Iterable[str]]
) -> str | None:
    """What a folder of this `name` is, by the names in it; `metadata` gives those in its `metadata/`."""
    there = set(entries)
    if LOG_FOLDER in there:
        return DELTA
    if name.endswith(f".{LANCE}"):
        return LANCE
    if METADATA_FOLDER in there and any(n.endswith(METADATA_FILE) for n in metadata()):
        return ICEBERG
    return None


def tables_among(files: Iterable[Sequence[str]]) -> dict[tuple[str, ...], str]:
    """The tables that files lie in, given each one's path in parts: kind by folder, the outermost of
    those within each other."""
    found: dict[tuple[str, ...], str] = {}
    for parts in files:
        for folder, kind in _claims(parts):
            found[folder] = min(
                kind, found.get(folder, kind)
            )  # Delta before Iceberg: it may be both
    return {f: kind for f, kind in found.items() if not any(f[:n] in found for n in range(len(f)))}


def _claims(parts: Sequence[str]) -> Iterable[tuple[tuple[str, ...], str]]:
    for i, part in enumerate(parts[:-1]):
        if part == LOG_FOLDER:
            yield tuple(parts[:i]), DELTA
        elif part.endswith(f".{LANCE}"):
            yield tuple(parts[: i + 1]), LANCE
    if parts[-2:-1] == [METADATA_FOLDER] and parts[-1].endswith(METADATA_FILE):
        yield tuple(parts[:-2]), ICEBERG
