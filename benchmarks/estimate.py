#!/usr/bin/env python3
"""Estimate jobs, run them, and see whether what they took lies within the bounds that were given.

    benchmarks/estimate.py                             ten seeds, two corpora, some 20 minutes
    benchmarks/estimate.py --seeds 3 --photos FOLDER   with photographs among the mixed corpus

Corpora: the demo's two shards (96 scenes), and a folder of tars, a Parquet file and loose files of scenes,
some of them broken, with the photographs of `--photos` among them (1,782 without). The job runs as often as
`--jobs` says, with the estimates in turn between; each is a process of its own, and the job's time is its whole
command's. `--before 'CMD'` is put before each such turn: something that waits until the machine is free.

A seed is a hit where the job's images are what the estimate says, the median of the job's times lies within the bounds,
and the upper bound is at most 1.5 times the lower. Ends with one JSON line.
"""

import argparse
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

JOBS = Path(__file__).resolve().parent.parent / "jobs"
CORPORA = {"demo": [], "mixed": ["--max-new-tokens", "32"]}
MOST_RATIO = 1.5


def main() -> None:
    flags = parse()
    if flags.turn is not None:
        take_turn(Path(flags.folder), flags.corpus, flags.turn, flags.pilot)
        return
    folder = Path(tempfile.mkdtemp(prefix="estimate-", dir=flags.folder))
    draw(folder, flags.photos)
    said = {"seeds": flags.seeds, "pilot": flags.pilot, "cores": os.cpu_count()}
    for corpus in flags.only or CORPORA:
        command = [*shlex.split(flags.before), sys.executable, __file__, "--folder", str(folder),
                   "--pilot", str(flags.pilot), "--corpus", corpus, "--turn"]  # fmt: skip
        found: list[dict] = []
        for turn in range(flags.jobs):
            seeds = [str(seed) for seed in range(flags.seeds)[turn :: flags.jobs]]
            ran = subprocess.run([*command, *seeds], stdout=subprocess.PIPE, check=True)
            found += [json.loads(line) for line in ran.stdout.splitlines() if line[:1] == b"{"]
        said[corpus] = judged(
            [f for f in found if "said" in f], [f for f in found if "said" not in f]
        )
        print(corpus, json.dumps(said[corpus]), file=sys.stderr, flush=True)
    shutil.rmtree(folder)
    print(json.dumps(said))


def judged(estimates: list[dict], jobs: list[dict]) -> dict:
    """How the estimates stand against the jobs."""
    took = [job["seconds"] for job in jobs]
    images = {job["images"] for job in jobs}
    within = [e["said"][1] <= statistics.median(took) <= e["said"][2] for e in estimates]
    ratios = [e["said"][2] / e["said"][1] for e in estimates]
    right = [{e["images_said"]} == images for e in estimates]
    hits = [
        all(hit) and ratio <= MOST_RATIO for *hit, ratio in zip(within, right, ratios, strict=True)
    ]
    return {"hits": sum(hits), "images_right": sum(right), "within": sum(within),
            "widest": round(max(ratios), 2), "job_s": took, "said_s": [e["said"] for e in estimates],
            "each_ms": [e["each_ms"] for e in estimates], "pilots": [e["of"] for e in estimates],
            "estimate_s": [e["estimate_s"] for e in estimates]}  # fmt: skip


def take_turn(folder: Path, corpus: str, seeds: list[int], pilot: int) -> None:
    """The estimates by these seeds with the job in their middle; a line of each."""
    job = ["--input", str(folder / corpus), *CORPORA[corpus]]
    half = len(seeds) // 2
    for seed in seeds[:half]:
        print(json.dumps(estimated(job, seed, pilot)), flush=True)
    print(json.dumps(run(folder, job)), flush=True)
    for seed in seeds[half:]:
        print(json.dumps(estimated(job, seed, pilot)), flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=3, help="times that each job runs")
    parser.add_argument("--pilot", type=int, default=64)
    parser.add_argument("--only", choices=[*CORPORA], action="append", help="one corpus alone")
    parser.add_argument("--photos", help="a folder of photographs for the mixed corpus")
    parser.add_argument("--before", default="", help="a command put before each turn")
    parser.add_argument("--folder", help="where the corpora lie (default: a temporary folder)")
    parser.add_argument("--corpus", help=argparse.SUPPRESS)
    parser.add_argument("--turn", type=int, nargs="*", help=argparse.SUPPRESS)
    return parser.parse_args()


def draw(folder: Path, photos: str | None) -> None:
    """The corpora below `folder`."""
    from llava_batch.cli.terminal import DEMO_IMAGES, DEMO_SEED
    from llava_batch.demo.scenes import draw as drawn
    from llava_batch.demo.shards import shard_scenes, write_shards

    write_shards(folder / "demo", count=DEMO_IMAGES, seed=DEMO_SEED)
    mixed = folder / "mixed"
    write_shards(mixed / "shards", count=600, seed=11)
    write_shards(mixed / "more", count=200, seed=12)
    (mixed / "loose").mkdir()
    for number, scene in enumerate(shard_scenes(count=150, seed=5)):
        path = mixed / "loose" / f"{number:04}.jpg"
        drawn(scene, short_side=200).save(path)
        if number % 30 == 7:
            path.write_bytes(path.read_bytes()[:-200])
    (mixed / "loose" / "empty.jpg").touch()
    if photos:
        shutil.copytree(photos, mixed / "photos")


def estimated(job: list[str], seed: int, pilot: int) -> dict:
    command = ["-m", "llava_batch.cli", "estimate", "caption", *job, "--json", "--quiet"]
    own = ["--pilot", str(pilot), "--pilot-seed", str(seed)]
    started = time.monotonic()
    ran = subprocess.run([sys.executable, *command, *own], stdout=subprocess.PIPE, check=True)
    if not ran.stdout.startswith(b"{"):
        raise RuntimeError(f"not JSON but {ran.stdout[:2000]!r}")
    said = json.loads(ran.stdout)
    seconds = [round(said["seconds"][n], 1) for n in ("value", "low", "high")]
    each = [round(1000 * said["seconds_per_image"][n], 2) for n in ("value", "low", "high")]
    return {"said": seconds, "images_said": said["images"]["value"], "each_ms": each,
            "start_up_s": round(said["start_up_s"]["value"], 1), "of": said["pilot"]["images"],
            "estimate_s": round(time.monotonic() - started, 1)}  # fmt: skip


def run(folder: Path, job: list[str]) -> dict:
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    command = [str(JOBS / "caption.py"), *job, "--output", str(out), "--quiet"]
    started = time.monotonic()
    subprocess.run(
        [sys.executable, *command], check=True, env=os.environ | {"PYTHONUNBUFFERED": "1"}
    )
    seconds = round(time.monotonic() - started, 1)
    said = json.loads((out / "_run.json").read_text())
    return {"seconds": seconds, "images": said["run"]["images"], "wall_s": said["wall_s"],
            "startup_s": said["throughput"]["startup_s"]}  # fmt: skip


if __name__ == "__main__":
    main()
