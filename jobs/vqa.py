#!/usr/bin/env python3
"""Ask questions of every image of a corpus.

jobs/vqa.py --input shards/ --output out --question 'How many people?' --question 'Indoors?'
jobs/vqa.py --input shards/ --output out --question-column question
jobs/vqa.py --input images/ --output out --questions questions.jsonl --preset vqav2
jobs/vqa.py --input shards/ --output out --question 'What is it?' --question 'Why?' --dialogue
jobs/vqa.py --help
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from llava_batch.cli.jobs import job_main

if __name__ == "__main__":
    job_main("vqa")
