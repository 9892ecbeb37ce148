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
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

MAX_TOKENS = 720
CACHE_GIB = 4


def main() -> None:
    """Warm up, time the repeats, write the warm-ups' answers, end with a line of JSON."""
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
    answers: dict[str, list[list[int]]] = {}
    result: dict[str, Any] = {"engine": "vLLM", "version": vllm.__version__}
    result |= {"repeats": {}, "handover_s": {}}
    for kind, (warm_up, *repeats) in work.items():
        answers[kind] = answer(engine, pixels, warm_up)[0]
        timed = [(batch, *answer(engine, pixels, batch)[1:]) for batch in repeats]
        result["repeats"][kind] = [len(batch) / seconds for batch, seconds, _ in timed]
        result["handover_s"][kind] = [handover for *_, handover in timed]
    options.answers.write_text(json.dumps(answers))
    print(json.dumps(result))


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
