"""What finding and reading cost the driver and a reader, without a model: measures of `scale.py`."""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

NUM_FILES = int(os.environ.get("SCALE_FILES", 1_000_000))
NUM_SHARDS = 100_000
IMAGE_BYTES = 100_000
GROUP_ROWS = 10_000
PAGE_BYTES = 2**20


def plan() -> dict[str, Any]:
    """The whole plan of a job over a million loose files in one folder: all memory of the process."""
    from scale import peak_mib

    from llava_batch.driver.plan import make_plan
    from llava_batch.driver.settle import settle
    from llava_batch.job import Job

    with tempfile.TemporaryDirectory(prefix="scale") as folder:
        photos = Path(folder) / "photos"
        photos.mkdir()
        for number in range(NUM_FILES):
            os.close(os.open(photos / f"{number * 7919 % NUM_FILES:08}.jpg", os.O_CREAT))
        before, started = peak_mib(), time.perf_counter()
        job = Job(input=(str(photos),), output=f"{folder}/out", quiet=True)
        todo = make_plan(settle(job)).todo
        assert sum(len(unit.members) for unit in todo) == NUM_FILES
        return {
            "plan_mib": round(peak_mib()),
            "plan_beyond_imports_mib": round(peak_mib() - before),
            "plan_s": round(time.perf_counter() - started, 1),
        }


def shards() -> dict[str, Any]:
    """100,000 tars of a store, named by a range and by a glob: requests, at 25 ms each."""
    from slow_storage import SlowStorage

    from llava_batch.read.find import find_units

    figures = {}
    with tempfile.TemporaryDirectory(prefix="scale") as folder:
        for number in range(NUM_SHARDS):
            os.close(os.open(f"{folder}/{number:05}.tar", os.O_CREAT))
        for name, pattern in (("range", f"{{00000..{NUM_SHARDS - 1:05}}}.tar"), ("glob", "*.tar")):
            storage = SlowStorage(latency_s=0.025)
            storage.register()
            started = time.perf_counter()
            assert len(find_units([f"slow://{folder}/{pattern}"])) == NUM_SHARDS
            figures[f"{name}_s"] = round(time.perf_counter() - started, 1)
            figures[f"{name}_requests"] = storage.num_requests
    return figures


def read() -> dict[str, Any]:
    """A row group of 1 GB, images of 100 KB: what its reader holds beyond what it had before, by its pages."""
    return _reading(write_batch_size=PAGE_BYTES // IMAGE_BYTES, name="read")


def read_default() -> dict[str, Any]:
    """The same as pyarrow writes it by default: it looks at a page's size every 1024 values."""
    return _reading(name="read_default_pages")


def _reading(name: str, **how: Any) -> dict[str, Any]:
    from scale import peak_mib

    from llava_batch.job import Job
    from llava_batch.read.find import find_units
    from llava_batch.read.reading import Reading
    from llava_batch.read.source import read_blocks

    reading = Reading.of(Job(), (), pa.schema([]))
    with _row_group(4, **how) as path:  # what is loaded for the first row
        for _ in read_blocks(find_units([str(path)])[0], reading):
            pass
    with _row_group(GROUP_ROWS, **how) as path:
        (unit,) = find_units([str(path)])
        forget_peak()
        before, started, first, num_rows = peak_mib(), time.perf_counter(), 0.0, 0
        for block in read_blocks(unit, reading):
            first = first or peak_mib() - before
            num_rows += block.num_rows
        assert num_rows == GROUP_ROWS + 1
        return {
            f"{name}_mib": round(peak_mib() - before),
            f"{name}_first_block_mib": round(first),
            f"{name}_mib_per_s": round(
                os.path.getsize(path) / 2**20 / (time.perf_counter() - started)
            ),
        }


def forget_peak() -> None:
    """Let this process's peak be what it holds now (Linux)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


@contextmanager
def _row_group(num_rows: int, **how: Any) -> Iterator[Path]:
    """A Parquet file of one row group; its writer runs in a process that ends, for its memory."""
    with tempfile.TemporaryDirectory(prefix="scale") as folder:
        path = Path(folder) / "a.parquet"
        child = os.fork()
        if not child:
            _write(path, num_rows, how)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        yield path


def _write(path: Path, num_rows: int, how: dict[str, Any]) -> None:
    noise = os.urandom(IMAGE_BYTES + num_rows)
    images = [
        pa.array([noise[i : i + IMAGE_BYTES] for i in range(start, min(start + 1000, num_rows))])
        for start in range(0, num_rows, 1000)
    ]
    table = pa.table({"image": pa.chunked_array(images), "caption": ["a caption"] * num_rows})
    pq.write_table(
        table, path, row_group_size=num_rows, compression="none", data_page_size=PAGE_BYTES, **how
    )


MEASURES: dict[str, Callable[[], dict[str, Any]]] = {
    "plan": plan,
    "shards": shards,
    "read": read,
    "read_default": read_default,
}
