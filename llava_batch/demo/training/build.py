"""Builds the demo model untrained: configuration, weights, tokenizer and processor of a tiny LLaVA.

The parts are transformers' own (CLIP tower, two-layer projector, Llama, LlavaProcessor) at a small
width, so that whatever loads LLaVA-1.5 loads this. As there, the language model reads the tower's
last layer but one, and the last layer stays as it was drawn. That noise is faint: the trained model
answers as well from the last layer, so a mix-up of the two must be looked for in other ways (with
a tower of random weights).
"""

from collections.abc import Iterator

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from llava_batch.demo.scenes import make_scene, stream
from llava_batch.demo.training.text import EOS, IMAGE, PAD, SYSTEM, conversations, render

BOS = "<s>"
SPECIALS = (BOS, EOS, PAD, IMAGE)
VOCABULARY_SIZE = 512
IMAGE_SIZE = 112
PATCH_SIZE = 14
NUM_IMAGE_TOKENS = (IMAGE_SIZE // PATCH_SIZE) ** 2


def build_tokenizer(num_scenes: int = 4000) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on the scenes' own text; no byte is unknown to it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIALS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(num_scenes), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
        extra_special_tokens={"image_token": IMAGE},
    )


def _corpus(num_scenes: int) -> Iterator[str]:
    for seed in range(num_scenes):
        scene = make_scene(seed)
        for turns in conversations(scene, stream(seed, "conversations"), max_turns=8):
            yield from render(turns).replace(EOS, "\n").split("\n")
    yield from [SYSTEM] * (num_scenes // 10)


def build_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """Pads to a square in the mean colour, as the original LLaVA does, then resizes to 112."""
    image_processor = LlavaImageProcessorPil(
        do_pad=True,
        size={"shortest_edge": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    """The untrained model, in float32, with eager attention (the faster one in CPU training)."""
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        projection_dim=128,
    )
    text = LlamaConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=len(SPECIALS) - 1,  # special tokens' ids are given in this order
        image_seq_length=NUM_IMAGE_TOKENS,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    config._attn_implementation = "eager"
    model = LlavaForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    embeddings = model.model.vision_tower.embeddings
    embeddings.position_embedding.weight.data[1:] = _grid_positions(embeddings.embed_dim)
    return model


def _grid_positions(width: int) -> torch.Tensor:
    """2-D sine-cosine positions of the patches, [num_patches, width].

    CLIP starts its position embeddings near zero, from where a short training hardly moves them;
    these start as large as what the patches hold.
    """
    side = IMAGE_SIZE // PATCH_SIZE
    rates = 1.0 / 100 ** (torch.arange(width // 4) / (width // 4))
    angles = torch.arange(side)[:, None] * rates  # [side, width / 4]
    waves = torch.cat((angles.sin(), angles.cos()), dim=1)  # [side, width / 2]
    rows = waves[:, None].expand(side, side, -1)
    columns = waves[None].expand(side, side, -1)
    return 1.4 * torch.cat((rows, columns), dim=-1).reshape(side * side, width)
