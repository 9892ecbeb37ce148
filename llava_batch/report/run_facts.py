"""What `_run.json` says of a run, taken as it is found.

Any key may be missing or null: a run may be going on, have been killed, or be of another version.
What is not there is None or empty, and the page leaves it out. Credentials in URIs are taken out.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from llava_batch.job import Job, flag_name, job_fields
from llava_batch.storage import without_credentials

_MOST_SPANS = 60
_LEAST_SPAN_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One setting of the run as a flag with its value; `given` where it is not the default."""

    flag: str
    value: str
    help: str
    given: bool


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of the pipeline: the share of its workers' time that it was busy."""

    name: str
    busy_share: float
    rows: int | None
    workers: int | None
    is_bottleneck: bool


def text(run: dict[str, Any], *path: str) -> str | None:
    """The text at `path`, or None."""
    found = _at(run, path)
    return without_credentials(found) if isinstance(found, str) and found else None


def number(run: dict[str, Any], *path: str) -> float | None:
    """The finite number at `path`, or None."""
    return _finite(_at(run, path))


def startup_s(run: dict[str, Any]) -> float | None:
    """Seconds of start-up; None where they are not known, or all that there was."""
    startup, wall = number(run, "throughput", "startup_s"), number(run, "wall_s")
    return startup if startup and wall and startup < wall else None


def speed(run: dict[str, Any], name: str) -> float | None:
    """A rate of `throughput` in the time after start-up."""
    rate, wall = number(run, "throughput", name), number(run, "wall_s")
    startup = startup_s(run)
    if rate is None or wall is None or startup is None:
        return rate
    return rate * wall / (wall - startup)


def texts(run: dict[str, Any], *path: str) -> list[str]:
    """The texts of the list at `path`; empty where there is none."""
    found = _at(run, path)
    return [text for text in found if isinstance(text, str)] if isinstance(found, list) else []


def mapping(run: dict[str, Any], *path: str) -> dict[str, str]:
    """The object at `path` as texts; empty where there is none."""
    found = _at(run, path)
    return {str(k): _shown(v) for k, v in found.items()} if isinstance(found, dict) else {}


def settings(run: dict[str, Any]) -> list[Setting]:
    """The run's settings in the order of `Job`, unknown ones last."""
    held = _at(run, ("settings",))
    if not isinstance(held, dict):
        return []
    known = {f.name: f for f in job_fields()}
    defaults = Job().settings()
    names = [n for n in known if n in held] + sorted(n for n in held if n not in known)
    return [
        Setting(
            flag=flag_name(name),
            value=_shown(held[name]),
            help=known[name].metadata["help"] if name in known else "",
            given=name not in defaults or held[name] != defaults[name],
        )
        for name in names
    ]


def stages(run: dict[str, Any]) -> list[Stage]:
    """The stages in the order of the pipeline, those whose share of busy time is known."""
    held = _at(run, ("throughput", "stages"))
    if not isinstance(held, dict):
        return []
    order = [n for n in ("read", "prepare", "generate", "write") if n in held]
    slowest = text(run, "throughput", "bottleneck")
    found = []
    for name in [*order, *(n for n in held if n not in order)]:
        share = number(held, name, "busy_share")
        if share is None:
            continue
        rows, workers = number(held, name, "rows"), number(held, name, "workers")
        found.append(
            Stage(
                name=name,
                busy_share=min(max(share, 0.0), 1.0),
                rows=None if rows is None else int(rows),
                workers=None if workers is None else int(workers),
                is_bottleneck=name == slowest,
            )
        )
    return found


def rates(run: dict[str, Any]) -> list[tuple[float, float]]:
    """(seconds since the start, images/s in the span up to then), in at most 60 spans of one length.

    Spans are at least 5 s long where the run is: answers come in batches, and the rate within one
    batch's coming says nothing.
    """
    held = _at(run, ("throughput", "over_time"))
    points = [_point(p) for p in held] if isinstance(held, list) else []
    done = sorted({(0.0, 0.0), *(p for p in points if p is not None and p[0] > 0)})
    end = done[-1][0]
    if not end:
        return []
    num_spans = min(max(int(end / _LEAST_SPAN_S), 1), _MOST_SPANS)
    edges = np.linspace(0.0, end, num_spans + 1)
    images = np.interp(edges, [t for t, _ in done], [n for _, n in done])
    speeds = np.diff(images) * num_spans / end
    return [
        (round(float(t), 2), round(float(v), 4)) for t, v in zip(edges[1:], speeds, strict=True)
    ]


def _at(run: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        run = run.get(name) if isinstance(run, dict) else None
    return run


def _finite(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def _point(pair: Any) -> tuple[float, float] | None:
    if not isinstance(pair, list) or len(pair) != 2:
        return None
    seconds, images = _finite(pair[0]), _finite(pair[1])
    return None if seconds is None or images is None else (seconds, images)


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return "\n".join(_shown(v) for v in value) or "none"
    if isinstance(value, dict):
        return "\n".join(f"{k}: {_shown(v)}" for k, v in value.items()) or "none"
    return without_credentials(str(value)) or "(empty)"
