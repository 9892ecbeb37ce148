#!/usr/bin/env python3
"""Kill a captioning job again and again, resume it, and compare with a run that nobody disturbed.

benchmarks/soak.py                        SIGKILL the driver at random moments, 20 times
benchmarks/soak.py --victims workers      SIGKILL random worker processes while it runs
benchmarks/soak.py --images 400 --kills 3 a quick look
benchmarks/soak.py --tar 5000             one tar; SIGKILL everything, and count what is answered again

The corpus is drawn: tars and Parquet files in turn, broken images among the good. After the last
resume it checks that ids equal the undisturbed run's and none stands twice; that prompts, answers
and statuses are byte-equal; that no reader's pattern finds a temporary file; and that no unit was
written again once it was committed. Ends with one JSON line; exit status 1 if anything differs.

With `--victims workers` the job runs with a high `--max-tries`: a row that is in a worker's hand at
three random kills would be given up for a killer, as it should be.

With `--tar` the driver and all of its Ray's processes die at once, at random moments of answering (one
kill in five: of starting up), and after each resume it is counted how many rows reached a driver that an
earlier one had had already. More than a part's 1,000 rows and two batches is a failure.
"""

import argparse
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from PIL import Image
from soak_answered import answered

HERE = Path(__file__).resolve().parent
JOB = HERE.parent / "jobs" / "caption.py"
COMPARED = ["id", "prompt", "answer", "status", "error_code"]
BROKEN_SHARE = 0.03
MOST_AGAIN = 1000 + 2 * 32
STARTING_SHARE = 0.2


def main() -> None:
    flags = parse()
    if flags.tar:
        flags.images, flags.units = flags.tar, 1
    chance = random.Random(flags.seed)
    if flags.folder:
        Path(flags.folder).mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="soak-", dir=flags.folder))
    draw_corpus(folder / "in", flags.images, flags.units, chance)
    started = time.monotonic()
    if start(flags, folder, "undisturbed").wait() != 0:
        sys.exit("the undisturbed run failed; its log is in " + str(folder))
    undisturbed_s = time.monotonic() - started
    said = {"victims": flags.victims, "images": flags.images, "units": flags.units, "kills": 0,
            "rounds": 0, "undisturbed_s": round(undisturbed_s, 1), "problems": []}  # fmt: skip
    if flags.victims == "driver":
        said |= {"committed_before_a_kill": 0, "of_these_written_again": 0}
    disturb = kill_driver if flags.victims == "driver" else kill_workers
    if flags.tar:
        said |= {"answered_again": []}
        disturb = kill_everything
    while said["kills"] < flags.kills and not said["problems"]:
        said["rounds"] += 1
        out = folder / f"out-{said['rounds']}"
        disturb(flags, folder, out.name, undisturbed_s, chance, said)
        said["problems"] += differences(folder / "undisturbed", out)
    if flags.tar:
        said["most_answered_again"] = max(said["answered_again"], default=0)
    said["wall_s"] = round(time.monotonic() - started, 1)
    said["rows"] = ds.dataset(folder / "undisturbed").count_rows()
    if not said["problems"]:
        shutil.rmtree(folder)
    print(json.dumps(said))
    sys.exit(bool(said["problems"]))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--units", type=int, default=12)
    parser.add_argument("--tar", type=int, help="one tar of so many images")
    parser.add_argument("--kills", type=int, default=20, help="at least so many")
    parser.add_argument("--victims", choices=("driver", "workers"), default="driver")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--max-new-tokens", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--folder", help="for the corpus and the outputs (default: a temporary one)"
    )
    return parser.parse_args()


def draw_corpus(folder: Path, num_images: int, num_units: int, chance: random.Random) -> None:
    """Shards of equal size, tars and Parquet files in turn."""
    folder.mkdir()
    images = [drawn(chance) for _ in range(num_images)]
    for unit in range(num_units):
        mine = list(enumerate(images))[unit::num_units]
        path = folder / f"{unit:05d}"
        if unit % 2:
            columns = {"key": [f"{n:06d}" for n, _ in mine], "jpg": [data for _, data in mine]}
            pq.write_table(pa.table(columns), path.with_suffix(".parquet"), row_group_size=64)
            continue
        with tarfile.open(path.with_suffix(".tar"), "w") as tar:
            for number, data in mine:
                info = tarfile.TarInfo(f"{number:06d}.jpg")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def drawn(chance: random.Random) -> bytes:
    """A JPEG of two rectangles; now and then one that is broken."""
    image = Image.new("RGB", (112, 112), tuple(chance.randbytes(3)))
    left, top, side = chance.randrange(60), chance.randrange(60), chance.randrange(20, 50)
    image.paste(tuple(chance.randbytes(3)), (left, top, left + side, top + side))
    file = io.BytesIO()
    image.save(file, "JPEG")
    data = file.getvalue()
    if chance.random() < BROKEN_SHARE:
        return chance.choice([data[: len(data) // 2], b"<html>404</html>", b"", data[2:]])
    return data


def start(flags: argparse.Namespace, folder: Path, out: str, *more: str) -> subprocess.Popen:
    """The job on a local Ray of its own, in a session of its own; its output goes to a log."""
    job = [str(JOB)]
    if flags.tar:
        job = [str(HERE / "soak_answered.py"), str(folder / f"{out}.ids")]
    command = [sys.executable, *job, "--input", str(folder / "in"), "--output",
               str(folder / out), "--model", flags.model, "--max-new-tokens",
               str(flags.max_new_tokens), *more]  # fmt: skip
    ray = Path(tempfile.gettempdir()) / f"soak{os.getpid()}"  # short: sockets live below it
    shutil.rmtree(ray, ignore_errors=True)
    environment = {n: v for n, v in os.environ.items() if n != "RAY_ADDRESS"}
    with (folder / f"{out}.log").open("ab") as log:
        return subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=environment | {"RAY_TMPDIR": str(ray)},
        )


def kill_driver(flags, folder, out, full_s: float, chance: random.Random, said: dict) -> None:
    """Start, kill at a random moment, start again, until a run comes to its end."""
    tables: dict[str, tuple[int, int]] = {}
    while True:
        job, known = start(flags, folder, out), len(tables)
        try:
            status = job.wait(timeout=chance.uniform(0.1, 0.9) * full_s)
        except subprocess.TimeoutExpired:
            family = descendants(job.pid)
            os.kill(job.pid, signal.SIGKILL)
            job.wait()
            reap(family)
            said["kills"] += 1
            remember(folder / out, tables, said)
            said["committed_before_a_kill"] += len(tables) - known
            if len(tables) == known:
                full_s *= 1.2  # nothing was committed: the machine is slower than it was
            continue
        remember(folder / out, tables, said)
        if status != 0:
            said["problems"].append(f"the last resume ended with {status}, see {folder / out}.log")
        return


def kill_everything(flags, folder, out, full_s: float, chance: random.Random, said: dict) -> None:
    """Start, kill the driver and all of its Ray at a random moment, start again, until a run comes to its
    end; of each run count the rows that an earlier one had answered."""
    whole = answered(folder / "undisturbed.ids").values()
    answering_s = max(whole) - min(whole)
    ids, before = folder / f"{out}.ids", set[str]()
    while True:
        ids.unlink(missing_ok=True)
        job = start(flags, folder, out)
        killed = said["kills"] < flags.kills and killed_at_random(
            job, ids, answering_s, full_s - answering_s, chance
        )
        if not killed:
            job.wait()
        now = answered(ids).keys()
        num_again = len(now & before)
        before |= now
        said["answered_again"].append(num_again)
        if num_again > MOST_AGAIN:
            said["problems"].append(f"{num_again} rows were answered again")
        if not killed:
            break
        said["kills"] += 1
    if job.returncode != 0:
        said["problems"].append(
            f"the last resume ended with {job.returncode}, see {folder / out}.log"
        )


def killed_at_random(job, ids: Path, answering_s: float, starting_s: float, chance) -> bool:
    """Kill the job and its Ray while it starts, or within a third of what answering all takes after its
    first answer; False where it came to its end before."""
    if chance.random() < STARTING_SHARE:
        moment = time.monotonic() + chance.uniform(0.1, 0.9) * starting_s
    else:
        while not ids.exists() or not ids.stat().st_size:
            time.sleep(0.02)
            if job.poll() is not None:
                return False
        moment = time.monotonic() + chance.uniform(0, answering_s / 3)
    while time.monotonic() < moment:
        if job.poll() is not None:
            return False
        time.sleep(0.01)
    family = descendants(job.pid)
    for pid in (job.pid, *family):
        kill(pid)
    job.wait()
    reap(family, patience_s=0)
    return True


def kill_workers(flags, folder, out, full_s: float, chance: random.Random, said: dict) -> None:
    """One run, of which a random Ray worker is killed now and then; it has to end well."""
    job = start(flags, folder, out, "--max-tries", "50")
    while job.poll() is None:
        try:
            job.wait(timeout=chance.uniform(0.05, 0.3) * full_s)
        except subprocess.TimeoutExpired:
            # Not the node's own agents: without them Ray gives up the whole node, here the only one.
            workers = [
                pid
                for pid, title in descendants(job.pid).items()
                if title.startswith("ray::") and "Agent" not in title
            ]
            if workers:
                victim = chance.choice(workers)
                reap({victim: ""}, patience_s=0)
                said["kills"] += 1
    if job.returncode != 0:
        said["problems"].append(f"the run ended with {job.returncode}, see {folder / out}.log")


def remember(out: Path, tables: dict[str, tuple[int, int]], said: dict) -> None:
    """Note the committed tables; one that was committed before has to be the same file still."""
    for record in (out / "_manifest").rglob("[!_]*.json"):
        name = json.loads(record.read_bytes())["table"]
        facts = (out / name).stat()
        now = (facts.st_ino, facts.st_mtime_ns)
        if tables.setdefault(name, now) != now:
            said["of_these_written_again"] += 1
            said["problems"].append(f"{name} was committed and then written again")


def differences(undisturbed: Path, out: Path) -> list[str]:
    """What of the disturbed run's answers is not as it should be."""
    wanted, found = rows_of(undisturbed), rows_of(out)
    problems = []
    for name in COMPARED:
        if wanted.column(name) != found.column(name):
            problems.append(f"{out.name}: column {name} differs from the undisturbed run's")
    ids = found.column("id").to_pylist()
    if len(set(ids)) != len(ids):
        problems.append(f"{out.name}: {len(ids) - len(set(ids))} ids stand twice")
    seen_by_readers = {str(p.relative_to(out)) for p in out.rglob("*.parquet")}
    if seen_by_readers != {str(p.relative_to(undisturbed)) for p in undisturbed.rglob("*.parquet")}:
        problems.append(f"{out.name}: other tables than the undisturbed run's")
    left = [str(p) for p in out.rglob("_tmp-*")] + [str(p) for p in out.rglob("_owner.json")]
    return problems + [f"left behind: {path}" for path in left]


def rows_of(out: Path) -> pa.Table:
    return ds.dataset(out).to_table(columns=COMPARED).sort_by("id").combine_chunks()


def descendants(pid: int) -> dict[int, str]:
    """The processes below `pid`, with their titles."""
    listed = subprocess.run(
        ["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True
    ).stdout
    processes = [line.split(None, 2) for line in listed.splitlines()]
    found: dict[int, str] = {}
    family = {pid}
    while True:
        new = {int(p): a[0] if a else "" for p, q, *a in processes
               if int(q) in family and int(p) not in family}  # fmt: skip
        if not new:
            return found
        found |= new
        family |= new.keys()


def reap(family: dict[int, str], patience_s: float = 5.0) -> None:
    """See the processes of a dead driver gone; those that linger are killed."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline and any(Path(f"/proc/{pid}").exists() for pid in family):
        time.sleep(0.1)
    for pid in family:
        kill(pid)


def kill(pid: int) -> None:
    """SIGKILL, to a process that may be gone already."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
