"""A card on paper: what benchmarks/simulate.py says is the real scheduler's doing, and called simulated."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_it_tells_settings_apart_and_calls_itself_simulated() -> None:
    script = ROOT / "benchmarks" / "simulate.py"
    command = [sys.executable, str(script), "--card", "a100-40", "--images", "40"]
    out = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    said = json.loads(out.splitlines()[-1])
    assert said["simulated"] is True and "images/s, simulated" in out
    card = said["a100-40"]
    assert card["by_slots"]["8"] < card["by_slots"]["32"]
    assert card["by_answer"]["192"] < card["by_answer"]["64"] < card["by_answer"]["8"]
    ways = card["by_memory"]
    assert ways["slots of the largest need"]["rows"] < ways["pages of 256"]["rows"]


def test_the_scheduler_that_it_drives_is_the_engines() -> None:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import simulate
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    from llava_batch.engine.scheduler import Scheduler

    assert simulate.Scheduler is Scheduler
    run = simulate.Paper("h100-80").run(simulate.questions(6), slots=4, reuse=True)
    assert not run.scheduler.waiting and not run.scheduler.active
    run.scheduler.check()
    assert run.rows >= run.steps > 0
