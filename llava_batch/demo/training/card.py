"""The model card, made from `evaluation.json` and `training.json` beside the weights."""

import json
from pathlib import Path
from typing import Any

LABELS = {
    "caption_objects": "caption: every object right, none added",
    "caption_exact": "caption: word for word",
    "colour": "colour",
    "shape": "shape",
    "size": "size",
    "count": "count of all objects",
    "count_of": "count by colour or shape",
    "existence": "existence, yes or no",
    "background": "background",
    "position": "what is at a side",
    "relation": "relation, one word",
    "relation_yes_no": "relation, yes or no",
    "dialogue": "second turn of a dialogue",
}


def table(evaluation: dict[str, Any]) -> str:
    """The accuracy by type as a Markdown table, as wide as a terminal is."""
    rows = [("what is asked", "right", "of", "accuracy"), ("---", "---:", "---:", "---:")]
    for name, label in LABELS.items():
        row = evaluation["types"][name]
        share = f"{row['right'] / row['asked']:.1%}" if row["asked"] else "-"
        rows.append((label, str(row["right"]), str(row["asked"]), share))
    rows.append(("all questions together", "", "", f"{evaluation['overall']:.1%}"))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def card(evaluation: dict[str, Any], training: dict[str, Any]) -> str:
    """The text of the model card."""
    stages = "\n".join(f"- {_stage(stage)}" for stage in training["stages"])
    facts = {"table": table(evaluation), "num_parameters": training["num_parameters"]}
    return _CARD.format(**facts, **evaluation, stages=stages)


def _stage(stage: dict[str, Any]) -> str:
    what = {"tower": "the tower on patch labels", "all": "everything on answers"}[stage["trained"]]
    size = f"{stage['steps']:,} steps of {stage['batch_size']} pictures, seed {stage['seed']}"
    if stage["trained"] == "tower":
        return f"{what}: {size}"
    size = f"{size}, {stage['minutes']:.0f} minutes, rates times {stage['peak']:g}"
    return f"{what}: {size}" + (f" ({stage['note']})" if "note" in stage else "")


def write_card(folder: Path) -> None:
    """Writes README.md into the checkpoint's folder."""
    evaluation = json.loads((folder / "evaluation.json").read_text())
    training = json.loads((folder / "training.json").read_text())
    (folder / "README.md").write_text(card(evaluation, training))


_CARD = """\
# The demo model

A LLaVA of {num_parameters:,} parameters that describes and answers questions about pictures of one
to three coloured shapes. It is for tests and demonstrations: it knows nothing else, and shown a
photograph it talks about shapes. Real work wants a real checkpoint, such as
`llava-hf/llava-1.5-7b-hf`.

## What it is

Transformers' `LlavaForConditionalGeneration`: a CLIP tower (112 px, patches of 14, 128 wide, four
layers of which the last is untrained and not read), a projector of two layers, a Llama (128 wide,
four layers, tied embeddings), a byte-level BPE of 512 tokens. Weights in bfloat16. Prompts as LLaVA-1.5 has them:
`USER: <image>\\n<question> ASSISTANT:`, with `</s>` after each earlier answer. The processor pads
to a square in the mean colour.

## How it was trained

On scenes drawn by `llava_batch/demo/scenes.py` and nothing else, by `llava_batch/demo/training/train.py`,
on two CPU cores. The tower was first pretrained on labels of each patch (colour, shape, size,
centre, background, row, column) that only a drawing program knows; no part of this is how a real
LLaVA comes about. Then everything was trained on captions, questions and dialogues with the loss
on the answers, from the tower on. In this order:

{stages}

The weights are the running average of the last steps. A seed fixes data and start, not the
rounding of a machine: another run gives other weights.

## How well it does

On {num_scenes:,} held-out scenes (seeds from {first_seed}, which training never draws), drawn at
224 px on the short side, about half of them not square; greedy, {dtype}, left-padded batches of
{batch_size}, transformers {transformers}, torch {torch}. Made by
`python -m llava_batch.demo.training.evaluate --write`; the counts are in `evaluation.json`.

{table}

## As a measuring stick

Its accuracy falls clearly when a batch is padded on the right, when pixels are not normalised or
their channels are swapped, when an earlier layer of the tower is read, and, where things stand near
the short edges, when pictures are cropped instead of padded (`tests/test_demo.py`). It does not
fall when the tower's last layer is read in place of the last but one, when BOS is missing, or, on
most scenes, when pictures are cropped: those need tests of their own.

## Limits

Five shapes, six colours, five backgrounds, two sizes, at most three objects, which neither overlap
nor stand directly above one another. Questions worded otherwise than in
`llava_batch/demo/questions.py` may get any answer, and so may pictures more than a third longer
than wide (padding shrinks their objects). Relations are trained where they are clear: near-ties
get an arbitrary answer. Its probabilities were not calibrated.

Licensed as the package is.
"""
