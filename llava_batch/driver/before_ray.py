"""What is said and refused before Ray is loaded: which Ray the run goes to, and whether one answers there;
what this machine cannot do, where the run will start one here.

A guess is never a refusal: where another Ray may be meant, or a card may be there, nothing is said.
"""

import glob
import os
import re
import socket
import sys
import tempfile
import time

from llava_batch.driver.refusals import refuse_what_is_missing
from llava_batch.driver.settle import Settled
from llava_batch.errors import UsageError, first_line

REACH_S = 20.0
"""So long is a Ray that was named waited for: its head may be starting. Ray itself is silent for over 60 s."""
_TRY_S = 5.0
_CARDS = ("/dev/nvidia[0-9]*", "/dev/kfd", "/dev/dxg", "/dev/dri/renderD*")
_OF_CARDS = ("flash", "varlen", "sdpa")


def reach(*, quiet: bool) -> None:
    """Say which Ray `RAY_ADDRESS` names, and wait until something listens there.

    Raises:
        UsageError: nothing does for REACH_S.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    place = re.fullmatch(r"(?:ray://)?\[?([^/]+?)\]?:(\d+)", address)
    if place is None:  # auto, local: Ray knows at once
        return
    if not quiet:
        print(f"going to the Ray at {address} (RAY_ADDRESS) ...", file=sys.stderr, flush=True)
    until = time.monotonic() + REACH_S
    while True:
        try:
            socket.create_connection((place[1], int(place[2])), timeout=_TRY_S).close()
            return
        except (OSError, OverflowError) as error:
            if time.monotonic() > until:
                raise no_ray_there(error) from None
        time.sleep(min(1.0, REACH_S / 10))


def no_ray_there(error: BaseException) -> UsageError:
    """The refusal where no Ray answers at `RAY_ADDRESS`."""
    return UsageError(
        f"RAY_ADDRESS {os.environ.get('RAY_ADDRESS', 'auto')}: no Ray answers there "
        f"({first_line(error)}); start one, or unset it for a Ray of the run's own"
    )


def refuse_beforehand(settled: Settled, *, most_workers: int) -> None:
    """Refuse what a Ray started on this machine would refuse, without waiting for it. `most_workers` is
    what its CPUs have room for.

    Raises:
        UsageError: more workers than that, or an attention that only cards have.
    """
    if not starts_here() or any(glob.glob(pattern) for pattern in _CARDS):
        return
    job = settled.job
    if job.workers and job.workers > most_workers:
        raise UsageError(f"--workers {job.workers}: this machine has {os.cpu_count()} CPUs and no GPU; "
                         f"give at most {max(most_workers, 0)}")  # fmt: skip
    if job.attention in _OF_CARDS:
        refuse_what_is_missing(settled.on(on_gpu=False, card=None).job, on_gpu=False, card=None)


def starts_here() -> bool:
    """Whether no Ray is named, found or connected to already, so that one will be started here."""
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        return False
    if os.environ.get("RAY_ADDRESS") or "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        return False
    # What `ray start` writes down, and `ray.init` looks for.
    folder = os.environ.get("RAY_TMPDIR") or (
        "/tmp" if os.name == "posix" else tempfile.gettempdir()
    )
    return not os.path.exists(os.path.join(folder, "ray", "ray_current_cluster"))
