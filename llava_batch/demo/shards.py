"""Shards of fresh scenes, as users have them: one WebDataset tar, one Parquet file.

The same arguments give the same bytes (with the same versions of Pillow and pyarrow). The scenes
are held out: neither training nor the model card's figures saw them.
"""

import dataclasses
import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from llava_batch.demo.questions import questions
from llava_batch.demo.scenes import HELD_OUT, Scene, caption, draw, make_scene, stream

SHORT_SIDE = 224
SEEDS_APART = 10**9  # scenes between two shards' seeds, and between them and the card's scenes
_SCHEMA = pa.schema(
    {
        "key": pa.string(),
        "image": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
        "question": pa.string(),
        "answer": pa.string(),
        "caption": pa.string(),
    }
)


def write_shards(folder: Path, *, count: int, seed: int) -> list[Path]:
    """Writes `shapes-00000.tar` and `shapes-00001.parquet`, `count` scenes in each.

    The tar holds `<key>.jpg`, `<key>.json` (the scene's facts) and `<key>.txt` (its caption). The
    Parquet file holds the image as Hugging Face does (`struct<bytes, path>`, PNG), a question with
    its answer, and the caption. Existing files of these names are replaced. Returns their paths.
    """
    if count < 1:
        raise ValueError(f"count={count}: a shard holds at least one scene")
    folder.mkdir(parents=True, exist_ok=True)
    scenes = shard_scenes(count=2 * count, seed=seed)
    tar, table = folder / "shapes-00000.tar", folder / "shapes-00001.parquet"
    _write_tar(tar, scenes[:count])
    _write_parquet(table, scenes[count:])
    return [tar, table]


def shard_scenes(*, count: int, seed: int) -> list[Scene]:
    """The first `count` scenes of a seed, in the order of their keys."""
    first = HELD_OUT + SEEDS_APART * (seed + 1)
    return [make_scene(first + number) for number in range(count)]


def _encoded(scene: Scene, form: str) -> bytes:
    buffer = io.BytesIO()
    options = {"quality": 92} if form == "JPEG" else {}
    draw(scene, short_side=SHORT_SIDE).save(buffer, form, **options)
    return buffer.getvalue()


def _write_tar(path: Path, scenes: list[Scene]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, scene in enumerate(scenes):
            facts = json.dumps(dataclasses.asdict(scene))
            members = {
                "jpg": _encoded(scene, "JPEG"),
                "json": facts.encode(),
                "txt": caption(scene).encode(),
            }
            for extension, data in members.items():
                info = tarfile.TarInfo(f"{number:06}.{extension}")  # its times and owners are 0
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def _write_parquet(path: Path, scenes: list[Scene]) -> None:
    rows = []
    for number, scene in enumerate(scenes):
        asked = stream(scene.seed, "asked").choice(questions(scene))
        rows.append(
            {
                "key": f"{number:06}",
                "image": {"bytes": _encoded(scene, "PNG"), "path": f"{number:06}.png"},
                "question": asked.question,
                "answer": asked.answer,
                "caption": caption(scene),
            }
        )
    pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), path)
