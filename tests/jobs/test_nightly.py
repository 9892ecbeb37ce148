"""Nights over a Delta table: new, changed and deleted rows, nothing new, and a night that is killed."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llava_batch.demo.scenes import draw, make_scene

deltalake = pytest.importorskip("deltalake")

NIGHTLY = Path(__file__).parent.parent.parent / "examples" / "nightly"


def environment() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "RAY_USAGE_STATS_ENABLED": "0"}


def rows(seeds: dict[str, int]) -> pa.Table:
    """A scene of each seed, by key."""
    images = []
    for seed in seeds.values():
        data = io.BytesIO()
        draw(make_scene(seed)).save(data, "PNG")
        images.append(data.getvalue())
    return pa.table({"key": [*seeds], "image": images})


class Lake:
    """A table of photos, the answers beside it, and the folder that the nights work in."""

    def __init__(self, folder: Path) -> None:
        self.photos, self.answers, self.out = (folder / n for n in ("photos", "captions", "work"))

    @property
    def command(self) -> list[str]:
        return [str(NIGHTLY / "night.sh"), str(self.photos), str(self.out), f"delta:{self.answers}"]

    def night(self) -> dict[str, Any]:
        """A whole night; what its run says."""
        done = subprocess.run(self.command, env=environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        said: dict[str, Any] = json.loads((self.out / "_run.json").read_text())
        return said

    def killed_night(self) -> None:
        """A night that ends by SIGKILL once some of its answers are kept."""
        before = self.held()
        with subprocess.Popen(
            self.command, env=environment(), start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        ) as night:  # fmt: skip
            deadline = time.monotonic() + 120
            while self.held() == before and night.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
            os.killpg(night.pid, signal.SIGKILL)
        owner = json.loads((self.out / "_manifest" / "_owner.json").read_text())
        while Path(f"/proc/{owner['pid']}").exists() and time.monotonic() < deadline:
            time.sleep(0.05)  # it is killed, and takes its time to end
        assert self.held() != before

    def held(self) -> set[str]:
        found = (*self.out.rglob("*.parquet"), *self.out.rglob("*.part"))
        return {str(path) for path in found}

    def merge(self, seeds: dict[str, int]) -> None:
        """New rows, and new images of old ones; all in new files, as the table's writer does."""
        merging = deltalake.DeltaTable(self.photos).merge(
            rows(seeds), "t.key = s.key", source_alias="s", target_alias="t"
        )
        merging.when_matched_update_all().when_not_matched_insert_all().execute()

    def joined(self) -> dict[str, tuple[str, str]]:
        command = [sys.executable, str(NIGHTLY / "join.py"), str(self.photos), str(self.answers)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return {
            row["key"]: (row["status"], row["answer"]) for row in csv.DictReader(text.splitlines())
        }

    def published(self) -> pa.Table:
        return pa.table(deltalake.DeltaTable(self.answers).to_pyarrow_table())

    @property
    def version(self) -> int:
        return int(deltalake.DeltaTable(self.answers).version())


def keys(numbers: Iterable[int]) -> dict[str, int]:
    return {f"k{n:02d}": 7_000 + n for n in numbers}


@pytest.mark.timeout(600)
def test_nights_answer_what_is_new_and_the_table_says_what_the_photos_are(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    deltalake.write_deltalake(lake.photos, rows(keys(range(12))))
    first = lake.night()
    assert first["run"]["images"] == 12
    before = lake.joined()
    assert {status for status, _ in before.values()} == {"ok"} and len(before) == 12

    (commit,) = deltalake.DeltaTable(lake.answers).history(1)
    assert json.loads(commit["llava_batch.snapshots"]) == {"photos": 0}, "what was read is said"

    lake.merge({"k03": 9_999} | keys(range(12, 15)))
    deltalake.DeltaTable(lake.photos).delete("key = 'k07'")
    old_snapshot = deltalake.DeltaTable(lake.answers)
    lake.night()
    after = lake.joined()
    assert after.keys() == {*keys(range(15))} - {"k07"}
    assert after["k03"] != before["k03"]
    assert {k: a for k, a in after.items() if k in before and k != "k03"} == {
        k: a for k, a in before.items() if k not in ("k03", "k07")
    }
    assert sorted(lake.published()["key"].to_pylist()) == sorted(after), "the deleted one's is gone"
    assert len(old_snapshot.to_pyarrow_table()) == 12, "who held the old snapshot reads it still"

    version = lake.version
    lake.night()
    assert (lake.version, lake.joined()) == (version, after)

    lake.merge(keys(range(20, 40)))
    lake.killed_night()
    lake.night()
    ended = lake.joined()
    assert len(ended) == 34 and {status for status, _ in ended.values()} == {"ok"}
    ids = lake.published()["id"].to_pylist()
    assert len(set(ids)) == len(ids) == 34
    files = [pq.read_table(path, columns=["id"]) for path in lake.out.rglob("*.parquet")]
    assert sorted(pa.concat_tables(files)["id"].to_pylist()) == sorted(ids)
