"""Trains the demo model on two CPU cores: `python -m llava_batch.demo.train --out DIR`.

Two stages. First the tower alone learns, per patch, what the drawing knows (colour, shape, size,
centre, background; the heads are thrown away): the language loss by itself sits long on a plateau.
Then everything learns from the language loss on answer tokens, over conversations packed behind
their picture (batches.py). What is saved is the running average of the weights, in bfloat16.

A seed and a number of steps give the same weights on the same machine; another machine's rounding
gives other weights of, as far as was seen, the same quality.
"""

import argparse
import copy
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset
from transformers import LlavaForConditionalGeneration, LlavaProcessor
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from llava_batch.demo.training.batches import PATCH_LABELS, PackedBatch, PackedBatches, PatchBatches
from llava_batch.demo.training.build import build_model, build_processor, build_tokenizer
from llava_batch.demo.training.optimizers import Optimizers, Schedule

EMBEDDINGS_SHARE = 0.2  # of the tower's rate: a patch sums 588 pixels, and soon drowns its position
TOWER_SHARE = 0.3  # of the rates, in the second stage
AVERAGE_DECAY = 0.998
EMPTY_LABEL_WEIGHT = 0.3  # most patches show nothing


def tower_features(model: LlavaForConditionalGeneration, pixels: Tensor) -> Tensor:
    """uint8 [B, 3, 112, 112] -> [B, 64, width], the output of the last layer but one, no CLS."""
    mean = torch.tensor(OPENAI_CLIP_MEAN).view(3, 1, 1)
    std = torch.tensor(OPENAI_CLIP_STD).view(3, 1, 1)
    tower = model.model.vision_tower
    hidden = tower.pre_layrnorm(tower.embeddings((pixels / 255.0 - mean) / std))
    for layer in tower.encoder.layers[:-1]:
        hidden = layer(hidden, None)
    return hidden[:, 1:]


def packed_mask(segments: Tensor) -> Tensor:
    """bool [B, 1, L, L]: a token sees the prefix and its own conversation up to itself."""
    own = segments[:, :, None] == segments[:, None, :]
    prefix = segments[:, None, :] == 0
    length = segments.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    return ((own | prefix) & causal)[:, None]


def hidden_states(
    model: LlavaForConditionalGeneration, pixels: Tensor, ids: Tensor, positions: Tensor,
    segments: Tensor, image_slots: Tensor,
) -> Tensor:  # fmt: skip
    """[B, L, width], the language model's output; `image_slots` [64] says where the image stands.

    Shapes are the same in every step and positions are tensors, so that it compiles once.
    """
    language = model.model.language_model
    features = model.model.multi_modal_projector(tower_features(model, pixels))
    embeds = language.embed_tokens(ids)
    embeds = embeds.index_copy(1, image_slots, features.to(embeds.dtype))
    allowed = packed_mask(segments)
    mask = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
    return language(
        inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=False
    ).last_hidden_state


def language_loss(
    model: LlavaForConditionalGeneration, hidden: Tensor, batch: PackedBatch
) -> Tensor:
    """Weighted mean cross-entropy of the answers' tokens."""
    targets = batch.weights[:, 1:] > 0
    logits = model.lm_head(hidden[:, :-1][targets])
    losses = F.cross_entropy(logits.float(), batch.ids[:, 1:][targets], reduction="none")
    weights = batch.weights[:, 1:][targets]
    return (losses * weights).sum() / weights.sum()


class PatchHeads(nn.Module):  # type: ignore[misc]
    """Linear readers of the patch labels, one for each of `PATCH_LABELS`; stage one only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.heads = nn.ModuleList(nn.Linear(width, size) for size in PATCH_LABELS.values())

    def loss(self, features: Tensor, labels: Tensor) -> Tensor:
        features = self.norm(features)
        total = features.new_zeros(())
        for number, (head, name) in enumerate(zip(self.heads, PATCH_LABELS, strict=True)):
            weight = torch.ones(PATCH_LABELS[name])
            if name not in ("background", "row", "column"):
                weight[0] = EMPTY_LABEL_WEIGHT
            logits = head(features).flatten(0, 1).float()
            total = total + F.cross_entropy(logits, labels[:, :, number].flatten(), weight=weight)
        return total


def _tower_layers(tower: nn.Module) -> list[nn.Module]:
    """The tower without its embeddings."""
    return [tower.pre_layrnorm, tower.encoder]


def train_tower(
    model: LlavaForConditionalGeneration, *, seed: int, num_steps: int, batch_size: int
) -> None:
    """Stage one: patch labels."""
    tower = model.model.vision_tower
    heads = PatchHeads(tower.config.hidden_size)
    optimizers = Optimizers(
        {1.0: [*_tower_layers(tower), heads], EMBEDDINGS_SHARE: [tower.embeddings]}
    )
    data = PatchBatches(seed=seed, num_steps=num_steps, batch_size=batch_size)
    schedule = Schedule(num_steps)
    features = torch.compile(tower_features, dynamic=False)
    for step, (pixels, labels) in enumerate(_prefetched(data)):
        with torch.autocast("cpu", torch.bfloat16):
            loss = heads.loss(features(model, pixels), labels)
        optimizers.step(loss, schedule.rate(step))
        if step % 100 == 0 or step == num_steps - 1:
            _log("tower", step, loss.item(), schedule)


def train_all(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, *, schedule: Schedule,
    seed: int, batch_size: int, save_every: int, out: Path,
) -> tuple[LlavaForConditionalGeneration, dict[str, Any]]:  # fmt: skip
    """Stage two: answers. Returns the model of averaged weights, and how long it took."""
    average = copy.deepcopy(model).requires_grad_(False)
    averaged: list[Tensor] = list(average.parameters())
    trained: list[Tensor] = list(model.parameters())
    rest = [model.model.multi_modal_projector, model.model.language_model]
    tower = model.model.vision_tower
    optimizers = Optimizers(
        {
            TOWER_SHARE: _tower_layers(tower),
            TOWER_SHARE * EMBEDDINGS_SHARE: [tower.embeddings],
            1.0: rest,
        }
    )
    data = PackedBatches(
        tokenizer=processor.tokenizer,
        seed=seed,
        num_steps=schedule.num_steps,
        batch_size=batch_size,
    )
    smooth = 0.0
    compiled = torch.compile(hidden_states, dynamic=False)
    for step, batch in enumerate(_prefetched(data)):
        with torch.autocast("cpu", torch.bfloat16):
            hidden = compiled(
                model, batch.pixels, batch.ids, batch.positions, batch.segments, batch.image_slots
            )
            loss = language_loss(model, hidden, batch)
        optimizers.step(loss, schedule.rate(step))
        decay = min(AVERAGE_DECAY, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(averaged, trained, 1 - decay)
        smooth += (loss.item() - smooth) * max(0.02, 1 / (step + 1))
        if step % 100 == 0 or schedule.progress(step + 1) >= 1.0:
            _log("all", step, smooth, schedule)
        if step % save_every == save_every - 1:
            save(average, processor, out)
        if schedule.progress(step + 1) >= 1.0:
            break
    return average, {"steps": step + 1, "minutes": round(schedule.seconds() / 60, 1)}


def save(model: LlavaForConditionalGeneration, processor: LlavaProcessor, out: Path) -> None:
    """The checkpoint folder, weights rounded to bfloat16; `model` itself stays as it is."""
    rounded: nn.Module = copy.deepcopy(model)
    rounded.to(torch.bfloat16)
    rounded.save_pretrained(out)
    processor.save_pretrained(out)


def _prefetched(data: IterableDataset) -> DataLoader:
    return DataLoader(data, batch_size=None, num_workers=1, prefetch_factor=8)


def _log(stage: str, step: int, loss: float, schedule: Schedule) -> None:
    print(f"{stage} step {step} loss {loss:.4f} {schedule.seconds():.0f} s", flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tower-steps", type=int, default=1200)
    parser.add_argument("--steps", type=int, default=7_000)
    parser.add_argument("--minutes", type=float, help="end the second stage after this long")
    parser.add_argument("--start-from", type=Path, help="go on from this checkpoint's weights")
    parser.add_argument("--peak", type=float, default=1.0, help="scales the learning rates")
    parser.add_argument("--batch-size", type=int, default=24, help="pictures a step")
    parser.add_argument("--save-every", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def _start(
    args: argparse.Namespace,
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor, list[dict[str, Any]]]:
    """The model to train in the second stage, and the record of what was done to it so far."""
    if args.start_from is not None:
        model = LlavaForConditionalGeneration.from_pretrained(
            args.start_from, dtype=torch.float32, attn_implementation="eager"
        )
        record = json.loads((args.start_from / "training.json").read_text())
        return model.train(), LlavaProcessor.from_pretrained(args.start_from), record["stages"]
    processor = build_processor(build_tokenizer())
    model = build_model(processor.tokenizer).train()
    batch_size = 2 * args.batch_size
    train_tower(model, seed=args.seed, num_steps=args.tower_steps, batch_size=batch_size)
    save(model, processor, args.out)
    stage = {"trained": "tower", "seed": args.seed, "steps": args.tower_steps}
    return model, processor, [{**stage, "batch_size": batch_size}]


def main() -> None:
    args = _options()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    model, processor, stages = _start(args)
    average, spent = train_all(
        model, processor, schedule=Schedule(args.steps, args.minutes, args.peak),
        seed=args.seed, batch_size=args.batch_size, save_every=args.save_every, out=args.out,
    )  # fmt: skip
    save(average, processor, args.out)
    stage = {"trained": "all", "seed": args.seed, **spent}
    stages.append({**stage, "batch_size": args.batch_size, "peak": args.peak})
    num_parameters = sum(parameter.numel() for parameter in average.parameters())
    record = {"num_parameters": num_parameters, "stages": stages}
    (args.out / "training.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
