"""Why an answer ends, how much of it stays, and the completion that it leaves as. Plain Python.

A stop string may begin in the middle of a token: `token_ids` then ends before that token, while
`text` keeps the part of it that stands before the stop string.
"""

from collections.abc import Callable
from dataclasses import dataclass

from llava_batch.engine.request import Completion
from llava_batch.engine.sequence import Sequence
from llava_batch.engine.validate import errors

Decode = Callable[[list[int]], str]
"""Token ids to text. What a token reads as may depend on its close neighbours, the bytes of a character with
it, and on whether it comes first; on nothing else."""

LOST = "\ufffd"
"""What bytes that are no whole character are decoded to."""
MARGIN = 8
"""More characters than a tokenizer adds, drops or joins at either end of what it decodes."""


@dataclass(frozen=True, kw_only=True)
class Ending:
    """`reason` is `stop` or `length`; the answer is the first `num_tokens`."""

    reason: str
    num_tokens: int
    text: str | None = None


def ending(sequence: Sequence, end_tokens: frozenset[int], decode: Decode | None) -> Ending | None:
    """How the current answer ends with the token that it got last, or None if it goes on."""
    request, answer = sequence.request, sequence.answer
    strings = [stop for stop in request.stop if isinstance(stop, str)]

    def text(num_tokens: int) -> str | None:
        return decode(answer[:num_tokens]) if strings and decode else None

    if answer[-1] in end_tokens and not request.ignore_eos:
        return Ending(reason="stop", num_tokens=len(answer) - 1, text=text(len(answer) - 1))
    for stop in request.stop:
        if not isinstance(stop, str) and answer[-len(stop) :] == list(stop):
            kept = len(answer) - len(stop)
            return Ending(reason="stop", num_tokens=kept, text=text(kept))
    if strings and decode:
        found = stop_string(answer, strings, decode)
        if found is not None:
            return found
    if len(answer) >= request.max_new_tokens:
        return Ending(reason="length", num_tokens=len(answer), text=text(len(answer)))
    return None


def stop_string(answer: list[int], strings: list[str], decode: Decode) -> Ending | None:
    """The earliest stop string in the decoded answer, none being in that of its tokens but the last."""
    if not may_end(answer, strings, decode):
        return None
    whole = decode(answer)
    places = [whole.find(stop) for stop in strings]
    begin = min((place for place in places if place >= 0), default=-1)
    if begin < 0:
        return None
    kept = len(answer) - 1
    while kept > 0 and len(decode(answer[:kept])) > begin:
        kept -= 1
    return Ending(reason="stop", num_tokens=kept, text=whole[:begin])


def may_end(answer: list[int], strings: list[str], decode: Decode) -> bool:
    """Whether a stop string may end in what the last token has changed of the text; False is certain.

    Only so many of the last tokens are decoded as make that text: what they begin with may read otherwise
    than in the whole (a blank too few, characters cut apart), so some characters more are asked for.
    """
    if any(LOST in string for string in strings):
        return True  # which tokens are read decides where these stand
    needed = max(map(len, strings)) + len(decode(answer[-1:])) + MARGIN
    size = needed
    while size < len(answer):
        text = decode(answer[-size:])
        if len(text.lstrip(LOST)) >= needed:
            return any(string in text for string in strings)
        size *= 2
    return True


def answered(sequence: Sequence, end: Ending) -> Completion:
    """The current turn's answer, which has been cut to its end."""
    logprobs = sequence.logprobs
    return Completion(
        id=sequence.request.id,
        turn=sequence.turn,
        sample=sequence.sample,
        token_ids=tuple(sequence.answer),
        finish_reason=end.reason,
        mean_logprob=sum(logprobs) / len(logprobs) if logprobs else None,
        text=end.text,
    )


def failed(sequence: Sequence, code: str, message: str) -> list[Completion]:
    """The current turn, and those that were still to come, in error."""
    return [
        completion
        for completion in errors(sequence.request, code, message)
        if completion.sample == sequence.sample and completion.turn >= sequence.turn
    ]
