#!/usr/bin/env python3
"""Caption every image of a corpus.

jobs/caption.py                                             the demo: drawn scenes, tiny model
jobs/caption.py --input shards/ --output out --model llava-hf/llava-1.5-7b-hf
jobs/caption.py --input 's3://lake/{00000..00099}.tar' --output s3://lake/captions
ray job submit --working-dir . -- jobs/caption.py --input /data/shards --output /data/captions
jobs/caption.py --help
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from llava_batch.cli.jobs import job_main

if __name__ == "__main__":
    job_main("caption")
