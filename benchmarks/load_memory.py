"""What loading a model in float32 on CPU takes of memory at its peak, beyond the mapped file.

    python benchmarks/load_memory.py [--layers 16] [--vocab 32000]

A random LLaVA of at least 1 GB in float32 is stored in float16 and in float32, and each is loaded in a process of
its own, whose anonymous memory (Linux' RssAnon; a mapped file's pages are not in it) is looked at every
few milliseconds. The last line is JSON: the weights' bytes in float32, the peak and what stayed, as their multiples.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

WATCH_S = 0.002


def make(folder: str, dtype: str, layers: int, vocab: int) -> None:
    """Store a random model of 1,024 wide layers."""
    import bench_model
    import torch
    from transformers import LlamaConfig, LlavaForConditionalGeneration

    config = bench_model.config("small")
    config.image_token_id = vocab - 1
    config.text_config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=16,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
    )
    torch.set_default_dtype(getattr(torch, dtype))
    LlavaForConditionalGeneration(config).save_pretrained(folder)


def anonymous_bytes() -> int:
    """This process's own memory, files' pages left out."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


@contextmanager
def watched() -> Iterator[list[int]]:
    """The highest figure of `anonymous_bytes` meanwhile, as the one entry of a list."""
    peak, done = [anonymous_bytes()], threading.Event()

    def watch() -> None:
        while not done.wait(WATCH_S):
            peak[0] = max(peak[0], anonymous_bytes())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def measure(folder: str) -> dict[str, float]:
    """Load it in float32, as an engine does."""
    import torch
    import transformers.models.llava.modeling_llava  # noqa: F401 what is imported is not the model's
    from transformers.utils import logging

    from llava_batch.engine import Engine
    from llava_batch.engine.model import memory

    logging.disable_progress_bar()
    weights = memory.weights_bytes(memory.headers(folder), torch.float32)
    before = anonymous_bytes()
    with watched() as peak:
        engine = Engine.load(
            folder, device="cpu", dtype="float32", slots=1, slot_tokens=64, max_tokens=64
        )
    assert engine.num_slots == 1
    stayed = anonymous_bytes() - before
    return {
        "weights_bytes": weights,
        "peak": round((peak[0] - before) / weights, 3),
        "stayed": round(stayed / weights, 3),
    }


def main() -> None:
    """Compare; or do, as a child, one of the two steps."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--vocab", type=int, default=32000)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "float16"])
    parser.add_argument("--make", nargs=2, metavar=("FOLDER", "DTYPE"), help=argparse.SUPPRESS)
    parser.add_argument("--load", metavar="FOLDER", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        folder, dtype = options.make
        make(folder, dtype, options.layers, options.vocab)
    elif options.load:
        print(json.dumps(measure(options.load)))
    else:
        print(json.dumps({"dtype": "float32", "by_stored": compare(options)}))


def compare(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Make and load a model stored in each dtype, in processes of their own."""
    found = {}
    for dtype in options.dtypes:
        with tempfile.TemporaryDirectory() as folder:
            sizes = ["--layers", str(options.layers), "--vocab", str(options.vocab)]
            again = [sys.executable, __file__, *sizes]
            subprocess.run([*again, "--make", folder, dtype], check=True)
            ran = subprocess.run([*again, "--load", folder], check=True, stdout=subprocess.PIPE)
            found[dtype] = json.loads(ran.stdout.splitlines()[-1])
        print(f"stored in {dtype}: {found[dtype]}", flush=True)
    return found


if __name__ == "__main__":
    main()
