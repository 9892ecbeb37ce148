"""vLLM's CPU build over a file of work; rivals.py runs it in a Python that has vLLM.

As set here: compiled, its OpenMP threads bound to the cores (left unbound it was a quarter slower
on two), prefix caching on, blocks of 32 tokens, so that an image's questions can share 576 of their
581 tokens of prefix where its default blocks of 128 would share 512. Preloading libiomp5, alone or
with tcmalloc, changed nothing that repeats could tell. Nothing of one caption serves another.

An image's own preprocessing happens as the requests are handed over and is not timed; `handover_s`
says how long that took. vLLM may begin to answer meanwhile, which the clock forgives it.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

MAX_TOKENS = 720
CACHE_GIB = 4


def main() -> None:
    """Warm up, write the warm-ups' answers, then answer each round that is asked for on stdin."""
    options = arguments()
    # vLLM reads these when it is imported; its log would follow the last line on stdout.
    os.environ["VLLM_LOGGING_STREAM"] = "ext://sys.stderr"
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(CACHE_GIB)
    cores = sorted(os.sched_getaffinity(0))[: options.threads]
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, cores))
    import vllm

    engine = vllm.LLM(
        str(options.model),
        dtype=options.dtype,
        max_model_len=MAX_TOKENS,
        max_num_seqs=options.slots,
        max_num_batched_tokens=options.batched_tokens,
        block_size=32,
        enable_prefix_caching=True,
        limit_mm_per_prompt={"image": 1},
        disable_log_stats=True,
    )
    with np.load(options.work) as data:
        pixels, work = data["pixels"], json.loads(str(data["work"]))
    answers = {kind: answer(engine, pixels, batches[0])[0] for kind, batches in work.items()}
    options.answers.write_text(json.dumps(answers))
    print(json.dumps({"engine": "vLLM", "version": vllm.__version__}), flush=True)
    for line in sys.stdin:
        kind, repeat = line.split()
        _, seconds, handover = answer(engine, pixels, work[kind][1 + int(repeat)])
        print(json.dumps({"seconds": seconds, "handover_s": handover}), flush=True)


def arguments() -> argparse.Namespace:
    """The command line that rivals.py writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--answers", type=Path, required=True)
    parser.add_argument("--dtype", required=True, choices=("bfloat16", "float32"))
    parser.add_argument("--slots", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--batched-tokens", type=int, default=2048)
    return parser.parse_args()


def answer(
    engine, pixels: np.ndarray, batch: list[dict[str, Any]]
) -> tuple[list[list[int]], float, float]:
    """The batch's answers in order, the seconds they took, and those of handing them over."""
    from vllm import SamplingParams

    prompts = [
        {
            "prompt_token_ids": [*asked["before"], asked["image_token"], *asked["after"]],
            "multi_modal_data": {
                "image": Image.fromarray(pixels[asked["image"]].transpose(1, 2, 0))
            },
        }
        for asked in batch
    ]
    sampling = [
        SamplingParams(
            temperature=0, max_tokens=asked["num_tokens"], ignore_eos=True, detokenize=False
        )
        for asked in batch
    ]
    begin = time.perf_counter()
    ids = engine.enqueue(prompts, sampling, use_tqdm=False)
    handed_over = time.perf_counter()
    done = {
        one.request_id: list(one.outputs[0].token_ids)
        for one in engine.wait_for_completion(use_tqdm=False)
    }
    seconds = time.perf_counter() - handed_over
    # Its engine may put a suffix of its own behind the number that it gave out.
    found = {
        name: next(key for key in done if key.split("-")[0] == name.split("-")[0]) for name in ids
    }
    answers = [done[found[name]] for name in ids]
    for asked, tokens in zip(batch, answers, strict=True):
        if len(tokens) != asked["num_tokens"]:
            raise RuntimeError(
                f"{len(tokens)} tokens answered where {asked['num_tokens']} were asked"
            )
    return answers, seconds, handed_over - begin


if __name__ == "__main__":
    main()
