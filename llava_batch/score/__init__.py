"""Answers and annotations in, a benchmark's own metric and its submission file out.

    jobs/score.py --answers OUT --benchmark vqav2 --annotations v2_mscoco_val2014_annotations.json

`score.score` is the whole of it as a function. It reads finished answers and never runs a model.
"""
