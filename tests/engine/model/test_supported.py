"""Models that are taken answer as transformers' `generate`; all others are refused by name, and early."""

import copy
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from families import GROUPED, ROPES, TOWER, roped, text
from tiny_llava import (  # fmt: skip
    COMMON,
    SIZE,
    TOKENS,
    image,
    prompt,
    random_llava,
    reference_ids,
    tiny,
    vision_config,
    wrapped,
)
from transformers import (
    CLIPVisionConfig,
    Gemma2Config,
    GPTNeoXConfig,
    GptOssConfig,
    LlavaConfig,
    LlavaNextConfig,
    LlavaOnevisionConfig,
    PixtralVisionConfig,
    Siglip2VisionConfig,
    SiglipVisionConfig,
    StableLmConfig,
)

from llava_batch import checkpoint
from llava_batch.checkpoint import Checkpoint
from llava_batch.driver.refusals import refuse_what_does_not_fit
from llava_batch.engine import Engine, Request
from llava_batch.engine.kernels import choose, cpu, cpu_build, interface, plain
from llava_batch.engine.kernels.contract import Place
from llava_batch.engine.kernels.cpu_decoder import FusedAttention, FusedLayer
from llava_batch.engine.model import load, supported
from llava_batch.engine.model.families import VISIONS
from llava_batch.engine.passes import Rows
from llava_batch.errors import UsageError
from llava_batch.job import Job
from tests.published import FAMILIES


def given(num_image_tokens: int = TOKENS) -> list[Request]:
    """Five lengths, with an image each; the end token counts as any other."""
    return [
        Request(
            id=str(number), pixels=image(number), max_new_tokens=5 + 4 * number, ignore_eos=True,
            prompt_ids=prompt(number, length, num_image_tokens),
        )
        for number, length in enumerate((3, 9, 40, 17, 11))
    ]  # fmt: skip


def expect_reference(model, requests: list[Request], **options) -> Engine:
    expected = {r.id: tuple(reference_ids(model, r, list(r.prompt_ids))) for r in requests}
    assert len({token for answer in expected.values() for token in answer}) > 6, "they must vary"
    made = wrapped(copy.deepcopy(model), **options)
    found = {c.id: c.token_ids for c in made.generate(requests)}
    assert found == expected
    return made


@pytest.mark.parametrize("kind", supported.TEXTS)
def test_every_language_model_on_the_list_answers_as_generate_does(path, kind) -> None:
    model = random_llava(vision_config(), text(kind))
    assert model.config.text_config.model_type == kind
    expect_reference(model, given())


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("strategy", ["default", "full"])
@pytest.mark.parametrize("layer", [-2, -1, -4, 1, [-2, -1], [0, 3]])
@pytest.mark.parametrize("tower", [CLIPVisionConfig, SiglipVisionConfig])
def test_every_tower_on_the_list_gives_the_features_that_generate_reads(
    tower, layer, strategy, act
) -> None:
    vision = tower(**TOWER, hidden_act=act)
    model = random_llava(
        vision, text("llama"), vision_feature_layer=layer, vision_feature_select_strategy=strategy
    )
    first = tower is CLIPVisionConfig
    expect_reference(model, given(TOKENS + first - (strategy == "default"))[:2])


def test_the_towers_that_are_tested_are_those_on_the_list() -> None:
    tested = {(said["config"].model_type, said["tower"].model_type) for said in FAMILIES.values()}
    taken = {(family, tower) for family, towers in supported.TOWERS.items() for tower in towers}
    assert tested == taken


def test_what_a_checkpoint_is_taken_for_is_what_the_engine_takes() -> None:
    assert set(checkpoint.FAMILIES) == set(supported.TOWERS) == set(VISIONS)
    assert set(checkpoint.TILED) == set(supported.TILED)


TILED: dict[str, tuple[Any, dict, str]] = {
    "all features": (
        LlavaNextConfig, {"vision_feature_select_strategy": "full"}, "has a class token; .* default",
    ),
    "odd grids": (
        LlavaNextConfig, {"image_grid_pinpoints": [[SIZE, SIZE + 1]]}, "grids of whole tiles of 28",
    ),
    "another tower": (LlavaOnevisionConfig, {}, "tower is clip_vision_model; .* siglip_vision_model"),
}  # fmt: skip


@pytest.mark.parametrize("name", TILED)
def test_tiles_that_make_no_map_are_refused_by_name(name: str) -> None:
    family, settings, said = TILED[name]
    grids = {"image_grid_pinpoints": [[SIZE, 2 * SIZE]]}
    config = family(text_config=text("llama"), vision_config=vision_config(), **grids | settings)
    assert re.search(said, supported.why_not(config) or "")


@pytest.mark.parametrize("kind", supported.ROPES)
def test_every_rotary_embedding_on_the_list_answers_as_generate_does(path, kind) -> None:
    model = random_llava(vision_config(), roped(kind, **ROPES[kind]))
    made = expect_reference(model, given(), max_tokens="auto")
    assert made.max_tokens == (100 if kind == "longrope" else 160)


def test_a_slot_ends_where_longrope_would_change_its_frequencies_for_the_whole_batch() -> None:
    model = random_llava(vision_config(), roped("longrope", **ROPES["longrope"]))
    with pytest.raises(ValueError, match=r"max_tokens is 101, .* 100 positions .* is longrope"):
        wrapped(model, max_tokens=101)


SIZES = COMMON | {"num_key_value_heads": 2}
REFUSED: dict[str, Any] = {
    "gemma2": (lambda: Gemma2Config(**SIZES, head_dim=16), None, {}, "language model is gemma2"),
    "gpt_oss": (lambda: GptOssConfig(**SIZES), None, {}, "language model is gpt_oss"),
    "stablelm": (lambda: StableLmConfig(**SIZES), None, {}, "language model is stablelm"),
    "gpt_neox": (lambda: GPTNeoXConfig(**COMMON), None, {}, "language model is gpt_neox"),
    "pixtral": (
        None,
        lambda: PixtralVisionConfig(**TOWER),
        {},
        "vision_feature_select_strategy is default with .* class token",
    ),
    "siglip 2": (
        None,
        lambda: Siglip2VisionConfig(hidden_size=32, num_hidden_layers=3, num_attention_heads=2),
        {},
        "vision tower is siglip2_vision_model",
    ),
    "layer 0": (None, None, {"vision_feature_layer": 0}, "vision_feature_layer is 0"),
    "layer 4 of 3": (None, None, {"vision_feature_layer": 4}, "vision_feature_layer is 4"),
    "layer -5": (None, None, {"vision_feature_layer": [-1, -5]}, r"layer is \[-1, -5\]"),
    "no layer": (None, None, {"vision_feature_layer": []}, r"vision_feature_layer is \[\]"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_is_not_on_the_list_is_refused_by_name_before_its_weights_are_read(
    tmp_path, monkeypatch, name
) -> None:
    make_text, make_vision, settings, said = REFUSED[name]
    config = LlavaConfig(
        text_config=make_text() if make_text else text("llama"),
        vision_config=make_vision() if make_vision else vision_config(),
        **settings,
    )
    config.save_pretrained(tmp_path)
    found = Checkpoint(folder=str(tmp_path), name="a-model")
    with pytest.raises(UsageError, match=f"^--model a-model: .*{said}; the engine takes "):
        refuse_what_does_not_fit(Job(model="a-model"), found, None, 256)
    monkeypatch.setattr(load, "read_weights", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(ValueError, match=f"cannot be had: .*{said}; the engine takes "):
        Engine.load(tmp_path, device="cpu")


def test_a_model_in_memory_that_is_not_on_the_list_is_refused_and_left_as_it_was() -> None:
    sizes = GROUPED | {"head_dim": 16, "attn_logit_softcapping": 2.0}
    model = random_llava(vision_config(), Gemma2Config(**sizes))
    before = model.config.text_config._attn_implementation
    with pytest.raises(ValueError, match="its language model is gemma2"):
        Engine(model)
    assert model.config.text_config._attn_implementation == before
    assert len(model.model.vision_tower.encoder.layers) == 3


def test_another_familys_model_is_refused_by_name() -> None:
    config = LlavaConfig(text_config=text("llama"), vision_config=vision_config())
    config.model_type = "video_llava"
    taken = "llava, llava_next, llava_onevision or vipllava"
    assert supported.why_not(config) == f"it is a video_llava model; the engine takes {taken}"
    config.model_type = "llava"
    assert supported.why_not(config) is None
    config.text_config.rope_parameters["rope_type"] = "proportional"
    assert "rotary embedding is proportional" in (supported.why_not(config) or "")


@pytest.mark.parametrize(
    ("argument", "value"), [("softcap", 50.0), ("s_aux", torch.zeros(4)), ("anything", None)]
)
def test_an_attention_argument_that_is_not_implemented_raises_by_name(argument, value) -> None:
    layer = tiny().model.language_model.layers[0].self_attn
    query, slots = torch.randn(1, 4, 1, 16), torch.randn(1, 4, 8, 16)
    rows = Rows(slots=(0,), past=(3,), new=(1,))
    slot: dict[str, Any] = {"slot_rows": rows, "slot_kernels": plain.KERNELS, "slot_tokens": 8}
    known: dict[str, Any] = {"scaling": 0.25, "dropout": 0.0, **slot}
    interface.slot_attention(layer, query, slots, slots, None, **known, use_cache=True)
    with pytest.raises(ValueError, match=f"LlamaAttention asks its attention for {argument}, "):
        interface.slot_attention(layer, query, slots, slots, None, **known, **{argument: value})
    with pytest.raises(ValueError, match="asks its attention for attention_mask"):
        interface.slot_attention(layer, query, slots, slots, torch.zeros(1), **known)


def test_the_fused_layer_refuses_what_it_does_not_implement() -> None:
    layer = copy.deepcopy(tiny().model.language_model.layers[0])
    fused = FusedLayer(layer, FusedAttention(layer.self_attn))
    hidden, nothing = torch.zeros(1, 1, 64), (torch.zeros(1), torch.zeros(1))
    with pytest.raises(ValueError, match="FusedLayer asks its attention for softcap"):
        fused(hidden, nothing, None, softcap=50.0)
    with pytest.raises(ValueError, match="FusedLayer asks its attention for attention_mask"):
        fused(hidden, nothing, None, attention_mask=torch.zeros(1))


def test_a_rotation_of_part_of_a_head_is_refused_by_the_fused_kernel() -> None:
    qkv, half = torch.zeros(1, 1, 48), torch.zeros(1, 1, 8)
    slots = torch.zeros(1, 1, 4, 16)
    rows = Rows(slots=(0,), past=(0,), new=(1,))
    with pytest.raises(ValueError, match="a rotation of 8 entries is not a head's, 16"):
        cpu.rope_store(qkv, half, half, slots, slots, rows, 1)


@pytest.mark.parametrize("kind", supported.TEXTS)
def test_in_bfloat16_the_fast_cpu_kernels_agree_with_the_same_weights_in_float32(kind) -> None:
    place = Place(device="cpu", dtype=torch.bfloat16)
    if choose.why_not("native", place) or cpu_build.why_not_built(place.dtype):
        pytest.skip("the kernels cannot be had here")
    half = random_llava(vision_config(), text(kind)).bfloat16()
    first = [replace(request, max_new_tokens=1) for request in given()]
    scores = [
        {c.id: (c.token_ids, c.mean_logprob) for c in made.generate(first)}
        for made in (
            wrapped(copy.deepcopy(half), attention="native", max_tokens=100),
            wrapped(copy.deepcopy(half).float(), attention="torch", max_tokens=100),
        )
    ]
    same = [key for key in scores[0] if scores[0][key][0] == scores[1][key][0]]
    assert len(same) >= len(first) - 1, "bfloat16 rounds, but not that much"
    for key in same:
        assert scores[0][key][1] == pytest.approx(scores[1][key][1], abs=0.15)
