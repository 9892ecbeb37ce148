#!/usr/bin/env python3
"""Ask the same images with two prompts, and look at where the answers differ.

examples/compare_prompts.py                       # the demo model over freshly drawn scenes
examples/compare_prompts.py photos/ comparison/ llava-hf/llava-1.5-7b-hf
"""

import argparse
from pathlib import Path

from llava_batch import Job, run
from llava_batch.demo.shards import write_shards
from llava_batch.report import write_report

PROMPTS = {"plain": "Describe the image.", "counting": "How many objects are there?"}


def main(images: str | None, folder: str, model: str = "demo") -> None:
    """Two runs over `images` (drawn scenes where none are given) and one page about both."""
    out = Path(folder)
    if images is None:
        inputs = tuple(map(str, write_shards(out / "shards", count=24, seed=7)))
    else:
        inputs = (images,)
    for name, prompt in PROMPTS.items():
        run(Job(input=inputs, output=str(out / name), model=model, prompt=prompt, quiet=True))
    print(write_report([str(out / name) for name in PROMPTS]))


if __name__ == "__main__":
    given = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    given.add_argument("images", nargs="?", help="folder, shard or URI (default: drawn scenes)")
    given.add_argument("folder", nargs="?", default="demo-out/prompts", help="for the answers")
    given.add_argument("model", nargs="?", default="demo")
    main(**vars(given.parse_args()))
