"""Tokens: one segment of a conversation → token ids, as the whole conversation would have them.

Two things keep this from being one call of the tokenizer. What is guarded must not become a special
token, and must not be set apart from the text around it either; and tokenizers after SentencePiece's
fashion put a space in front of whatever they are given, which a segment behind an answer must not get.
Added tokens are found by their text: `lstrip`, `rstrip` and `single_word` count only where nothing
is guarded. What an answer's last token would merge with is not known; the model's tokens stand.
"""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from llava_batch.prompts.guards import split_guarded


class SegmentTokenizer:
    """Tokenizes segments with a tokenizer that is backed by the `tokenizers` library."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        added = sorted(tokenizer.get_added_vocab(), key=len, reverse=True)
        self._added = re.compile("|".join(map(re.escape, added)) or "(?!)")
        self._opening = _without_added(tokenizer, _leave)
        self._after_added = _without_added(tokenizer, _prefix_not_after_added)
        self._inside = _without_added(tokenizer, _prefix_never)

    def ids(self, segment: str, *, first: bool) -> list[int]:
        """Token ids; `first` puts the one BOS in front, unless the text begins with it."""
        bos = self._tokenizer.bos_token
        add_bos = first and not (bos and segment.startswith(bos))
        pieces = split_guarded(segment)
        if not any(guarded for _, guarded in pieces) and (first or self._added.match(segment)):
            whole: list[int] = self._tokenizer(segment, add_special_tokens=add_bos).input_ids
            return whole
        ids: list[int] = self._tokenizer("", add_special_tokens=add_bos).input_ids
        backend = self._opening if first else self._inside
        for text, is_added in self._runs(pieces):
            if is_added:
                ids.append(self._tokenizer.convert_tokens_to_ids(text))
                backend = self._after_added
            else:
                ids += backend.encode(text, add_special_tokens=False).ids
        return ids

    def _runs(self, pieces: list[tuple[str, bool]]) -> Iterator[tuple[str, bool]]:
        """(text, is an added token) in order; guarded text is one run with what stands beside it."""
        run = ""
        for piece, guarded in pieces:
            end = 0
            for found in self._added.finditer(piece) if not guarded else ():
                if run := run + piece[end : found.start()]:
                    yield run, False
                yield found[0], True
                run, end = "", found.end()
            run += piece[end:]
        if run:
            yield run, False


def _without_added(tokenizer: Any, edit: Callable[[dict[str, Any]], None]) -> Any:
    """The same model without added tokens, each part of its normalizer and pre-tokenizer edited."""
    from tokenizers import Tokenizer

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state |= {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    for part in (*_parts(state["normalizer"]), *_parts(state["pre_tokenizer"])):
        edit(part)
    return Tokenizer.from_str(json.dumps(state))


def _parts(part: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    if part is not None:
        yield part
        for nested in part.get("normalizers", part.get("pretokenizers", ())):
            yield from _parts(nested)


def _leave(part: dict[str, Any]) -> None:
    """The start of a text."""


def _prefix_not_after_added(part: dict[str, Any]) -> None:
    """Behind an added token; of the schemes that put a space in front only `first` knows that."""
    if part["type"] == "Metaspace" and part["prepend_scheme"] == "first":
        part["prepend_scheme"] = "never"


def _prefix_never(part: dict[str, Any]) -> None:
    """Behind text."""
    if part["type"] == "Metaspace":
        part["prepend_scheme"] = "never"
    elif part["type"] == "Prepend":
        part["prepend"] = ""
    elif part["type"] == "ByteLevel":
        part["add_prefix_space"] = False
