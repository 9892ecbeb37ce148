"""Free memory on a host and in a container: the least that any limit leaves."""

from pathlib import Path

import pytest

from llava_batch.engine.model import host_memory

GIB = 2**30


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host with 64 GiB free, whose groups are yet to be written."""
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 1 kB\nMemAvailable: 67108864 kB\n")
    monkeypatch.setattr(host_memory, "PROC", tmp_path / "proc")
    monkeypatch.setattr(host_memory, "GROUPS", tmp_path / "cgroup")
    return tmp_path


def member_of(host: Path, lines: str) -> None:
    (host / "proc" / "self" / "cgroup").write_text(lines)


def group(host: Path, path: str, **files: object) -> None:
    """A group with these files; `limit_in_bytes` for `memory.limit_in_bytes`."""
    folder = host / "cgroup" / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / f"memory.{name}").write_text(f"{text}\n")


STAT = f"anon 5\nactive_file {GIB}\ninactive_file {GIB}"


def test_a_host_without_groups_has_what_linux_counts(host):
    assert host_memory.free_host_bytes() == 64 * GIB


@pytest.mark.parametrize(
    ("limit", "free"), [(8 * GIB, 4), ("max", 64), (5 * GIB, 1), (3 * GIB, 0), (900 * GIB, 64)]
)
def test_a_container_has_what_its_limit_leaves_and_the_caches_within(host, limit, free):
    member_of(host, "0::/\n")
    group(host, "", max=limit, current=6 * GIB, stat=STAT)
    assert host_memory.free_host_bytes() == free * GIB


def test_the_narrowest_of_the_groups_above_counts(host):
    member_of(host, "0::/pods/one\n")
    group(host, "pods", max=16 * GIB, current=12 * GIB, stat="active_file 0\ninactive_file 0")
    group(host, "pods/one", max=10 * GIB, current=GIB, stat="active_file 0\ninactive_file 0")
    group(host, "", stat=STAT)  # the root has no limit
    assert host_memory.free_host_bytes() == 4 * GIB


@pytest.mark.parametrize("mounted", ["memory/docker/12ab", "memory"])
def test_groups_of_the_first_version_count_as_well(host, mounted):
    # Within a container its own group is what is mounted, whatever the host calls it.
    member_of(host, "9:cpu,cpuacct:/docker/12ab\n4:memory:/docker/12ab\n0::/\n")
    stat = f"active_file 1\ninactive_file 1\ntotal_active_file {GIB}\ntotal_inactive_file 0"
    group(host, mounted, limit_in_bytes=4 * GIB, usage_in_bytes=3 * GIB, stat=stat)
    assert host_memory.free_host_bytes() == 2 * GIB


def test_this_host_has_some():
    assert 2**20 < host_memory.free_host_bytes() < 2**50
