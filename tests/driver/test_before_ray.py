"""What is said and refused before Ray is loaded."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from llava_batch.driver import before_ray, cluster
from llava_batch.driver.before_ray import reach, refuse_beforehand
from llava_batch.driver.settle import settle
from llava_batch.errors import UsageError
from llava_batch.job import Job
from tests.shards import picture


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def test_a_ray_that_does_not_answer_is_named_at_once_and_given_up_in_bounded_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], listening: socket.socket
) -> None:
    # Ray tried for over 60 s, and nothing was said meanwhile.
    port = listening.getsockname()[1]
    listening.close()
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    monkeypatch.setattr(before_ray, "REACH_S", 0.3)
    with pytest.raises(UsageError, match=rf"RAY_ADDRESS 127.0.0.1:{port}: no Ray answers there"):
        reach(quiet=False)
    assert capsys.readouterr().err == f"going to the Ray at 127.0.0.1:{port} (RAY_ADDRESS) ...\n"


def test_a_ray_that_answers_is_gone_to(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], listening: socket.socket
) -> None:
    for scheme in ("", "ray://"):
        monkeypatch.setenv("RAY_ADDRESS", f"{scheme}127.0.0.1:{listening.getsockname()[1]}")
        reach(quiet=True)
    assert capsys.readouterr().err == ""


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without a card, where no Ray runs."""
    monkeypatch.setattr(before_ray, "_CARDS", ())
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def test_what_this_machine_cannot_do_is_refused_beforehand(here: None) -> None:
    # After Ray had been started for it.
    with pytest.raises(UsageError, match=r"--workers 64: this machine has .* give at most 3"):
        refuse_beforehand(settle(Job(workers=64)), most_workers=3)
    with pytest.raises(UsageError, match=r"--attention flash: .*give auto"):
        refuse_beforehand(settle(Job(attention="flash")), most_workers=3)
    refuse_beforehand(settle(Job(workers=3)), most_workers=3)


def test_where_another_ray_or_a_card_may_be_meant_nothing_is_refused(
    here: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    many = settle(Job(workers=64, attention="flash"))
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:6379")
    refuse_beforehand(many, most_workers=3)
    (tmp_path / "ray" / "ray_current_cluster").unlink()
    monkeypatch.setattr(before_ray, "_CARDS", (str(tmp_path),))
    refuse_beforehand(many, most_workers=3)
    monkeypatch.setattr(before_ray, "_CARDS", ())
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    refuse_beforehand(many, most_workers=3)


def test_a_run_refuses_them_without_loading_ray(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(picture(0))
    code = (
        "import sys\nfrom llava_batch.driver import before_ray\nbefore_ray._CARDS = ()\n"
        "from llava_batch.cli.jobs import app, exit_status\n"
        "print(exit_status(app, sys.argv[1:], 'llava-batch'), 'ray' in sys.modules)"
    )
    flags = ["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--workers", "999"]
    ran = subprocess.run(
        [sys.executable, "-c", code, "caption", *flags], capture_output=True, text=True, check=True,
        env={"PATH": "", "RAY_TMPDIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert ran.stdout.split() == ["2", "False"], ran.stderr
    assert "--workers 999: this machine has" in ran.stderr


@pytest.mark.parametrize("found", [True, False])
def test_a_ray_that_was_started_on_this_machine_is_one_that_nodes_can_join(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, found: bool
) -> None:
    # `ray.init` joins it unasked; it was taken for the run's own.
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    if found:
        (tmp_path / "ray").mkdir()
        (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:6379")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **how: None)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with cluster.connected() as alone:
        assert alone is not found
