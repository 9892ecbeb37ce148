"""Images of any size, through our preparing and our engine, answer as transformers' processor and `generate`."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from any_family import picture, prepared, reference

from llava_batch.engine import Engine, Image, Request
from tests.published import SIDE, publish
from tests.without_ray import go_without_ray

SIZES = [(1, 1), (4000, 100), (100, 4000), (33, 21), (28, 28), (56, 57), (300, 200)]
"""(width, height)."""
_folders: dict[str, Path] = {}


@pytest.fixture
def folder(request: Any, tmp_path_factory: Any, monkeypatch: Any) -> Path:
    """The family's checkpoint, made once."""
    go_without_ray(monkeypatch)
    name = request.param
    if name not in _folders:
        _folders[name] = publish(name, tmp_path_factory.mktemp("model"))
    return _folders[name]


ANY = ["next mistral", "onevision", "vip", "llava siglip", "llava", "pixtral"]
NEXT = ["next mistral", "next vicuna", "next llama 3", "next qwen", "next siglip"]


@pytest.mark.parametrize("folder", ANY, indirect=True)
@pytest.mark.parametrize("options", [{}, {"attention": "sdpa"}], ids=["padded", "packed"])
def test_images_of_any_size_answer_as_generate_does_alone_and_in_flight(folder, options) -> None:
    engine = Engine.load(folder, device="cpu", dtype="float32", slots=3, max_tokens=300, **options)
    asked, expected = [], {}
    for number, size in enumerate(SIZES):
        image = picture(*size)
        request, ask = prepared(folder, image)
        ids, answer = reference(folder, ask, image)
        assert list(request.prompt_ids) == ids, "token ids as the reference processor's"
        expected[str(number)] = tuple(answer)
        asked.append(Request(**{**vars(request), "id": str(number)}))
    for request in asked:
        (alone,) = engine.generate([request])
        assert alone.token_ids == expected[request.id]
    together = {c.id: c.token_ids for c in engine.generate(asked[::-1])}
    assert together == expected
    assert len(set(expected.values())) > 3, "the answers tell the images apart"


@pytest.mark.parametrize("folder", NEXT[1:], indirect=True)
def test_every_language_model_answers_as_generate_does(folder) -> None:
    engine = Engine.load(folder, device="cpu", dtype="float32", slots=2, max_tokens=300)
    image = picture(90, 40)
    request, ask = prepared(folder, image)
    ids, answer = reference(folder, ask, image)
    assert list(request.prompt_ids) == ids
    (found,) = engine.generate([request])
    assert found.token_ids == tuple(answer)


@pytest.mark.parametrize("folder", ["onevision", "next mistral", "pixtral"], indirect=True)
def test_several_images_in_a_prompt_answer_as_generate_does(folder) -> None:
    engine = Engine.load(folder, device="cpu", dtype="float32", slots=2, max_tokens=600)
    images = [picture(90, 40), picture(33, 70)]
    request, ask = prepared(folder, *images)
    ids, answer = reference(folder, ask, *images)
    assert list(request.prompt_ids) == ids
    (found,) = engine.generate([request])
    assert found.token_ids == tuple(answer)
    assert engine.stats.images_encoded == 2


@pytest.mark.parametrize("folder", ["llava"], indirect=True)
def test_the_older_layout_of_llava_15_answers_as_the_newer(folder, tmp_path) -> None:
    """Without a processor's settings and without a chat template: they stood nowhere then."""
    older = tmp_path / "older"
    shutil.copytree(folder, older)
    for name in ("processor_config.json", "chat_template.json"):
        (older / name).unlink()
    answers = []
    for where in (folder, older):
        request, ask = prepared(where, picture(90, 40))
        engine = Engine.load(where, device="cpu", dtype="float32", slots=1, max_tokens=300)
        assert ask["segments"] == ["USER: <image>\nWhat is in the picture? ASSISTANT:"]
        answers += [completion.token_ids for completion in engine.generate([request])]
    assert answers[0] == answers[1]


@pytest.mark.parametrize("folder", ["onevision"], indirect=True)
def test_with_fewer_tiles_answers_are_those_of_a_model_with_fewer_grids(folder, tmp_path) -> None:
    fewer = tmp_path / "fewer"
    shutil.copytree(folder, fewer)
    for name in ("config.json", "preprocessor_config.json"):
        said = json.loads((fewer / name).read_text())
        grids = [g for g in said["image_grid_pinpoints"] if g[0] * g[1] <= 4 * SIDE * SIDE]
        (fewer / name).write_text(json.dumps(said | {"image_grid_pinpoints": grids}))
    image = picture(300, 200)
    request, ask = prepared(folder, image, max_tiles=4)
    ids, answer = reference(fewer, ask, image)
    engine = Engine.load(folder, device="cpu", dtype="float32", slots=1, max_tokens=300)
    assert list(request.prompt_ids) == ids
    assert [c.token_ids for c in engine.generate([request])] == [tuple(answer)]


BROKEN: dict[str, Any] = {
    "tiles": lambda image, grid: Image(image[:-1], grid),
    "no grid": lambda image, grid: Image(image, None),
    "outside": lambda image, grid: Image(image, replace(grid, bottom=99)),
    "size": lambda image, grid: Image(image[..., :-1], grid),
    "floats": lambda image, grid: Image(image.astype(np.float32), grid),
    "reduced": lambda image, grid: Image(image, replace(grid, height=grid.height - 1)),
}


@pytest.mark.parametrize("folder", ["next mistral"], indirect=True)
def test_an_image_that_is_none_of_the_family_costs_its_own_request(folder) -> None:
    engine = Engine.load(folder, device="cpu", dtype="float32", slots=2, max_tokens=300)
    good, _ = prepared(folder, picture(90, 40))
    (image,) = good.pixels
    bad = [
        replace(good, id=name, pixels=(broken(image.pixels, image.grid),))
        for name, broken in BROKEN.items()
    ]
    short = replace(good, id="short", prompt_ids=good.prompt_ids[:-60])
    found = {c.id: c for c in engine.generate([*bad, short, good])}
    assert {c.error_code for name, c in found.items() if name} == {"bad_prompt"}
    assert found[""].finish_reason in ("stop", "length")


@pytest.mark.parametrize("folder", ["onevision"], indirect=True)
def test_questions_of_one_image_fork_and_samples_share_it(folder) -> None:
    engine = Engine.load(folder, device="cpu", dtype="float32", slots=4, max_tokens=300)
    base, _ = prepared(folder, picture(90, 40))
    ids = list(base.prompt_ids)
    given = [replace(base, id=str(n), prompt_ids=[*ids, *range(5, 6 + n)]) for n in range(4)]
    alone: dict[str, tuple[int, ...]] = {}
    for request in given:
        fresh = Engine.load(folder, device="cpu", dtype="float32", slots=1, max_tokens=300)
        alone |= {c.id: c.token_ids for c in fresh.generate([request])}
    assert {c.id: c.token_ids for c in engine.generate(given)} == alone
    assert engine.stats.images_encoded == 1
    assert engine.stats.tokens_reused > 0


@pytest.mark.parametrize("folder", ["next mistral", "onevision", "vip", "pixtral"], indirect=True)
@pytest.mark.parametrize("kind", ["nf4", "int8wo"])
def test_of_a_quantized_model_only_the_language_models_layers_are(folder, kind) -> None:
    pytest.importorskip("bitsandbytes" if kind == "nf4" else "torchao")
    engine = Engine.load(
        folder, device="cpu", dtype="bfloat16", quantization=kind, slots=2, max_tokens=300
    )
    request, _ = prepared(folder, picture(90, 40))
    (found,) = engine.generate([request])
    assert found.error is None
    layers = {
        name: type(module.weight.data) is torch.Tensor and module.weight.is_floating_point()
        for name, module in engine.llava.model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    assert {name for name, is_plain in layers.items() if not is_plain} == {
        name for name in layers if "language_model.layers" in name
    }
