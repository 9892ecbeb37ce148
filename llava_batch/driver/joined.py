"""Which questions joined no image, told from the answers that a run left."""

from collections.abc import Iterator

import pyarrow as pa

from llava_batch.answers.folder import Answers
from llava_batch.prompts.questions.table import Questions


def unjoined(questions: Questions, answers: Answers) -> pa.Table:
    """The questions (rows of the `questions` schema) that no answered image had.

    Every question that joins an image has a row in the answers, good or in error, so the images
    that stand there are looked up again.
    """
    return questions.unmatched(_rows(questions, answers))


def _rows(questions: Questions, answers: Answers) -> Iterator[int]:
    last = None
    for row in answers.rows(["unit", "key", "image_sha256"]):
        image = (row["unit"], row["key"], row["image_sha256"])
        if image != last:  # rows of one image stand together
            unit, key, sha256 = last = image
            yield from (q.row for q in questions.of(unit=unit, key=key, sha256=sha256))
