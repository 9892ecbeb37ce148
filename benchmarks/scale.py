#!/usr/bin/env python3
"""What a hundred million images would cost beside the model: committing, starting, reading, the driver's memory.

benchmarks/scale.py                        every measure, one JSON line at the end
benchmarks/scale.py --only start --only commits    some of them, by name
benchmarks/scale.py --list                 their names and what each is of

No model: answers are made up, or an engine answers at once. A storage that is far away is `slow_storage`: a
local folder with a stated latency before each request. Each measure runs in a process of its own, so that
its memory is its own. A measure that fails is said in `failed`, and the exit status is 1.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
MODULES = ("scale_write", "scale_read", "scale_job")
"""Each has `MEASURES`: by name, a function without arguments that gives its figures by theirs."""

Measure = Callable[[], dict[str, Any]]


def main() -> None:
    flags = parse()
    sys.path.insert(0, str(HERE))
    if flags.measure:
        module, name = flags.measure.split(":")
        print(json.dumps(measures(module)[name]()), flush=True)
        return
    module_of = {name: module for module in MODULES for name in measures(module)}
    if flags.list:
        for name, module in module_of.items():
            said = (measures(module)[name].__doc__ or "").strip()
            print(f"{name:<12} {said.splitlines()[0] if said else ''}")
        return
    if unknown := set(flags.only) - module_of.keys():
        sys.exit(f"--only {min(unknown)}: no such measure; there are {', '.join(module_of)}")
    figures: dict[str, Any] = {}
    failed = {}
    for name in flags.only or module_of:
        found, problem = measured(f"{module_of[name]}:{name}")
        figures |= found
        if problem:
            failed[name] = problem
        print(f"{name}: {problem or json.dumps(found)}", file=sys.stderr, flush=True)
    print(json.dumps(figures | ({"failed": failed} if failed else {})))
    sys.exit(bool(failed))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", default=[], metavar="NAME")
    parser.add_argument("--list", action="store_true", help="the measures there are")
    parser.add_argument("--measure", metavar="MODULE:NAME", help="one, in this process")
    return parser.parse_args()


def measures(module: str) -> dict[str, Measure]:
    """The module's measures by name; none where it is not there yet."""
    if not (HERE / f"{module}.py").exists():
        return {}
    found: dict[str, Measure] = importlib.import_module(module).MEASURES
    return found


def measured(measure: str) -> tuple[dict[str, Any], str | None]:
    """A measure's figures, from a process of its own; or why there are none."""
    paths = [str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(
        [sys.executable, __file__, "--measure", measure],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        return {}, (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    figures: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures, None


def peak_mib() -> float:
    """The most memory that this process has held so far, in MiB (Linux: files mapped in counted)."""
    return _status_mib("VmHWM")


def held_mib() -> float:
    """The memory that this process holds now, in MiB."""
    return _status_mib("VmRSS")


def _status_mib(field: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    kib = next(line.split()[1] for line in lines if line.startswith(f"{field}:"))
    return int(kib) / 1024


if __name__ == "__main__":
    main()
