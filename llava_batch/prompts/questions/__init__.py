"""A questions file as a flat Arrow table, and the questions of one image looked up in it.

    questions = read_questions("questions.jsonl")               # in the driver, once
    questions.of(unit="00000", key="COCO_val2014_000000000042")   # in a worker, for each image

The table holds names of images, never images, and is sorted by join key, so that a look-up is a
binary search and a copy sent to workers is shared memory. It does not know which images exist:
what joined nothing is known only once all images were looked up.
"""

from llava_batch.prompts.questions.join import closeness, join_key
from llava_batch.prompts.questions.table import Question, Questions, read_questions

__all__ = ["Question", "Questions", "closeness", "join_key", "read_questions"]
