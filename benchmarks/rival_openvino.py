"""OpenVINO GenAI's continuous batching over a file of work; rivals.py runs it in its own Python.

Its best setting found on two cores: the dtype as inference precision; for captions no prefix
caching; for questions prefix caching, and an image's further questions handed over only once its
first one has a token, because it looks for a cached prefix when a request enters (all at once, it
finds none and answers fewer than half as many). It still encodes the image for each question.
In bfloat16 the K/V cache stays at its default of 8-bit integers, which favours it; in float32 the
cache is float32.

Handing a request over encodes its image, so that everything but reading the work is timed.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai as genai

CACHE_GIB = 4
PRECISION = {
    "bfloat16": {"INFERENCE_PRECISION_HINT": "bf16"},
    "float32": {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"},
}


def main() -> None:
    """Export, warm up, write the warm-ups' answers, then answer each round that is asked for on stdin."""
    options = arguments()
    export(options.model, options.model.with_name("openvino"))
    with np.load(options.work) as data:
        pixels, work = data["pixels"], json.loads(str(data["work"]))
    pipelines = {kind: load(options, prefix_caching=kind == "questions") for kind in work}
    answers = {
        kind: answer(pipelines[kind], pixels, batches[0], options.slots)[0]
        for kind, batches in work.items()
    }
    options.answers.write_text(json.dumps(answers))
    print(json.dumps({"engine": "OpenVINO GenAI", "version": genai.__version__}), flush=True)
    for line in sys.stdin:
        kind, repeat = line.split()
        batch = work[kind][1 + int(repeat)]
        _, seconds = answer(pipelines[kind], pixels, batch, options.slots)
        print(json.dumps({"seconds": seconds}), flush=True)


def arguments() -> argparse.Namespace:
    """The command line that rivals.py writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--answers", type=Path, required=True)
    parser.add_argument("--dtype", required=True, choices=tuple(PRECISION))
    parser.add_argument("--slots", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--batched-tokens", type=int, default=2048)
    return parser.parse_args()


def export(model: Path, folder: Path) -> None:
    """The checkpoint in OpenVINO's format, the weights as float32: it rounds them as it loads."""
    command = [sys.executable, "-m", "optimum.commands.optimum_cli", "export", "openvino"]
    command += ["--model", str(model), "--task", "image-text-to-text"]
    command += ["--weight-format", "fp32", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    if done.returncode:
        raise RuntimeError(f"the export failed:\n{(done.stdout + done.stderr)[-3000:]}")


def load(options: argparse.Namespace, *, prefix_caching: bool) -> genai.ContinuousBatchingPipeline:
    """The pipeline over the exported model."""
    scheduler = genai.SchedulerConfig()
    scheduler.max_num_seqs = options.slots
    scheduler.max_num_batched_tokens = options.batched_tokens
    scheduler.cache_size = CACHE_GIB
    scheduler.enable_prefix_caching = prefix_caching
    properties = PRECISION[options.dtype] | {"INFERENCE_NUM_THREADS": options.threads}
    tower = {name: value for name, value in properties.items() if name != "KV_CACHE_PRECISION"}
    folder = options.model.with_name("openvino")
    return genai.ContinuousBatchingPipeline(str(folder), scheduler, "CPU", properties, {}, tower)


def answer(
    pipeline: genai.ContinuousBatchingPipeline,
    pixels: np.ndarray,
    batch: list[dict[str, Any]],
    slots: int,
) -> tuple[list[list[int]], float]:
    """The batch's answers in order, and the seconds they took."""
    requests = [request(pixels, asked) for asked in batch]
    images = [asked["image"] for asked in batch]
    first = {image: images.index(image) for image in images}
    waiting = sorted(range(len(batch)), key=lambda number: number != first[images[number]])
    handles: dict[int, genai.GenerationHandle] = {}
    begin = time.perf_counter()
    while waiting or pipeline.has_non_finished_requests():
        running = sum(
            handle.get_status() == genai.GenerationStatus.RUNNING for handle in handles.values()
        )
        # Twice the slots, so that none is ever empty while a request waits.
        while waiting and running < 2 * slots:
            leader = handles.get(first[images[waiting[0]]])
            if leader is not None and not leader.can_read():
                break
            number = waiting.pop(0)
            handles[number] = pipeline.add_request(number, *requests[number])
            running += 1
        pipeline.step()
    seconds = time.perf_counter() - begin
    answers = [handles[number].read_all()[0].generated_ids for number in range(len(batch))]
    for asked, tokens in zip(batch, answers, strict=True):
        if len(tokens) != asked["num_tokens"]:
            raise RuntimeError(
                f"{len(tokens)} tokens answered where {asked['num_tokens']} were asked"
            )
    return answers, seconds


def request(
    pixels: np.ndarray, asked: dict[str, Any]
) -> tuple[str, list[openvino.Tensor], genai.GenerationConfig]:
    """Prompt, image and settings; the tokenizer puts the start token before the words."""
    before, after = ([f"t{token}" for token in asked[part]] for part in ("before", "after"))
    settings = genai.GenerationConfig()
    settings.max_new_tokens = asked["num_tokens"]
    settings.ignore_eos = True
    settings.do_sample = False
    settings.apply_chat_template = False
    image = np.ascontiguousarray(pixels[asked["image"]].transpose(1, 2, 0)[None])
    return " ".join([*before[1:], "<image>", *after]), [openvino.Tensor(image)], settings


if __name__ == "__main__":
    main()
