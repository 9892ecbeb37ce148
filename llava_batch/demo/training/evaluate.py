"""Accuracy on held-out scenes: `python -m llava_batch.demo.training.evaluate --model DIR [--write]`.

Runs the checkpoint through transformers' own processor and `generate`, greedy, in float32,
left-padded in batches, over scenes whose seeds training never draws. The first turn of a dialogue
stands in the second's prompt as the model answered it. With `--write` the figures go to
`evaluation.json` beside the weights and the card is made from them; nothing in the card is typed in.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image

from llava_batch.demo import model_path
from llava_batch.demo.questions import CAPTION_PROMPTS, TYPES, Question, dialogue, questions
from llava_batch.demo.scenes import HELD_OUT, Scene, caption, draw, make_scene
from llava_batch.demo.scoring import score_answer, score_caption
from llava_batch.demo.training.card import table, write_card
from llava_batch.demo.training.text import EOS, IMAGE, turn_text

CAPTION_TYPES = ("caption_exact", "caption_objects")
MAX_NEW_TOKENS = 48

Answer = Callable[[Sequence[tuple[Image.Image, str]]], list[str]]  # (picture, prompt) -> answer
Counts = dict[str, dict[str, int]]  # question type -> {"asked": n, "right": n}


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One thing to ask: `earlier` are the turns before the question, as they were answered."""

    scene: Scene
    question: Question
    earlier: tuple[Question, ...] = ()

    @property
    def prompt(self) -> str:
        turns = (*self.earlier, self.question)
        texts = [turn_text(turn.question, first=n == 0) for n, turn in enumerate(turns)]
        answers = [f" {turn.answer}{EOS}" for turn in self.earlier] + [""]
        return f"USER: {IMAGE}" + "".join(t + a for t, a in zip(texts, answers, strict=True))


def held_out(num_scenes: int, *, start: int = 0) -> list[Scene]:
    return [make_scene(HELD_OUT + start + number) for number in range(num_scenes)]


def evaluate(answer: Answer, scenes: Sequence[Scene], *, short_side: int = 224) -> Counts:
    """{type: {"asked": n, "right": n}} over captions, questions and dialogues of the scenes."""
    pictures = {scene.seed: draw(scene, short_side=short_side) for scene in scenes}

    def ask_all(probes: Sequence[Probe]) -> list[str]:
        return answer([(pictures[probe.scene.seed], probe.prompt) for probe in probes])

    counts = {name: {"asked": 0, "right": 0} for name in (*CAPTION_TYPES, *TYPES, "dialogue")}

    def count(name: str, right: bool) -> None:
        counts[name]["asked"] += 1
        counts[name]["right"] += right

    captions = [Probe(scene=scene, question=_caption_question(scene)) for scene in scenes]
    for scene, text in zip(scenes, ask_all(captions), strict=True):
        for name, right in zip(CAPTION_TYPES, score_caption(scene, text), strict=True):
            count(name, right)
    asked = [Probe(scene=scene, question=q) for scene in scenes for q in questions(scene)]
    for probe, text in zip(asked, ask_all(asked), strict=True):
        count(probe.question.type, score_answer(probe.question, text))
    opened = list(_dialogues(scenes))
    firsts = ask_all([Probe(scene=scene, question=turns[0]) for scene, turns in opened])
    seconds = [
        Probe(scene=scene, question=turns[1], earlier=(_answered(turns[0], text),))
        for (scene, turns), text in zip(opened, firsts, strict=True)
    ]
    for probe, text in zip(seconds, ask_all(seconds), strict=True):
        count("dialogue", score_answer(probe.question, text))
    return counts


def _caption_question(scene: Scene) -> Question:
    return Question(type="caption", question=CAPTION_PROMPTS[0], answer=caption(scene))


def _dialogues(scenes: Sequence[Scene]) -> Iterator[tuple[Scene, tuple[Question, ...]]]:
    for scene in scenes:
        turns = dialogue(scene)
        if turns:
            yield scene, turns


def _answered(question: Question, text: str) -> Question:
    return Question(type=question.type, question=question.question, answer=text.strip())


def overall(counts: Counts) -> float:
    """The share of right answers over all question types together, captions apart."""
    asked = sum(row["asked"] for name, row in counts.items() if name not in CAPTION_TYPES)
    right = sum(row["right"] for name, row in counts.items() if name not in CAPTION_TYPES)
    return right / asked


def answerer(folder: Path, *, batch_size: int = 64, dtype: torch.dtype = torch.float32) -> Answer:
    """Greedy answers by transformers' `generate` from the checkpoint in `folder`."""
    model = transformers.LlavaForConditionalGeneration.from_pretrained(folder, dtype=dtype).eval()
    return answerer_of(model, _processor(folder), batch_size=batch_size, dtype=dtype)


def _processor(folder: Path) -> transformers.LlavaProcessor:
    return transformers.AutoProcessor.from_pretrained(folder, backend="pil")


def answerer_of(
    model: transformers.LlavaForConditionalGeneration,
    processor: transformers.LlavaProcessor,
    *,
    batch_size: int = 64,
    dtype: torch.dtype = torch.float32,
) -> Answer:
    """The same with a model and a processor that are loaded."""

    def answer(asked: Sequence[tuple[Image.Image, str]]) -> list[str]:
        # Alike lengths together: padding costs time, and the batches stay left-padded all the same.
        order = sorted(range(len(asked)), key=lambda number: len(asked[number][1]))
        texts = [""] * len(asked)
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            images, prompts = zip(*(asked[number] for number in chosen), strict=True)
            for number, text in zip(chosen, _generate(images, prompts), strict=True):
                texts[number] = text
        return texts

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def _generate(images: Sequence[Image.Image], prompts: Sequence[str]) -> list[str]:
        batch = processor(
            images=list(images), text=list(prompts), padding=True, return_tensors="pt"
        ).to(dtype=dtype)
        ids = model.generate(**batch, do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
        answers = ids[:, batch["input_ids"].shape[1] :]
        texts: list[str] = processor.batch_decode(answers, skip_special_tokens=True)
        return texts

    return answer


def report(counts: Counts, *, num_scenes: int, start: int, batch_size: int) -> dict[str, Any]:
    """What stands in evaluation.json."""
    return {
        "num_scenes": num_scenes,
        "first_seed": HELD_OUT + start,
        "dtype": "float32",
        "batch_size": batch_size,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "overall": overall(counts),
        "types": counts,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=model_path())
    parser.add_argument("--num-scenes", type=int, default=1000)
    parser.add_argument("--start", type=int, default=0, help="offset into the held-out seeds")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--write", action="store_true", help="write evaluation.json and the card")
    args = parser.parse_args()
    answer = answerer(args.model, batch_size=args.batch_size)
    counts = evaluate(answer, held_out(args.num_scenes, start=args.start))
    found = report(counts, num_scenes=args.num_scenes, start=args.start, batch_size=args.batch_size)
    if args.write:
        (args.model / "evaluation.json").write_text(json.dumps(found, indent=1) + "\n")
        write_card(args.model)
    print(table(found))


if __name__ == "__main__":
    main()
