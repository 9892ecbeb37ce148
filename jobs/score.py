#!/usr/bin/env python3
"""Score a run's answers by a benchmark's own metric, or export them for its evaluator.

jobs/score.py --answers OUT --benchmark vqav2 --annotations v2_mscoco_val2014_annotations.json
jobs/score.py --answers OUT --benchmark mmbench --annotations mmbench.tsv --export mmbench.xlsx
jobs/score.py --help
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from llava_batch.cli.jobs import job_main

if __name__ == "__main__":
    job_main("score")
