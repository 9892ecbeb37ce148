"""Publishing killed at each of its steps: readers see whole publications, and the next one misses nothing."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.write.publish.tables import (
    KINDS,
    answer_unit,
    answers,
    bring,
    folder_answers,
    lake,
    target,
    versions,
)

__all__ = ["lake"]

ROOT = Path(__file__).resolve().parents[3]
NIGHTS = ("first", "increment", "retry")


def publish_until(out: Path, to: str, die_at: int) -> int | None:
    """Publish in a process of its own; how many steps it took, or None where it died at one."""
    ran = subprocess.run(
        [sys.executable, "-m", "tests.write.publish.killed", str(out), to, str(die_at)],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode in (0, -9), ran.stderr
    return int(ran.stdout) if ran.returncode == 0 else None


def before(out: Path, to: str, night: str) -> None:
    """What there is before the publication that is killed."""
    answer_unit(out, "a", "one", None)
    answer_unit(out, "b", "two")
    if night != "first":
        bring(out, to)
    if night == "increment":
        answer_unit(out, "c", "three", "four")
        answer_unit(out, "d")
    if night == "retry":
        answer_unit(out, "a", "one", "good now", source="2-2")
        answer_unit(out, "c", "three")
        (out / "b.parquet").unlink()
        (out / "_manifest" / "b.json").unlink()


def copy(here: Path, there: Path) -> None:
    shutil.rmtree(there, ignore_errors=True)
    shutil.copytree(here, there)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("night", NIGHTS)
@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_any_step_readers_see_whole_publications_and_the_next_one_ends_it(
    kind: str, night: str, tmp_path: Path, lake: Path
) -> None:
    out, to = tmp_path / "out", target(kind, lake)
    before(out, to, night)
    old, wanted = answers(to), folder_answers(out)
    copy(tmp_path / "out", tmp_path / "saved-out")
    copy(lake, tmp_path / "saved-lake")
    kills = 0
    for step in range(1, 100):
        for name, place in (("saved-out", out), ("saved-lake", lake)):
            copy(tmp_path / name, place)
        if publish_until(out, to, step) is not None:
            break
        kills += 1
        assert answers(to) in (old, wanted)
        bring(out, to)
        assert answers(to) == wanted
        commits = versions(to)
        assert bring(out, to).publication is None
        assert versions(to) == commits == (1 if night == "first" else 2)
    assert kills == step - 1 >= 5
    print(f"{kind} {night}: {kills} kills")


@pytest.mark.parametrize("kind", KINDS)
def test_killed_between_the_tables_commit_and_the_end_nothing_is_published_twice(
    kind: str, tmp_path: Path, lake: Path
) -> None:
    out, to = tmp_path / "out", target(kind, lake)
    before(out, to, "increment")
    copy(out, tmp_path / "saved-out")
    copy(lake, tmp_path / "saved-lake")
    last = publish_until(out, to, 10_000)
    assert last is not None
    copy(tmp_path / "saved-out", out)
    copy(tmp_path / "saved-lake", lake)
    assert publish_until(out, to, last) is None
    wanted = folder_answers(out)
    assert answers(to) == wanted and versions(to) == 2
    assert bring(out, to).publication is None
    assert answers(to) == wanted and versions(to) == 2
