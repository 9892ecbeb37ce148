"""The host's memory that can still be had: what Linux counts, and no more than the container that the process runs in.

A container's limit is its control group's or that of any group above it (Linux: admin-guide/cgroup-v2, cgroup-v1/memory).
"""

import os
from collections.abc import Iterator
from pathlib import Path

PROC, GROUPS = Path("/proc"), Path("/sys/fs/cgroup")
_V1, _V2 = ("memory.limit_in_bytes", "memory.usage_in_bytes"), ("memory.max", "memory.current")


def free_host_bytes() -> int:
    """Caches that the kernel would drop included."""
    return min([_of_host(), *_of_groups()])


def _of_host() -> int:
    meminfo = PROC / "meminfo"
    if meminfo.is_file():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _of_groups() -> Iterator[int]:
    """What each group that has a limit leaves."""
    member = PROC / "self" / "cgroup"
    if not member.is_file():
        return
    for line in member.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, names = GROUPS, _V2
        elif "memory" in controllers.split(","):
            root, names = GROUPS / "memory", _V1
        else:
            continue
        # A container sees its own group as the root, whatever the host calls it.
        folder = root / path.lstrip("/")
        for group in (folder, *folder.parents):
            if not group.is_relative_to(root):
                break
            yield from _of_group(group, *names)


def _of_group(group: Path, limit: str, usage: str) -> Iterator[int]:
    try:
        most, used = (group / limit).read_text().strip(), int((group / usage).read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except OSError:  # the root has none, nor has a group that is not mounted here
        return
    if most == "max":
        return
    # Of all groups below, as the usage is; the second version has no other.
    cached = [
        stat.get(f"total_{name}", stat.get(name, "0")) for name in ("active_file", "inactive_file")
    ]
    yield max(0, int(most) - used + sum(map(int, cached)))
