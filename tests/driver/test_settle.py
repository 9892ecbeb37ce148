"""What a preset means for a model that its benchmark's original evaluation did not ask."""

from pathlib import Path

from llava_batch.checkpoint import Checkpoint
from llava_batch.driver.settle import settle
from llava_batch.job import Job
from tests.published import publish


def test_a_preset_of_another_family_gives_only_what_is_the_benchmarks(tmp_path: Path) -> None:
    model = publish("next vicuna", tmp_path)
    settled = settle(Job(model=str(model), preset="mmbench"))
    assert settled.job.suffix.startswith("\nAnswer with the option's letter")
    assert settled.job.max_new_tokens == 1024
    assert (settled.job.system, settled.job.image_aspect) == (None, "auto")
    (note,) = settled.notes
    assert "--preset mmbench is the original evaluation of llava (LLaVA-1.5)" in note
    assert "of a llava_next model only" in note
    assert Checkpoint.find(settled.job).tiling is not None, "no square is asked of it"


def test_a_preset_of_its_own_family_gives_all_and_says_nothing() -> None:
    settled = settle(Job(preset="mmbench"))
    assert settled.job.image_aspect == "pad" and settled.job.system
    assert settled.notes == ()
