"""Answers that are JSON of a given schema: the schema read and checked, tokens that break it ruled out.

Needs llguidance (the `json-schema` extra), which turns a schema into a grammar over the tokenizer's
own tokens. JSON is written on one line, with `", "` and `": "` between its parts, so that no answer
is blanks without end. Every answer that stops by itself parses as JSON of the schema; one that
`--max-new-tokens` cut short may not (`is_cut_off`). What a schema's key words allow is
llguidance's affair: those it does not know how to enforce are refused when the job starts.
Knows neither Ray nor the engine.
"""

import importlib.util
import json
from collections.abc import Sequence, Set
from itertools import takewhile
from typing import Any

import numpy as np

from llava_batch.errors import UsageError, first_line
from llava_batch.storage import locate, read_bytes

_LAYOUT: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def read_schema(given: str) -> str:
    """The schema at a path, or given as it is (`{…}`), checked, as JSON on one line.

    What it returns it also takes. Keys keep their order: answers have them in the schema's.

    Raises:
        UsageError: no such file, no JSON object, not a schema that can be enforced, or no llguidance.
    """
    text = given if given.lstrip().startswith("{") else _file(given)
    shown = "the schema given" if text is given else given
    if importlib.util.find_spec("llguidance") is None:
        raise UsageError(
            f"--json-schema {shown}: needs llguidance; pip install 'llava-batch[json-schema]'"
        )
    try:
        schema = json.loads(text)
    except ValueError as error:
        raise UsageError(f"--json-schema {shown}: is not JSON ({error}); correct it") from None
    if not isinstance(schema, dict):
        raise UsageError(f"--json-schema {shown}: is no JSON object; a schema is one, as {{…}}")
    wrong = _why_not(schema)
    if wrong:
        raise UsageError(f"--json-schema {shown}: cannot be enforced ({wrong}); change the schema")
    return json.dumps(schema)


def is_cut_off(answer: str) -> bool:
    """Whether an answer that a token limit ended lacks its end. What closes itself is whole where it
    parses; of a number more digits might have come."""
    try:
        said = json.loads(answer)
    except ValueError:
        return True
    return type(said) in (int, float)


class Constraint:
    """One schema over one tokenizer; made once for each worker (about a second)."""

    def __init__(
        self, schema: str, tokenizer: Any, *, vocab_size: int, end_tokens: Set[int]
    ) -> None:
        """`tokenizer` is a fast one of transformers, `vocab_size` the width of the model's logits."""
        from llguidance import LLMatcher
        from llguidance.hf import from_tokenizer

        width = max(vocab_size, len(tokenizer))
        tokens = from_tokenizer(tokenizer, n_vocab=width, eos_token=sorted(end_tokens))
        self._start = LLMatcher(tokens, _grammar(json.loads(schema)))
        if self._start.is_error():
            raise UsageError(
                f"--json-schema: cannot be enforced ({first_line(self._start.get_error())})"
            )
        self._end_tokens = sorted(end_tokens)

    def processor(self) -> "Walk":
        """The state of one request; its turns and samples may share it."""
        return Walk(self._start.deep_copy(), self._end_tokens)


class Walk:
    """The grammar's place in one request's answers; call it as a logits processor.

    One matcher follows all the answers of a request, back to what two of them share and on from
    there, so that samples that take turns and the turns of a dialogue need no state of their own.
    """

    def __init__(self, matcher: Any, end_tokens: list[int]) -> None:
        self._matcher, self._end_tokens = matcher, end_tokens
        self._taken: list[int] = []
        self.problem: str | None = None
        """Why the grammar gave up, where it did: its limits on size and time. The answers then end."""

    def __call__(self, answer: list[int], logits: Any) -> Any:
        """Logits `[V]` with minus infinity for every token that cannot follow `answer`."""
        import torch

        hidden = torch.from_numpy(self.hidden_tokens(answer, len(logits)))
        return logits.masked_fill(hidden.to(logits.device), float("-inf"))

    def hidden_tokens(self, answer: list[int], size: int) -> np.ndarray:
        """bool `[V]`: which of `size` tokens cannot follow `answer`."""
        return ~self._allowed(answer, size)

    def _allowed(self, answer: Sequence[int], size: int) -> np.ndarray:
        """bool `[V]`: which tokens may follow."""
        if self.problem is None:
            self._move_to(list(answer))
        if self.problem is None:
            packed = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
            bits = np.unpackbits(packed, bitorder="little")[:size].astype(bool)
            allowed = np.zeros(size, dtype=bool)
            allowed[: len(bits)] = bits
            self._note_error()
            if self.problem is None:
                return allowed
        ends = np.zeros(size, dtype=bool)
        ends[self._end_tokens] = True
        return ends

    def _move_to(self, answer: list[int]) -> None:
        pairs = zip(self._taken, answer, strict=False)
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        if shared < len(self._taken):
            self._matcher.rollback(len(self._taken) - shared)
        self._matcher.consume_tokens(answer[shared:])
        self._taken = answer
        self._note_error()

    def _note_error(self) -> None:
        if self._matcher.is_error():
            self.problem = first_line(self._matcher.get_error())


def _grammar(schema: dict[str, Any]) -> str:
    from llguidance import LLMatcher

    return LLMatcher.grammar_from_json_schema(json.dumps(schema), defaults=_LAYOUT)


def _why_not(schema: dict[str, Any]) -> str | None:
    """Why a schema cannot be enforced, or None."""
    from llguidance import LLMatcher

    try:
        bad, said = LLMatcher.validate_grammar_with_warnings(_grammar(schema))
    except ValueError as error:
        return first_line(error)
    return first_line(said[0]) if bad else None


def _file(path: str) -> str:
    at = locate(path)
    data = read_bytes(at.fs, at.path)
    if data is None:
        raise UsageError(f"--json-schema {path}: no such file; check the path")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"--json-schema {path}: is not UTF-8 text; save it as such") from None
