"""The Job: what it refuses, what changes an answer, and what stays the same everywhere."""

import json
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_batch.checkpoint import Checkpoint
from llava_batch.driver.same_run import answer_settings
from llava_batch.driver.settle import settle
from llava_batch.errors import UsageError
from llava_batch.job import Job, fingerprint, flag_name, job_fields
from llava_batch.prompts.presets import preset
from llava_batch.prompts.recipe import load_recipe

CHANGES_NO_ANSWER = {
    "input", "output", "publish", "partition", "join_anywhere", "format", "limit", "snapshot", "attention", "slots", "workers", "read_workers", "prepare_workers",
    "max_tries", "allow_http", "stall_timeout_s", "storage_patience", "retry_errors", "overwrite", "on_change", "max_error_rate",
    "shared_filesystem", "quiet", "dry_run",
}  # fmt: skip
"""Written down a second time: a flag that is left out of the fingerprint must be meant."""


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"format": "csv"}, "--format csv: give one of parquet, arrow"),
        ({"dtype": "fp8"}, "--dtype fp8: give one of auto, float32, bfloat16, float16"),
        ({"quantization": "int2"}, "--quantization int2: give one of nf4, fp4, int8, int8wo, fp8"),
        ({"attention": "eager"}, "--attention eager: give one of auto, native, torch, flash, varlen, sdpa"),
        ({"image_aspect": "anyres"}, "--image-aspect anyres: give one of auto, pad, crop"),
        ({"limit": 0}, "--limit 0: give at least 1"),
        ({"max_new_tokens": 0}, "--max-new-tokens 0: give at least 1"),
        ({"min_new_tokens": -1}, "--min-new-tokens -1: give at least 0"),
        ({"temperature": -0.1}, "--temperature -0.1: give at least 0.0"),
        ({"top_k": -1}, "--top-k -1: give at least 0"),
        ({"num_samples": 0}, "--num-samples 0: give at least 1"),
        ({"slots": 0}, "--slots 0: give at least 1"),
        ({"workers": 0}, "--workers 0: give at least 1"),
        ({"read_workers": 0}, "--read-workers 0: give at least 1"),
        ({"prepare_workers": 0}, "--prepare-workers 0: give at least 1"),
        ({"max_pixels": 0}, "--max-pixels 0: give at least 1"),
        ({"max_image_bytes": 0}, "--max-image-bytes 0: give at least 1"),
        ({"max_tries": 0}, "--max-tries 0: give at least 1"),
        ({"stall_timeout_s": 0}, "--stall-timeout-s 0: give at least 1"),
        ({"storage_patience": -1}, "--storage-patience -1: give at least 0"),
        ({"top_p": 0}, "--top-p 0: give a share over 0 and up to 1"),
        ({"top_p": 1.1}, "--top-p 1.1: give a share over 0 and up to 1"),
        ({"max_error_rate": 1.5}, "--max-error-rate 1.5: give a share from 0 to 1"),
        ({"repetition_penalty": 0}, "--repetition-penalty 0: give a number over 0"),
        ({"min_new_tokens": 9, "max_new_tokens": 8}, "--min-new-tokens 9: give at most"),
        ({"num_samples": 2}, "--num-samples 2: samples need --temperature over 0"),
        ({"dialogue": True, "num_samples": 2, "temperature": 1}, "--num-samples 2: a --dialogue"),
        ({"choices": ("a", "b"), "temperature": 1}, "--choices a,b: choices are scored"),
        ({"choices": ("a", "b"), "dialogue": True}, "--choices a,b: choices are scored"),
        ({"choices": ("yes", "")}, "--choices yes,: a choice is empty"),
        ({"question": ("a",), "question_column": "q"}, "--question and --question-column were both"),
        ({"questions": "f", "recipe": "detail"}, "--questions and --recipe were both"),
        ({"prompt": "Who?", "question": ("a",)}, "--question and --prompt were both"),
        ({"prompt": "Who?", "question_column": "q"}, "--question-column and --prompt were both"),
        ({"prompt": "Who?", "questions": "f"}, "--questions and --prompt were both"),
        ({"prompt": "Who?", "recipe": "detail"}, "--recipe and --prompt were both"),
        ({"recipe": "detail", "dialogue": True}, "--recipe and --dialogue were both"),
        ({"recipe": "detail", "suffix": "."}, "--recipe and --suffix were both"),
        ({"recipe": "detail", "preset": "gqa"}, "--recipe and --preset were both"),
        ({"choices": ("yes",), "question": ("a",)}, "--choices yes: of one there is nothing to choose"),
        ({"choices": ("a", "b", "a"), "question": ("a",)}, "--choices a,b,a: a choice is there twice"),
        ({"choices": ("a", "b")}, "--choices a,b: nothing is asked that they answer"),
        ({"dialogue": True}, "--dialogue: there is no second question"),
        ({"dialogue": True, "prompt": "Who?"}, "--dialogue: there is no second question"),
        ({"dialogue": True, "question": ("a",)}, "--dialogue: there is no second question"),
        ({"question": ("",)}, "--question '': it is empty"),
        ({"prompt": ""}, "--prompt '': it is blank"),
        ({"prompt": " \n"}, "--prompt ' \\n': it is blank"),
        ({"question": ("a", " ")}, "--question ' ': a question is blank"),
        ({"question_column": ""}, "--question-column '': it is empty"),
        ({"questions": ""}, "--questions '': it is empty"),
        ({"input": ("a", "")}, "--input '': it is empty"),
        ({"stop": ("",)}, "--stop '': it is empty"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_used_is_refused_by_flag_and_value(
    settings: dict, said: str
) -> None:
    with pytest.raises(UsageError) as refused:
        Job(**settings)
    assert str(refused.value).startswith(said)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"top_p": 1, "max_error_rate": 0, "temperature": 0, "top_k": 0},
        {"num_samples": 2, "temperature": 0.5},
        {"min_new_tokens": 8, "max_new_tokens": 8},
        {"choices": ("yes", "no"), "question": ("Is it?",)},
        {"choices": ("yes", "no"), "prompt": "Is it a cat? Answer yes or no."},
        {"question": ("Who?", "Why?"), "dialogue": True, "stop": (" ", "\n")},
        {"question_column": "q", "dialogue": True},
        {"limit": 1, "slots": 1, "workers": 1, "prepare_workers": 1},
    ],
)
def test_values_at_their_bounds_are_taken(settings: dict) -> None:
    assert all(getattr(Job(**settings), name) == value for name, value in settings.items())


def test_numbers_that_are_not_numbers_are_refused() -> None:
    for name in (
        "temperature",
        "top_p",
        "repetition_penalty",
        "max_error_rate",
        "storage_patience",
    ):
        for value in (float("nan"), float("inf")):
            setting: dict[str, Any] = {name: value}
            with pytest.raises(UsageError, match=f"{flag_name(name)} {value}: give a"):
                Job(**setting)


def test_a_job_cannot_be_changed_and_takes_no_field_by_place() -> None:
    with pytest.raises(FrozenInstanceError):
        Job().model = "other"  # type: ignore[misc]
    with pytest.raises(TypeError):
        Job("input")  # type: ignore[call-arg, arg-type]
    with pytest.raises(TypeError):
        Job(no_such_flag=1)  # type: ignore[call-arg]


def test_a_changed_copy_is_checked_like_a_new_one() -> None:
    job = Job(max_new_tokens=5)
    assert job.but(seed=1) == Job(max_new_tokens=5, seed=1)
    with pytest.raises(UsageError, match="--min-new-tokens 6"):
        job.but(min_new_tokens=6)


def test_every_field_says_what_it_is_for() -> None:
    for field in job_fields():
        meta = field.metadata
        assert meta["help"].endswith("."), field.name
        assert meta["group"] in ("Data", "Model", "Prompt", "Sampling", "Speed", "Limits", "Run")


def test_every_flag_that_would_change_an_answer_is_in_the_fingerprint() -> None:
    named = set(Job().answer_settings())
    assert {f.name for f in fields(Job)} - named == CHANGES_NO_ANSWER


def test_settings_are_plain_json_in_the_order_of_the_fields() -> None:
    job = Job(input=("a", "b"), keep=("x",), limit=3)
    settings = job.settings()
    assert list(settings) == [f.name for f in fields(Job)]
    assert json.loads(json.dumps(settings)) == settings
    assert settings["input"] == ["a", "b"]


# The fingerprint


def test_the_fingerprint_is_this_one_in_every_process_and_version() -> None:
    settings = {"prompt": "Wär's ein Bild?", "stop": ["</s>", "\n"], "top_p": 0.9, "system": None}
    expected = "bdac7d08b7e9964f"
    assert fingerprint(settings) == expected
    code = (
        "from llava_batch.job import fingerprint; import sys, json;"
        f"print(fingerprint(json.loads({json.dumps(json.dumps(settings))})))"
    )
    for seed in ("0", "1"):
        ran = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed},
        )  # fmt: skip
        assert ran.stdout.strip() == expected


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda v: st.lists(v, max_size=3)
)


@settings(deadline=None)
@given(st.dictionaries(st.text(min_size=1), _values, max_size=5), st.randoms())
def test_the_fingerprint_does_not_depend_on_the_order_of_settings(settings, random) -> None:
    names = list(settings)
    random.shuffle(names)
    assert fingerprint({n: settings[n] for n in names}) == fingerprint(settings)


@settings(deadline=None)
@given(st.dictionaries(st.text(min_size=1), _values, min_size=1, max_size=5), st.data())
def test_any_changed_setting_changes_the_fingerprint(settings, data) -> None:
    name = data.draw(st.sampled_from(sorted(settings)))
    other = data.draw(_values.filter(lambda v: json.dumps(v) != json.dumps(settings[name])))
    assert fingerprint(settings | {name: other}) != fingerprint(settings)


# What `auto` and what was left open becomes


def test_auto_is_float32_without_a_gpu_and_bfloat16_with_one() -> None:
    assert settle(Job()).on(on_gpu=False, card=None).job.dtype == "float32"
    assert settle(Job()).on(on_gpu=True, card=None).job.dtype == "bfloat16"
    assert settle(Job(dtype="float16")).on(on_gpu=True, card=None).job.dtype == "float16"


def test_auto_settled_and_said_outright_have_one_fingerprint() -> None:
    auto = settle(Job()).on(on_gpu=False, card=None).job.answer_settings()
    assert auto == settle(Job(dtype="float32")).on(on_gpu=True, card=None).job.answer_settings()


def test_a_preset_fills_what_was_not_given_and_leaves_what_was() -> None:
    chosen = preset("vqav2")
    job = settle(Job(preset="vqav2")).on(on_gpu=False, card=None).job
    assert (job.suffix, job.system, job.image_aspect) == (
        chosen.suffix,
        chosen.system,
        chosen.image_aspect,
    )
    kept = (
        settle(Job(preset="vqav2", suffix=" Briefly.", image_aspect="crop"))
        .on(on_gpu=False, card=None)
        .job
    )
    assert (kept.suffix, kept.image_aspect, kept.system) == (" Briefly.", "crop", chosen.system)


def test_a_recipe_fills_its_sampling_and_leaves_what_was_given() -> None:
    recipe = load_recipe("conversation")
    job = settle(Job(recipe="conversation", max_new_tokens=7)).job
    assert job.max_new_tokens == 7
    assert (job.temperature, job.top_p) == (recipe.temperature, recipe.top_p)


def test_settling_twice_changes_nothing() -> None:
    once = settle(Job(preset="pope")).on(on_gpu=False, card=None).job
    assert settle(once).job == once


# Files among the settings


def test_a_file_counts_by_what_it_says_and_not_by_its_name(tmp_path: Path) -> None:
    demo = Checkpoint.find(Job())
    one, two = tmp_path / "a.jinja", tmp_path / "b.jinja"
    one.write_text("{{ messages }}")
    two.write_text("{{ messages }}")

    def template_of(path: Path) -> str:
        return answer_settings(settle(Job(template=str(path))), demo)["template"]

    same = template_of(one)
    assert template_of(two) == same
    two.write_text("{{ messages }} ")
    assert template_of(two) != same


def test_another_checkpoint_in_the_same_folder_is_another_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"1" * 70_000)
    made = Checkpoint(folder=str(tmp_path), name="x")
    before = answer_settings(settle(Job()), made)["model"]
    assert answer_settings(settle(Job()), made)["model"] == before
    (tmp_path / "model.safetensors").write_bytes(b"2" + b"1" * 69_999)
    assert answer_settings(settle(Job()), made)["model"] != before


@pytest.mark.parametrize("flag", ["questions", "template"])
def test_a_folder_where_a_file_is_meant_is_called_a_folder(tmp_path: Path, flag: str) -> None:
    # The storage refused, and credentials were to be checked.
    with pytest.raises(UsageError, match=f"--{flag} .*: a folder; give the file in it"):
        answer_settings(settle(Job().but(**{flag: str(tmp_path)})), Checkpoint.find(Job()))


def test_a_revision_of_a_model_that_has_one_only_is_refused(tmp_path: Path) -> None:
    # It was ignored.
    for model in ("demo", str(tmp_path)):
        with pytest.raises(
            UsageError, match=r"--revision v2: --model .* drop it, or give a hub id"
        ):
            settle(Job(model=model, revision="v2"))
    assert settle(Job(model="org/name", revision="v2")).job.revision == "v2"
