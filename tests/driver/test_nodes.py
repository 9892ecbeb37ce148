"""What is said of nodes that come and go, and where local paths are refused on several of them."""

from typing import Any

import pytest
import ray

from llava_batch.checkpoint import Checkpoint
from llava_batch.driver.local_paths import for_workers, refuse_local_paths
from llava_batch.driver.nodes import NodeWatch
from llava_batch.errors import UsageError
from llava_batch.job import Job


def seen(**alive: bool) -> list[dict]:
    return [
        {
            "NodeID": name * 8,
            "NodeManagerAddress": f"10.0.0.{n}",
            "Alive": there,
            "Resources": {"CPU": 4.0} if there and name != "head" else {},
        }
        for n, (name, there) in enumerate(alive.items())
    ]


def test_each_change_is_said_once_and_what_was_dead_before_is_not_lost(capsys) -> None:
    watch = NodeWatch(lambda: seen(a=True, b=True, old=False))
    for _ in range(2):
        watch.note(seen(a=True, b=False, old=False, c=True))
    watch.note(seen(a=True, b=False, old=False, c=False))
    assert [change.address for change in watch.lost] == ["10.0.0.1", "10.0.0.3"]
    assert [change.address for change in watch.joined] == ["10.0.0.3"]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("node 10.0.0.1 (bbbbbbbb) was lost at ")
    assert lines[0].endswith("; its work goes elsewhere")


def test_where_no_node_is_left_the_run_says_once_that_it_waits(capsys) -> None:
    # It said that their work went elsewhere, and then nothing.
    watch = NodeWatch(lambda: seen(head=True, a=True, b=True), wait_s=1800.0)
    for _ in range(2):
        watch.note(seen(head=True, a=False, b=False))
    lost, other, waits = capsys.readouterr().err.splitlines()
    assert lost.endswith("; its work waits") and other.endswith("; its work waits")
    assert waits == "no node with a CPU is left: the run waits for one, 30 minutes at the most"
    watch.note(seen(head=True, a=False, b=False, c=True))
    assert capsys.readouterr().err.endswith("; it gets work\n")


def test_nodes_without_cards_are_none_to_answer_on(capsys) -> None:
    watch = NodeWatch(lambda: seen(a=True, b=True), needs="GPU", wait_s=90.0)
    watch.note(seen(a=True, b=False))
    assert (
        "no node with a GPU is left: the run waits for one, 1.5 minutes" in capsys.readouterr().err
    )


def test_a_node_that_came_and_went_between_two_looks_is_no_loss(capsys) -> None:
    watch = NodeWatch(lambda: seen(a=True))
    watch.note(seen(a=True, b=False))
    assert (watch.lost, watch.joined, capsys.readouterr().err) == ([], [], "")


@pytest.mark.parametrize("flag", ["input", "output", "model", "image_root"])
def test_a_local_path_is_refused_on_several_nodes_unless_they_share_it(
    tmp_path, monkeypatch, flag: str
) -> None:
    # A local model was looked for on every node, and its absence told by whichever worker came first.
    monkeypatch.setattr(ray, "nodes", lambda: seen(a=True, b=True))
    remote: dict[str, Any] = {
        "input": ("memory://b/in",),
        "output": "memory://b/out",
        "image_root": "memory://b/root",
    }
    local = {flag: (str(tmp_path),) if flag == "input" else str(tmp_path)}
    job = Job(**{**remote, **local})
    with pytest.raises(
        UsageError, match=f"{flag.replace('_', '-')} .*: a local path, and the cluster has 2"
    ):
        refuse_local_paths(job)
    refuse_local_paths(job.but(shared_filesystem=True))
    monkeypatch.setattr(ray, "nodes", lambda: seen(a=True, b=False))
    refuse_local_paths(job)


def test_workers_need_no_template_file_on_their_own_nodes(tmp_path) -> None:
    # Every other node said that there is no such file, once for each worker.
    file = tmp_path / "template.jinja"
    file.write_text("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}")
    job = Job(template=str(file))
    checkpoint = Checkpoint.find(job)
    rendered = checkpoint.renderer(job.template)(["<image>\nWhat?"], None)
    shipped = for_workers(job)
    file.unlink()
    assert checkpoint.renderer(shipped.template)(["<image>\nWhat?"], None) == rendered
    assert for_workers(Job()).template == "auto"
