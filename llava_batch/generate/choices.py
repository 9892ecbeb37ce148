"""Choices: given answers as the model would say them, in the token ids of the whole conversation.

A choice stands where the conversation's format puts an answer, with what that writes between prompt and
answer in front, and closed as that closes an answer, so that "no" is not the beginning of "no way". What
closes it is what the format writes behind the answer up to the first token that stands for no text, or
where there is none all but the blanks at its end; a format that closes with blanks closes nothing.
"""

import re
from dataclasses import dataclass

from llava_batch.checkpoint import Checkpoint
from llava_batch.errors import UsageError
from llava_batch.job import Job
from llava_batch.prompts.guards import IMAGE


@dataclass(frozen=True, kw_only=True)
class Choice:
    """token_ids: what is scored. num_tokens: how many of these are the answer, as it would be decoded."""

    text: str
    token_ids: tuple[int, ...]
    num_tokens: int


def choices_of(job: Job, checkpoint: Checkpoint) -> list[Choice]:
    """The job's choices.

    Raises:
        UsageError: the conversation's format says nothing of answers.
    """
    if not job.choices:
        return []
    try:
        frame = checkpoint.frame(job.template, job.system)
    except UsageError as error:
        raise UsageError(
            f"--choices: how an answer stands in the conversation is not known ({error}); have the "
            "template write the assistant's messages"
        ) from None
    (prompt,) = checkpoint.renderer(job.template)([f"{IMAGE}\nquestion"], job.system)
    close = closing(frame.close, checkpoint.tokenizer.get_added_vocab())
    made = []
    for text in job.choices:
        answer = frame.lead + checkpoint.guards.value(text)
        made.append(
            Choice(
                text=text,
                token_ids=tuple(behind(prompt, answer + close, checkpoint)),
                num_tokens=len(behind(prompt, answer, checkpoint)),
            )
        )
    return made


def closing(close: str, added: dict[str, int]) -> str:
    """As much of what a format writes behind an answer as closes it."""
    longest_first = sorted(added, key=len, reverse=True)
    first = re.search("|".join(map(re.escape, longest_first)), close) if longest_first else None
    return close[: first.end()] if first else close.rstrip()


def behind(prompt: str, text: str, checkpoint: Checkpoint) -> list[int]:
    """The ids of `text` behind those of `prompt`; these are given to the model as they are by themselves."""
    start = checkpoint.encode(prompt, first=True)
    whole = checkpoint.encode(prompt + text, first=True)
    if whole[: len(start)] == start:
        return whole[len(start) :]
    return checkpoint.encode(text, first=False)
