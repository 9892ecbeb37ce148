"""A worker's own process: ended where it hangs, left alone where it goes on."""

import subprocess
import sys

HELD = "import time; from llava_batch.workers.process import watchdog\n"


def ran(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", HELD + code], capture_output=True, text=True)


def test_a_block_that_hangs_ends_its_process_with_every_threads_stack() -> None:
    found = ran("with watchdog(0.2):\n    time.sleep(600)")
    assert found.returncode != 0
    assert "Timeout" in found.stderr
    assert 'File "<string>", line 3' in found.stderr


def test_a_block_that_ends_in_time_leaves_no_timer_behind() -> None:
    found = ran("with watchdog(0.2):\n    pass\ntime.sleep(0.6); print('alive')")
    assert (found.returncode, found.stdout.strip()) == (0, "alive")


def test_a_block_that_says_that_it_goes_on_has_its_time_again() -> None:
    code = "with watchdog(0.5) as still_going:\n  for _ in range(4): time.sleep(0.2); still_going()"
    assert ran(code).returncode == 0


def test_a_block_that_raises_leaves_no_timer_behind() -> None:
    code = "try:\n    with watchdog(0.2): 1 / 0\nexcept ZeroDivisionError: time.sleep(0.6)"
    assert ran(code).returncode == 0
