"""Tiny checkpoints of the LLaVA families in the layout that they are published in, random from a seed.

Names of weights, settings of the image processor and the processor, templates and the generation config
lie where the hub's checkpoints have them; the templates give the published text in words of our own.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import (
    AddedToken,
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaNextConfig,
    LlavaOnevisionConfig,
    MistralConfig,
    PixtralVisionConfig,
    Qwen2Config,
    SiglipVisionConfig,
    VipLlavaConfig,
)

from tests.sentencepiece_like import sentencepiece_like

SIDE, PATCH = 28, 7
CLIP = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
NEXT_GRIDS = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE], [3 * SIDE, SIDE],
              [SIDE, 3 * SIDE]]  # fmt: skip
"""LLaVA-NeXT's own, in tiles of `SIDE` pixels."""
ONEVISION_GRIDS = [[SIDE * rows, SIDE * columns] for rows in range(1, 7) for columns in range(1, 7)]
"""LLaVA-OneVision's: all from one tile to six by six."""

PARTS = (
    "{% macro parts(message) %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<image>\n{% else %}{{ part.text }}{% endif %}{% endfor %}{% endmacro %}"
)
VICUNA = PARTS + (
    "{% for message in messages %}{% if message.role == 'system' %}{{ parts(message) }} {% else %}"
    "{{ message.role | upper }}: {{ parts(message) }} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
MISTRAL = PARTS + (
    "{% for message in messages %}{% if message.role == 'user' %}[INST] {{ parts(message) }} [/INST]"
    "{% else %} {{ parts(message) }}</s>{% endif %}{% endfor %}"
)
LLAMA_3 = PARTS + (
    "{% for message in messages %}<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n"
    "{{ parts(message) }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
CHATML = PARTS + (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ parts(message) }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ONEVISION = (  # all images of a message in front of its text
    "{% for message in messages %}<|im_start|>{{ message.role }} "
    "{% for part in message.content if part.type == 'image' %}<image>{% endfor %}"
    "{% for part in message.content if part.type == 'text' %}\n{{ part.text }}{% endfor %}<|im_end|>"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HUMAN = PARTS + (
    "{% for message in messages %}{% if message.role == 'system' %}{{ parts(message) }}{% else %}"
    "###{{ 'Human' if message.role == 'user' else 'Assistant' }}: {{ parts(message) }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}###Assistant:{% endif %}"
)
PIXTRAL = (
    "<s>{% for message in messages %}{% if message.role == 'user' %}[INST]{% for part in message.content %}"
    "{% if part.type == 'image' %}[IMG]{% else %}{{ part.text }}{% endif %}{% endfor %}[/INST]{% else %}"
    "{{ message.content[0].text }}</s>{% endif %}{% endfor %}"
)


@cache
def tokenizer(*added: str) -> Any:
    made = sentencepiece_like("legacy", image_is_special=True)
    made.add_tokens([AddedToken(text, special=True, normalized=False) for text in added])
    return made


def text_config(kind: type, vocab: int, **more: Any) -> Any:
    return kind(
        vocab_size=vocab, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=1024,
        bos_token_id=1, eos_token_id=2, pad_token_id=0, **more,
    )  # fmt: skip


def tower(kind: type, **more: Any) -> Any:
    return kind(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2,
                image_size=16 * PATCH if kind is PixtralVisionConfig else SIDE, patch_size=PATCH, **more)  # fmt: skip


SQUARE = {"height": SIDE, "width": SIDE}
CROPPED = {"size": {"shortest_edge": SIDE}, "crop_size": SQUARE, "do_center_crop": True,
           "do_resize": True, "do_rescale": True, "do_normalize": True, "do_convert_rgb": True,
           "resample": 3, "rescale_factor": 1 / 255, **CLIP}  # fmt: skip


def _next(text: type, template: str, *specials: str) -> dict[str, Any]:
    return {
        "config": LlavaNextConfig, "text": text, "tower": CLIPVisionConfig, "template": template,
        "specials": specials, "settings": {"image_grid_pinpoints": NEXT_GRIDS},
        "image_processor": {"image_processor_type": "LlavaNextImageProcessor",
                            "aspect_ratio_setting": "anyres", "do_pad": True,
                            "image_grid_pinpoints": NEXT_GRIDS, **CROPPED},
        "processor": {"processor_class": "LlavaNextProcessor", "num_additional_image_tokens": 1},
    }  # fmt: skip


HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
TURNS = ("<|im_start|>", "<|im_end|>")
FAMILIES: dict[str, dict[str, Any]] = {
    "llava": {
        "config": LlavaConfig, "text": LlamaConfig, "tower": CLIPVisionConfig, "template": VICUNA,
        "specials": (), "settings": {},
        "image_processor": {"image_processor_type": "CLIPImageProcessor", **CROPPED},
        "processor": {"processor_class": "LlavaProcessor", "num_additional_image_tokens": 1},
    },
    "next mistral": _next(MistralConfig, MISTRAL),
    "next vicuna": _next(LlamaConfig, VICUNA),
    "next llama 3": _next(LlamaConfig, LLAMA_3, *HEADERS),
    "next qwen": _next(Qwen2Config, CHATML, *TURNS),
    "next siglip": _next(Qwen2Config, CHATML, *TURNS) | {
        "tower": SiglipVisionConfig,
        "settings": {"image_grid_pinpoints": NEXT_GRIDS, "vision_feature_select_strategy": "full"},
        "processor": {"processor_class": "LlavaNextProcessor", "num_additional_image_tokens": 0},
    },
    "onevision": {
        "config": LlavaOnevisionConfig, "text": Qwen2Config, "tower": SiglipVisionConfig,
        "template": ONEVISION, "specials": (*TURNS, "<video>"),
        "settings": {"image_grid_pinpoints": ONEVISION_GRIDS, "vision_aspect_ratio": "anyres_max_9",
                     "video_token_index": 1},
        "image_processor": {"image_processor_type": "LlavaOnevisionImageProcessor", "do_pad": True,
                            "do_resize": True, "do_rescale": True, "do_normalize": True,
                            "do_convert_rgb": True, "size": SQUARE, "resample": 3, "rescale_factor": 1 / 255,
                            "image_grid_pinpoints": ONEVISION_GRIDS, **CLIP},
        "processor": {"processor_class": "LlavaOnevisionProcessor", "num_image_tokens": 16,
                      "video_token": "<video>", "vision_aspect_ratio": "anyres_max_9"},
    },
    "vip": {
        "config": VipLlavaConfig, "text": LlamaConfig, "tower": CLIPVisionConfig, "template": HUMAN,
        "specials": (), "settings": {"vision_feature_layer": [-2, -3, 1]},
        "image_processor": {"image_processor_type": "CLIPImageProcessor", **CROPPED},
        "processor": {"processor_class": "LlavaProcessor", "num_additional_image_tokens": 1},
    },
    "llava siglip": {  # as llava-interleave: tied embeddings, a tower without a head, its last layer
        "config": LlavaConfig, "text": Qwen2Config, "tower": SiglipVisionConfig, "template": CHATML,
        "text_more": {"tie_word_embeddings": True}, "tower_more": {"vision_use_head": False},
        "specials": TURNS,
        "settings": {"vision_feature_select_strategy": "full", "vision_feature_layer": -1},
        "image_processor": {"image_processor_type": "SiglipImageProcessor", "size": SQUARE,
                            "do_resize": True, "do_rescale": True, "do_normalize": True, "resample": 3,
                            "rescale_factor": 1 / 255, **HALF},
        "processor": {"processor_class": "LlavaProcessor", "num_additional_image_tokens": 0},
    },
    "pixtral": {
        "config": LlavaConfig, "text": MistralConfig, "tower": PixtralVisionConfig,
        "template": PIXTRAL, "specials": ("[IMG]", "[IMG_BREAK]", "[IMG_END]", "[INST]", "[/INST]"),
        "image_token": "[IMG]",
        "settings": {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"},
        "image_processor": {"image_processor_type": "PixtralImageProcessor",
                            "patch_size": {"height": PATCH, "width": PATCH},
                            "size": {"longest_edge": 16 * PATCH}, "do_resize": True, "do_rescale": True,
                            "do_normalize": True, "do_convert_rgb": True, "resample": 3,
                            "rescale_factor": 1 / 255, **CLIP},
        "processor": {"processor_class": "PixtralProcessor", "image_token": "[IMG]",
                      "image_break_token": "[IMG_BREAK]", "image_end_token": "[IMG_END]"},
    },
}  # fmt: skip
"""What is published, by family and language model; llava-hf's names in `llava_batch`'s README."""


def publish(name: str, folder: Path, *, seed: int = 0, template_as: str = "json") -> Path:
    """Write the family's tiny checkpoint to `folder`.

    template_as: `json` (chat_template.json, as older checkpoints have it) or `jinja`.
    """
    said = FAMILIES[name]
    words = tokenizer(*said["specials"])
    text = text_config(said["text"], len(words), **said.get("text_more", {}))
    vision = tower(said["tower"], **said.get("tower_more", {}))
    image_token = words.convert_tokens_to_ids(said.get("image_token", "<image>"))
    config = said["config"](
        vision_config=vision, text_config=text, image_token_index=image_token, **said["settings"]
    )
    _save_model(config, folder, seed, image_token)
    words.save_pretrained(folder)
    write = lambda file, value: (folder / file).write_text(json.dumps(value))  # noqa: E731
    write("preprocessor_config.json", said["image_processor"])
    processor = {"image_token": "<image>", "patch_size": PATCH} | said["processor"]
    strategy = getattr(config, "vision_feature_select_strategy", "default")
    write("processor_config.json", processor | {"vision_feature_select_strategy": strategy})
    if template_as == "json":
        write("chat_template.json", {"chat_template": said["template"]})
    else:
        (folder / "chat_template.jinja").write_text(said["template"])
    return folder


def _save_model(config: Any, folder: Path, seed: int, image_token: int) -> None:
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and "vision" not in name:
                torch.nn.init.normal_(weight, std=0.25)
        model.lm_head.weight[2] *= 1.5  # answers end
        model.lm_head.weight[image_token] = (
            0  # transformers would take an answered one for an image
        )
    folder.mkdir(parents=True, exist_ok=True)
    tower_inside = "" if config.vision_config.model_type == "pixtral" else "vision_model."
    weights = {
        _on_the_hub(name).replace(
            "vision_tower.", f"vision_tower.{tower_inside}"
        ): weight.contiguous()
        for name, weight in model.state_dict().items()
        if not (config.tie_word_embeddings and name.startswith("lm_head."))
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    (folder / "generation_config.json").write_text(json.dumps(ends))


def _on_the_hub(name: str) -> str:
    """A weight's name as checkpoints of these families have it, from before transformers 5."""
    for ours, theirs in (
        ("model.language_model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
        ("model.", ""),
    ):
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name
