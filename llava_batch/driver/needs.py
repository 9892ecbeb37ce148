"""What a row of a job takes of the engine's memory: the slots are made as long as that.

A row that takes more all the same, a long question or several images, has several slots.
"""

from llava_batch.checkpoint import Checkpoint
from llava_batch.driver.refusals import answer_tokens, prompt_tokens
from llava_batch.driver.settle import Settled
from llava_batch.prompts.asks import shortest_asks

TEXT_TOKENS = 64
"""Left for each text that comes with a row: a column's in a prompt, a question of a column or a file."""
ROUND = 32


def slot_tokens(settled: Settled, checkpoint: Checkpoint) -> int | None:
    """One image of the largest size, the longest of the job's prompts and its answers at their limit; None
    where nothing can be said of them before the rows come."""
    job = settled.job
    fewest, most = checkpoint.image_tokens_range
    more = most - fewest + (len(settled.columns) + (job.questions is not None)) * TEXT_TOKENS
    found = [
        prompt + more + len(turns) * answer_tokens(job, checkpoint)
        for turns in shortest_asks(job, settled.recipe, checkpoint.guards)
        if (prompt := prompt_tokens(job, checkpoint, turns)) is not None
    ]
    return -(-max(found) // ROUND) * ROUND if found else None
