"""What quantizing costs: the demo model's held-out scenes in float32, bfloat16 and each quantization.

    python benchmarks/quantization.py                        all that runs here, 400 scenes
    python benchmarks/quantization.py --scenes 1000 --kinds float32 nf4 --device cuda

Captions, questions and dialogues of scenes that no training drew, through the engine. A row: what the
weights take on the device, the questions answered right, the captions right word for word, and the
answers that are letter for letter those of float32. What cannot be had on the device is named with the
reason. Quantized, the rest of the model is in `--dtype`. Of a real checkpoint's losses a model of
1.4 M parameters says little: it shows that the products are right. The last line is JSON.
"""

import argparse
import json
import time
from typing import Any

import torch
from agreement import Answers

from llava_batch.demo import model_path
from llava_batch.demo.training.evaluate import evaluate, held_out, overall
from llava_batch.engine.model import memory
from llava_batch.engine.model.quantize import NAMES

DTYPES = ("float32", "bfloat16")


def measured(kind: str, scenes: list, **options: Any) -> tuple[dict[str, Any], list[str]]:
    """The figures of one kind, and all its answers."""
    how = {"dtype": kind} if kind in DTYPES else {"quantization": kind}
    answers = Answers(**(options | how))
    started = time.perf_counter()
    counts = evaluate(answers, scenes)
    captions = counts["caption_exact"]
    figures = {
        "kind": kind,
        "dtype": str(answers.engine.llava.dtype).removeprefix("torch."),
        "weights_bytes": memory.weights_bytes(
            memory.headers(model_path()), answers.engine.llava.dtype, how.get("quantization")
        ),
        "right": overall(counts),
        "captions_exact": captions["right"] / captions["asked"],
        "seconds": time.perf_counter() - started,
    }
    return figures, answers.texts


def row(figures: dict[str, Any]) -> str:
    """A line of the table."""
    return (
        f"| {figures['kind']} | {figures['weights_bytes'] / 2**20:.2f} MiB "
        f"| {figures['right']:.2%} | {figures['captions_exact']:.2%} "
        f"| {figures['as_float32']:.2%} | {figures['seconds']:.0f} s |"
    )


def main() -> None:
    """Measure, print a table, end with one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=400)
    parser.add_argument("--kinds", nargs="+", default=[*DTYPES, *NAMES], choices=[*DTYPES, *NAMES])
    parser.add_argument("--dtype", default="auto", help="of what is not quantized")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--slots", type=int, default=16)
    options = parser.parse_args()
    scenes = held_out(options.scenes)
    settings = {name: getattr(options, name) for name in ("dtype", "device", "slots")}
    found, left_out, reference = [], {}, None
    print("| weights | of the model | questions right | captions right | as float32 | took |")
    print("|---|---|---|---|---|---|")
    for kind in ("float32", *(kind for kind in options.kinds if kind != "float32")):
        try:
            figures, texts = measured(kind, scenes, **settings)
        except ValueError as error:
            left_out[kind] = str(error)
            continue
        reference = reference or texts
        same = sum(a == b for a, b in zip(texts, reference, strict=True))
        figures["as_float32"] = same / len(texts)
        found.append(figures)
        print(row(figures), flush=True)
    for kind, why in left_out.items():
        print(f"{kind} is left out: {why}")
    print(json.dumps(settings | {"scenes": options.scenes, "answers": len(reference or ()),
                                 "torch": torch.__version__, "threads": torch.get_num_threads(),
                                 "kinds": found, "left_out": left_out}))  # fmt: skip


if __name__ == "__main__":
    main()
