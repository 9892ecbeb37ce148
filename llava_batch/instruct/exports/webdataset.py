"""WebDataset: one tar for each unit, one sample for each image.

A sample is the image, `.txt` with the answer (the first, if there are several), and `.json` with
every conversation about it. Tars are the same bytes whenever they are written.
"""

from llava_batch.instruct.exports.pairs import Pair, Pairs
from llava_batch.storage import locate, whole_file


def export_webdataset(pairs: Pairs, output: str) -> int:
    """Write `<output>/<unit>.tar` for each unit with something to export; returns the number of
    samples. `output` may be a URI."""
    from webdataset import TarWriter

    count = 0
    for unit, unit_pairs in pairs.units():
        first = next(unit_pairs, None)
        if first is None:
            continue
        taken: set[str] = set()
        at = locate(f"{output.rstrip('/')}/{unit}.tar")
        with whole_file(at.fs, at.path) as stream, TarWriter(stream, mtime=0) as writer:
            writer.write(_sample(first, taken))
            for pair in unit_pairs:
                writer.write(_sample(pair, taken))
        count += len(taken)
    return count


def _sample(pair: Pair, taken: set[str]) -> dict[str, object]:
    said = [{"id": s.id, "conversations": s.conversations} for s in pair.said]
    return {
        "__key__": _key(pair.key, taken),
        pair.extension: pair.image,
        "txt": pair.said[0].answer,
        "json": {"unit": pair.unit, "key": pair.key, "conversations": said},
    }


def _key(key: str, taken: set[str]) -> str:
    """A key that WebDataset reads back as one sample: its base name ends at the first dot, so the
    extension goes and other dots become `_`; a key that is taken gets a number."""
    folder, slash, base = key.rpartition("/")
    stem = base.rpartition(".")[0] or base
    name = wanted = folder.replace("..", "_").lstrip("/") + slash + stem.replace(".", "_")
    number = 1
    while name in taken:
        number += 1
        name = f"{wanted}_{number}"
    taken.add(name)
    return name
