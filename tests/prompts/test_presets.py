"""The presets' texts, character for character, written out here without the package's constants."""

import pytest

from llava_batch.errors import UsageError
from llava_batch.prompts.presets import PRESETS, preset

SYSTEM = "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers to the user's questions."

GOLDEN = {
    "vqav2": ("\nAnswer the question using a single word or phrase.", 128),
    "gqa": ("\nAnswer the question using a single word or phrase.", 128),
    "pope": ("\nAnswer the question using a single word or phrase.", 128),
    "mme": ("\nAnswer the question using a single word or phrase.", 128),
    "textvqa": ("\nAnswer the question using a single word or phrase.", 128),
    "vizwiz": (
        "\nWhen the provided information is insufficient, respond with 'Unanswerable'.\nAnswer the question using a single word or phrase.",
        128,
    ),
    "scienceqa": ("\nAnswer with the option's letter from the given choices directly.", 1024),
    "mmbench": ("\nAnswer with the option's letter from the given choices directly.", 1024),
    "mmbench_cn": ("\n请直接回答选项字母。", 1024),
    "seed": ("\nAnswer with the option's letter from the given choices directly.", 128),
    "llava_bench": ("", 1024),
    "mm_vet": ("", 1024),
}


def test_there_is_a_preset_for_each_benchmark_of_the_paper() -> None:
    assert list(PRESETS) == list(GOLDEN)


@pytest.mark.parametrize("name", GOLDEN)
def test_the_text_and_settings_are_the_original_evaluation_s(name: str) -> None:
    suffix, max_new_tokens = GOLDEN[name]
    found = preset(name)
    assert found.name == name
    assert found.system == SYSTEM
    assert found.suffix == suffix
    assert found.max_new_tokens == max_new_tokens
    assert found.image_aspect == "pad"


def test_an_unknown_preset_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(UsageError, match=r"--preset vqa2: .*vqav2, gqa, pope"):
        preset("vqa2")
