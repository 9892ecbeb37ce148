"""What the workers left word of, asked of the shared state at a run's end, and waited for a while only."""

from dataclasses import dataclass, field
from typing import Any

from llava_batch.errors import first_line

WAIT_S = 30.0
HURRIED_WAIT_S = 1.0
"""`ray job stop` kills three seconds after its signal."""

_FIGURES = "figures of the stages, of rows that lost nodes had in hand, and thumbnails"
"""What nobody else knows: Ray hands rows to workers without the driver, and takes them up again without it."""


@dataclass(frozen=True, kw_only=True)
class Heard:
    """Counters by stage, thumbnails, and what is missing from them, in a sentence."""

    stages: dict[str, dict[str, float]] = field(default_factory=dict)
    thumbnails: list[tuple[int, str, bytes]] = field(default_factory=list)
    lost: dict[str, int] = field(default_factory=dict)
    """Rows that lost nodes had in hand, by node, and that were taken up again."""
    missing: str | None = None


def hear(shared: Any, *, wait_s: float = WAIT_S) -> Heard:
    """Never raises: answers do not pass through the shared state, and what is lost there is figures."""
    import ray
    from ray.exceptions import RayError

    asked = [shared.stages, shared.thumbnails, shared.lost, shared.began_anew]
    try:
        stages, thumbnails, rows, anew = ray.get([ask.remote() for ask in asked], timeout=wait_s)
    except RayError as error:
        what = f"the workers' shared state did not answer ({first_line(error)})"
        return Heard(missing=f"{what}: {_FIGURES} are missing, no answer is")
    what = "the workers' shared state was lost on the way and began anew"
    return Heard(
        stages=stages,
        thumbnails=thumbnails,
        lost=rows,
        missing=f"{what}: {_FIGURES} of before are missing, no answer is" if anew else None,
    )
