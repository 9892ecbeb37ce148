"""How fast a run was and where its time went, from what was counted: pure figures.

Start-up (actors, the model) is told apart: a stage is idle only where it could have worked.
"""

from typing import Any

from llava_batch.write.tally import Tally


def throughput(
    tally: Tally,
    taken_up: Tally | None,
    started: float,
    wall_s: float,
    history: list[tuple[float, int]],
    stages: dict[str, dict[str, float]],
) -> dict[str, Any]:
    """Of a run that began at `started` (Unix time), took `wall_s`, and answered what is in `tally` beyond
    what was `taken_up`; `history` are its pairs of seconds and images, `stages` the counters that the
    workers left, which get their `busy_share` here."""
    seconds, taken_up = max(wall_s, 1e-9), taken_up or Tally()
    startup_s = _startup_s(stages, started, _first_answers_s(history) or wall_s)
    working_s = max(wall_s - (startup_s or 0.0), 1e-9)
    for counters in stages.values():
        share = counters["busy_s"] / working_s / max(counters["workers"], 1)
        counters["busy_share"] = min(share, 1.0)
    generate = stages.get("generate", {})
    slot_steps = generate.get("slot_steps", 0)
    return {
        "startup_s": startup_s,
        "images_per_s": (tally.images - taken_up.images) / seconds,
        "answers_per_s": (tally.rows - taken_up.rows) / seconds,
        "answer_tokens_per_s": (tally.answer_tokens - taken_up.answer_tokens) / seconds,
        "stages": stages,
        "slot_occupancy": generate["occupied_slot_steps"] / slot_steps if slot_steps else None,
        "bottleneck": max(stages, key=lambda s: _busy_s(stages[s])) if stages else None,
        "over_time": history,
    }


def _startup_s(
    stages: dict[str, dict[str, float]], started: float, latest_s: float
) -> float | None:
    """Seconds until the first generating worker had loaded its model, by that worker's clock, and no
    later than `latest_s`; None where none has said so. Takes it out of `stages`."""
    ready_at = stages.get("generate", {}).pop("first_ready_at", None)
    return None if ready_at is None else round(min(max(ready_at - started, 0.0), latest_s), 3)


def _first_answers_s(history: list[tuple[float, int]]) -> float | None:
    """When the first images had been answered, as far as anybody looked."""
    return next((t for t, n in history if n), None)


def _busy_s(counters: dict[str, float]) -> float:
    return counters["busy_s"] / max(counters["workers"], 1)
