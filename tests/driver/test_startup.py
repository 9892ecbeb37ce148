"""Start-up is shown apart: no speed, no stage's idleness and no time left is reckoned with it."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llava_batch.cli.terminal import result_lines
from llava_batch.driver import progress
from llava_batch.driver.progress import Progress
from llava_batch.driver.remaining import Interval
from llava_batch.driver.summary import Summary
from llava_batch.driver.throughput import throughput
from llava_batch.job import Job
from llava_batch.read.find import find_units
from llava_batch.report import write_report
from llava_batch.workers.shared_state import SharedState
from llava_batch.write.tally import Tally
from tests.answer_folder import good, write_folder
from tests.outputs import unit
from tests.shards import reading

STAGE = {"workers": 1.0, "rows": 100.0, "peak_memory_bytes": 1.0}


def stages() -> dict[str, dict[str, float]]:
    """Of a run that began at 1000 s and had its model at 1040 s."""
    return {
        "prepare": STAGE | {"busy_s": 3.0},
        "generate": STAGE | {"busy_s": 9.5, "first_ready_at": 1040.0},
    }


def test_a_stage_is_idle_only_where_it_could_have_worked() -> None:
    # `Bottleneck generate 12 %`, where four fifths were start-up.
    told = throughput(Tally(images=100), None, 1000.0, 50.0, [(0.0, 0), (42.0, 30)], stages())
    assert told["startup_s"] == 40.0
    assert told["stages"]["generate"]["busy_share"] == pytest.approx(0.95)
    assert told["bottleneck"] == "generate"
    assert "first_ready_at" not in told["stages"]["generate"]
    assert told["images_per_s"] == 2.0, "by all of the run's time, as the schema has it"


def test_a_worker_whose_clock_is_wrong_began_no_later_than_its_first_answers() -> None:
    said = stages()
    said["generate"]["first_ready_at"] = 5000.0
    assert (
        throughput(Tally(), None, 1000.0, 50.0, [(0.0, 0), (42.0, 30)], said)["startup_s"] == 42.0
    )
    assert throughput(Tally(), None, 1000.0, 50.0, [], {})["startup_s"] is None


def test_the_first_worker_that_is_ready_ends_the_start_up() -> None:
    state = SharedState()
    for worker, at in (("a", 7.0), ("b", 5.0), ("c", 9.0)):
        state.report("generate", worker, {"rows": 1, "busy_s": 2.0, "first_ready_at": at})
    assert state.stages()["generate"] == {
        "workers": 3, "rows": 3, "busy_s": 6.0, "first_ready_at": 5.0
    }  # fmt: skip


def test_the_last_line_says_start_up_and_speed_apart() -> None:
    totals = {"units": 1, "units_limited": 0, "rows": 100, "ok": 100, "errors": {}}
    ended = Summary(
        status="complete", output="out", started_at="", finished_at="", wall_s=50.0, model="demo",
        fingerprint="", settings={}, run={"images": 100}, totals=totals, outlook={"notes": []},
        throughput={"startup_s": 40.0},
    )  # fmt: skip
    assert "100 images in 50.0 s: 40.0 s of start-up, then 10.0 images/s." in result_lines(ended)

    around = result_lines(ended, around_s=26.1)
    assert any(
        line.endswith("Besides, 26.1 s to plan it, and to start and end Ray.") for line in around
    )


def test_the_report_says_start_up_and_speed_apart(tmp_path: Path) -> None:
    run = {
        "wall_s": 50.0,
        "throughput": {"startup_s": 40.0, "images_per_s": 2.0, "answer_tokens_per_s": 8.0},
    }
    out = write_folder(tmp_path / "out", [good("a", "A cat.")], run=run)
    page = Path(write_report([out])).read_text()
    assert "Start-up took 40 s of 50 s" in page
    assert "<dt>Images/s</dt><dd>10</dd>" in page and "<dt>Tokens/s</dt><dd>40</dd>" in page


def watched(monkeypatch: pytest.MonkeyPatch, *units: Any, now: float, **tally: Any) -> Progress:
    """The progress of a run over `units` that is `now` seconds old, the first half of it start-up."""
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    plan: Any = SimpleNamespace(todo=list(units), job=Job(), num_units=len(units),
                                work=SimpleNamespace(num_done=0))  # fmt: skip
    made = Progress(plan, SimpleNamespace(tally=Tally(**tally), taken_up=Tally()), None)  # type: ignore[arg-type]
    clock[0] = now
    return made


def saw(made: Progress, *points: tuple[float, int]) -> None:
    """The run's images, by the moments at which they had come."""
    for at, images in points:
        made.history.append((at, images))
        made._pace.note(at, images)


def test_no_time_left_is_said_of_the_first_burst_of_answers(monkeypatch) -> None:
    # It said 5:43, and took 6 s.
    loose = unit("p", kind="files", members=tuple(map(str, range(64))))
    made = watched(monkeypatch, loose, unit("a"), now=22.0, images=32)
    made._expected.looked_into([(1, 16)])
    saw(made, (20.0, 0), (21.0, 32), (22.0, 32))
    assert "left" not in made.line().plain
    saw(made, (24.0, 48), (27.0, 64))
    made._committer.tally.images = 64
    assert "64 of 80 images" in made.line().plain
    assert "0:00:03 left" in made.line().plain, "32 images in six seconds, 16 to come"


def test_shards_that_are_whole_tell_of_those_that_are_not_by_their_bytes(monkeypatch) -> None:
    shards = [unit(name, source=f"{size}-1") for name, size in (("a", 100), ("b", 900))]
    made = watched(monkeypatch, *shards, now=30.0, images=20, units=1, images_of_shards=10,
                   bytes_of_shards=100)  # fmt: skip
    saw(made, (20.0, 4), (24.0, 12), (28.0, 20))
    told = made.left()
    assert told.images is not None and told.images.value == 80
    assert told.seconds is not None and told.seconds.value == pytest.approx(40)
    assert "20 of about 100 images" in made.line().plain and "0:00:40 left" in made.line().plain
    made._committer.tally.images = 120
    assert made.left().seconds is None and "left" not in made.line().plain
    assert "120 images, 1 of 2 units" in made.line().plain, "more came than were expected"
    made._committer.tally.units = 2
    assert made.left().as_json()["images"] == {"value": 0, "low": 0, "high": 0}


def test_headers_of_local_shards_tell_how_many_images_there_are(
    monkeypatch, demo_shards: list[Path]
) -> None:
    units = find_units(map(str, demo_shards))
    made = watched(monkeypatch, *units, now=1.0)
    plan: Any = made._plan
    plan.reading = reading()
    assert made.left().images is None
    made._expected.looked_into(progress._looked_into(plan))
    assert made.left().images == Interval.exactly(48)


def test_of_loose_files_the_number_is_known(monkeypatch) -> None:
    loose = unit("p", kind="files", members=tuple(map(str, range(200))))
    made = watched(monkeypatch, loose, now=30.0, images=150)
    saw(made, (20.0, 50), (25.0, 100), (30.0, 150))
    told = made.left().seconds
    assert told is not None and told.value == pytest.approx(5.0)
    assert "150 of 200 images" in made.line().plain


def test_the_speed_in_the_line_is_that_since_start_up(monkeypatch) -> None:
    made = watched(monkeypatch, unit("a"), now=50.0, images=100)
    made._ready_s = 40.0
    saw(made, (41.0, 10), (45.0, 50), (50.0, 100))
    assert "10.0 images/s now, 10.0 since start-up" in made.line().plain


def test_a_log_gets_its_second_line_soon_and_then_one_each_half_minute() -> None:
    # What followed the line of the start came after 31 s.
    said = [1.0]
    while said[-1] < 200:
        said.append(progress.next_line_s(said[-1]))
    assert said[1] <= 6 and said[2] <= 12
    assert said[-1] - said[-2] == 30


def test_what_an_earlier_run_had_answered_of_open_units_is_no_speed_of_this_one(
    monkeypatch,
) -> None:
    told = throughput(
        Tally(images=950, rows=950), Tally(images=900, rows=900), 1000.0, 50.0, [], stages()
    )
    assert told["images_per_s"] == told["answers_per_s"] == 1.0
    loose = unit("p", kind="files", members=tuple(map(str, range(1000))))
    made = watched(monkeypatch, loose, now=30.0, images=950)
    made._ready_s = 20.0
    saw(made, (21.0, 5), (25.0, 25), (30.0, 50))
    assert "950 of 1000 images" in made.line().plain
    assert "5.0 images/s now, 5.0 since start-up, 0:00:10 left" in made.line().plain
