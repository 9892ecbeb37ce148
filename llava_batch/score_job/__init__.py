"""Answers and annotations in, a benchmark's own metric and its submission file out.

    jobs/score.py --answers OUT --benchmark vqav2 --annotations v2_mscoco_val2014_annotations.json

`score` is the whole of it as a function, `app` and `main` the command line. It reads finished
answers and never runs a model.
"""

from llava_batch.score_job.cli import app, main
from llava_batch.score_job.run import score

__all__ = ["app", "main", "score"]
