"""What a LLaVA trainer takes for instruction data, as a check of what was exported."""

from typing import Any


def check_llava(data: Any) -> int:
    """How many conversations there are in a parsed LLaVA file, if a LLaVA trainer would take it.

    Raises:
        ValueError: which entry breaks which rule.
    """
    if not isinstance(data, list):
        raise ValueError("not a JSON list")
    ids: set[str] = set()
    for number, entry in enumerate(data):
        why_not = _why_not(entry)
        if not why_not and entry["id"] in ids:
            why_not = f"id {entry['id']!r} occurs twice"
        if why_not:
            raise ValueError(f"entry {number}: {why_not}")
        ids.add(entry["id"])
    return len(data)


def _why_not(entry: Any) -> str | None:
    if not isinstance(entry, dict) or not {"id", "image", "conversations"} <= entry.keys():
        return "needs id, image and conversations"
    turns = entry["conversations"]
    if not isinstance(turns, list) or not turns or len(turns) % 2:
        return "needs questions and answers in pairs"
    for number, turn in enumerate(turns):
        speaker = ("human", "gpt")[number % 2]
        if not isinstance(turn, dict) or turn.get("from") != speaker:
            return f"turn {number} should be from {speaker}"
        if not isinstance(turn.get("value"), str) or not turn["value"].strip():
            return f"turn {number} says nothing"
        if turn["value"].count("<image>") != (number == 0):
            return f"turn {number} has the wrong number of <image> marks"
    return None
