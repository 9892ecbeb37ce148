"""The cluster's cards: what they settle, and what is refused before a worker starts."""

import subprocess
import sys

import pytest

from llava_batch.checkpoint import Checkpoint
from llava_batch.driver.gpus import Card, least
from llava_batch.driver.refusals import refuse_what_does_not_fit, refuse_what_is_missing
from llava_batch.driver.settle import settle
from llava_batch.errors import UsageError
from llava_batch.job import Job

GIB = 2**30


def card(gib: float = 80, capability: tuple[int, int] = (9, 0)) -> Card:
    total = int(gib * GIB)
    return Card(name="a card", total_bytes=total, free_bytes=total, capability=capability)


@pytest.mark.parametrize(
    ("capability", "dtype"), [((7, 5), "float16"), ((8, 0), "bfloat16"), ((12, 0), "bfloat16")]
)
def test_the_automatic_dtype_of_a_job_is_the_cards(capability, dtype) -> None:
    found = settle(Job()).on(on_gpu=True, card=card(capability=capability)).job
    assert found.dtype == dtype


def test_of_several_cards_the_least_counts() -> None:
    cards = [card(80, (9, 0)), card(24, (8, 6)), card(48, (7, 5))]
    found = least(cards)
    assert (found.total_bytes, found.capability) == (24 * GIB, (7, 5))


def test_fp8_is_for_cards_that_have_it() -> None:
    job = Job(quantization="fp8", dtype="bfloat16")
    pytest.importorskip("torchao")
    refuse_what_is_missing(job, on_gpu=True, card=card(capability=(8, 9)))
    refuse_what_is_missing(job, on_gpu=True, card=None)  # not known: the worker will say
    with pytest.raises(UsageError, match=r"--quantization fp8: needs .* this card has 8\.0"):
        refuse_what_is_missing(job, on_gpu=True, card=card(capability=(8, 0)))


def test_a_model_too_large_for_the_card_is_refused_with_what_would_fit() -> None:
    job = Job(dtype="float32")
    checkpoint = Checkpoint.find(job)
    refuse_what_does_not_fit(job, checkpoint, None, 256)
    refuse_what_does_not_fit(job, checkpoint, card(8), 256)
    with pytest.raises(
        UsageError, match=r"--model demo: .* do not fit one card: a card has .*; what fits: .*8 GB"
    ):
        refuse_what_does_not_fit(job, checkpoint, card(0.25), 256)


def test_a_gpu_that_torch_does_not_see_is_named_before_anything_starts(tmp_path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("torch sees a GPU here")
    (tmp_path / "a.png").touch()
    # A Ray of its own, which believes in a GPU; the session's has none.
    code = (
        "import ray\n"
        "from llava_batch import Job, run\n"
        "from llava_batch.errors import UsageError\n"
        "ray.init(num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False)\n"
        f"job = Job(input=({str(tmp_path)!r},), output={str(tmp_path / 'out')!r})\n"
        "try:\n"
        "    run(job)\n"
        "except UsageError as error:\n"
        "    print(error)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert "has a GPU, and torch there sees none; install a CUDA build" in ran.stdout, ran.stderr
    assert not (tmp_path / "out").exists()
