#!/usr/bin/env python3
"""Estimate jobs, run them, and see whether what they took lies within the bounds that were given.

    benchmarks/estimate.py                             ten seeds, two corpora, some 20 minutes
    benchmarks/estimate.py --seeds 3 --photos FOLDER   with photographs among the mixed corpus

Corpora: the demo's two shards (48 scenes), and a folder of tars, a Parquet file and loose files of scenes,
some of them broken, with the photographs of `--photos` among them. Of each seed the estimate and the job
follow on each other, in an order that alternates, each a process of its own; the job's time is its whole command's.
`--before 'CMD'` is put before each such pair: something that waits until the machine is free.

A seed is a hit where the job's images are what the estimate says, its seconds lie within the bounds, and
the upper bound is at most 1.5 times the lower. Ends with one JSON line.
"""

import argparse
import json
import os
import shlex
import shutil
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
    if flags.pair is not None:
        print(json.dumps(pair(Path(flags.folder), flags.corpus, flags.pair, flags.pilot)))
        return
    folder = Path(tempfile.mkdtemp(prefix="estimate-", dir=flags.folder))
    draw(folder, flags.photos)
    said = {"seeds": flags.seeds, "pilot": flags.pilot}
    for corpus in CORPORA:
        command = [*shlex.split(flags.before), sys.executable, __file__, "--folder", str(folder),
                   "--pilot", str(flags.pilot), "--corpus", corpus, "--pair"]  # fmt: skip
        pairs = []
        for seed in range(flags.seeds):
            ran = subprocess.run([*command, str(seed)], stdout=subprocess.PIPE, check=True)
            pairs.append(json.loads(ran.stdout.splitlines()[-1]))
            print(corpus, json.dumps(pairs[-1]), file=sys.stderr, flush=True)
        said[corpus] = {
            "hits": sum(p["hit"] for p in pairs),
            "images_right": sum(p["images"] == p["images_said"] for p in pairs),
            "seconds": [p["seconds"] for p in pairs],
            "said": [p["said"] for p in pairs],
            "widest": max(p["said"][2] / p["said"][1] for p in pairs),
        }
    shutil.rmtree(folder)
    print(json.dumps(said))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--pilot", type=int, default=64)
    parser.add_argument("--photos", help="a folder of photographs for the mixed corpus")
    parser.add_argument("--before", default="", help="a command put before each pair")
    parser.add_argument("--folder", help="where the corpora lie (default: a temporary folder)")
    parser.add_argument("--corpus", help=argparse.SUPPRESS)
    parser.add_argument("--pair", type=int, help=argparse.SUPPRESS)
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


def pair(folder: Path, corpus: str, seed: int, pilot: int) -> dict:
    """The estimate by this seed, and the job: what was said, and what was so."""
    job = ["--input", str(folder / corpus), *CORPORA[corpus]]
    first, second = (estimated, run) if seed % 2 == 0 else (run, estimated)
    found = first(folder, job, seed, pilot) | second(folder, job, seed, pilot)
    low, high = found["said"][1:]
    found["hit"] = (
        found["images"] == found["images_said"]
        and low <= found["seconds"] <= high
        and high <= MOST_RATIO * low
    )
    return found


def estimated(folder: Path, job: list[str], seed: int, pilot: int) -> dict:
    command = ["-m", "llava_batch.cli", "estimate", "caption", *job, "--json", "--quiet"]
    own = ["--pilot", str(pilot), "--pilot-seed", str(seed)]
    started = time.monotonic()
    ran = subprocess.run([sys.executable, *command, *own], stdout=subprocess.PIPE, check=True)
    said = json.loads(ran.stdout)
    seconds = [round(said["seconds"][n], 1) for n in ("value", "low", "high")]
    each = [round(1000 * said["seconds_per_image"][n], 2) for n in ("value", "low", "high")]
    return {"said": seconds, "images_said": said["images"]["value"], "each_ms": each,
            "start_up_s": round(said["start_up_s"]["value"], 1), "of": said["pilot"]["images"],
            "estimate_s": round(time.monotonic() - started, 1)}  # fmt: skip


def run(folder: Path, job: list[str], seed: int, pilot: int) -> dict:
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
