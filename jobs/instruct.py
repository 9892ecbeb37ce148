#!/usr/bin/env python3
"""Make instruction data from a corpus of images.

jobs/instruct.py --input shards/ --output out --recipe conversation --export llava
jobs/instruct.py --input shards/ --output out --recipe my_recipe.yaml --export huggingface
jobs/instruct.py --help
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from llava_batch.cli.jobs import job_main

if __name__ == "__main__":
    job_main("instruct")
