"""Loading: the dtype that a card asks for, weights that stay in the file's pages, phases that are told."""

import logging
from pathlib import Path

import pytest
import torch

from llava_batch.demo import model_path
from llava_batch.engine import Engine
from llava_batch.engine.model import load
from llava_batch.engine.model.load_times import Startup, told


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        (None, torch.float32),
        ((7, 5), torch.float16),
        ((8, 0), torch.bfloat16),
        ((8, 6), torch.bfloat16),
        ((12, 0), torch.bfloat16),
    ],
)
def test_the_automatic_dtype_is_what_the_card_computes_in(
    monkeypatch, capability, expected
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    device = "cpu" if capability is None else "cuda"
    assert load.choose_dtype("auto", device) == expected
    assert load.choose_dtype("float32", device) == torch.float32


def mapped(path: Path) -> list[range]:
    """Addresses at which this process has the file mapped."""
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(str(path)):
            begin, end = (int(part, 16) for part in line.split()[0].split("-"))
            found.append(range(begin, end))
    return found


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="needs Linux")
def test_weights_in_the_files_dtype_stay_in_pages_that_all_workers_share() -> None:
    path = Path(model_path()).resolve() / "model.safetensors"
    shared = load.read_weights(path.parent, torch.bfloat16, "cpu", None)
    pages = mapped(path)
    assert all(any(w.data_ptr() in page for page in pages) for w in shared.parameters())
    own = load.read_weights(path.parent, torch.float32, "cpu", None)
    pages = mapped(path)
    assert not any(w.data_ptr() in page for page in pages for w in own.parameters())


def test_the_start_is_told_by_phase_in_one_line(caplog) -> None:
    with caplog.at_level(logging.INFO, logger="llava_batch.engine.engine"):
        engine = Engine.load(model_path(), device="cpu", slots=1, max_tokens=128)
    phases = ["find_files", "read_weights", "kernels", "cache"]
    assert list(engine.load_seconds)[:4] == phases
    assert min(engine.load_seconds.values()) >= 0
    (line,) = [r.getMessage() for r in caplog.records if r.name == "llava_batch.engine.engine"]
    assert line == f"started in {told(engine.load_seconds)}"
    assert [line.index(f"{phase} ") for phase in phases] == sorted(
        line.index(f"{phase} ") for phase in phases
    )


def test_phases_add_up_to_the_whole_start() -> None:
    startup = Startup()
    startup.end("one")
    startup.end("two")
    startup.end("one")
    assert list(startup.seconds) == ["one", "two"]
    assert told({"one": 1.25, "two": 2.0}) == "3.2 s: one 1.2, two 2.0"


def test_a_folder_that_is_not_there_is_named() -> None:
    with pytest.raises((ValueError, OSError), match="no/such/folder"):
        Engine.load("/no/such/folder", device="cpu")
