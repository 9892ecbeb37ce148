"""What came of a run: `Summary`, and `_run.json`, which says the same to other programs."""

import json
import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from llava_batch.answers import thumbnails
from llava_batch.driver.heard import HURRIED_WAIT_S, WAIT_S, Heard, hear
from llava_batch.driver.joined import Joined, unjoined
from llava_batch.driver.nodes import Change, NodeWatch
from llava_batch.driver.plan import Plan
from llava_batch.driver.remaining import Left
from llava_batch.driver.several_images import SeveralImages
from llava_batch.driver.sizing import Sizing
from llava_batch.driver.throughput import throughput
from llava_batch.errors import counted
from llava_batch.storage import without_credentials, write_whole
from llava_batch.version import __version__
from llava_batch.workers.shared_state import NUM_THUMBNAILS
from llava_batch.write.committer import Committer
from llava_batch.write.publish.target import lake_table
from llava_batch.write.record import Record
from llava_batch.write.tally import Tally

MANY_ROWS = 100
"""A run of so many rows without a good one has failed, whatever it is; one of fewer may be a night's."""

_PACKAGES = ("torch", "transformers", "tokenizers", "ray", "pyarrow", "pillow", "webdataset")


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One run in figures. `run` counts this run alone, `totals` the whole output folder."""

    status: str
    """`complete`, `stopped` or `dry run`; a complete run may still have failed units."""
    output: str
    started_at: str
    finished_at: str
    wall_s: float
    model: str
    fingerprint: str
    settings: dict[str, Any]
    run: dict[str, Any]
    totals: dict[str, Any]
    throughput: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    outlook: dict[str, Any] = field(default_factory=dict)
    """What was to be done when the run began."""
    notes: list[str] = field(default_factory=list)
    """What is missing from the figures, in sentences."""
    published: list[dict[str, Any]] = field(default_factory=list)
    """What came of each `--publish`; none of one that failed, or of a run that did not end."""
    nodes: dict[str, Any] = field(default_factory=dict)
    """Those of the cluster that were lost during the run, and those that joined."""

    def problem(self, max_error_rate: float | None) -> str | None:
        """Why the run failed, in a line, or None; without a rate, one good row is enough, and in a
        run of fewer than `MANY_ROWS` none is needed."""
        failed = self.run["units_failed"]
        if failed:
            name, what = next(iter(failed.items()))
            return (
                f"{counted(len(failed), 'unit')} could not be read or written, {name} first: {what}; "
                "left open, and the rest is committed; run again to answer what is missing"
            )
        images, unasked = self.run.get("images", 0), self.run.get("images_without_question", 0)
        if images and unasked == images and not (self.totals["rows"] or self.settings["limit"]):
            return f"{unjoined(images)}; nothing was answered"
        rows, errors = self.run["rows"], self.run["rows"] - self.run["ok"]
        codes = ", ".join(f"{n} {code}" for code, n in self.run["errors"].items())
        if max_error_rate is None:
            if errors == rows >= MANY_ROWS:
                return f"all {rows} rows are in error ({codes}); give --max-error-rate 1 to let that pass"
        elif rows and errors / rows > max_error_rate:
            return (
                f"{errors} of {rows} rows are in error ({codes}), more than --max-error-rate "
                f"{max_error_rate:g} allows; the rest is committed"
            )
        return None


def summarise(
    plan: Plan,
    sizing: Sizing | None,
    committer: Committer | None,
    history: list[tuple[float, int]],
    started: float,
    *,
    status: str,
    shared: Any = None,
    joined: Joined | None = None,
    several: SeveralImages | None = None,
    published: list[dict[str, Any]] | None = None,
    nodes: NodeWatch | None = None,
    left: Left | None = None,
) -> Summary:
    """Gather the run's figures; where it answered anything, write `_run.json` and the thumbnails.

    A run without a committer was a dry one, or found nothing to do: what the last one wrote stands.
    Of a stopped run only what is at hand: its process may have three seconds to live.
    """
    summary = _summary(plan, sizing, committer, started, status)
    summary.published.extend(published or [])
    if committer is None:
        return summary
    heard = hear(shared, wait_s=HURRIED_WAIT_S if status == "stopped" else WAIT_S)
    summary.notes.extend([heard.missing] if heard.missing else [])
    summary.nodes.update(_nodes(nodes, heard))
    summary.throughput.update(
        throughput(
            committer.tally, committer.taken_up, started, summary.wall_s, history, heard.stages
        )
    )
    summary.throughput["left"] = (left or Left(None, None)).as_json()
    summary.run.update(_questions(plan, committer.tally, joined, several, status))
    _write(plan, "_run.json", (json.dumps(asdict(summary), indent=1) + "\n").encode())
    plan.ledger.patience.keep_trying(
        lambda: thumbnails.save(plan.ledger.out, heard.thumbnails, most=NUM_THUMBNAILS)
    )
    return summary


def _summary(
    plan: Plan, sizing: Sizing | None, committer: Committer | None, started: float, status: str
) -> Summary:
    """What the driver knows by itself."""
    now = datetime.now(UTC)
    begun = datetime.fromtimestamp(started, UTC) if committer else now
    return Summary(
        status=status,
        output=plan.ledger.out.shown,
        started_at=begun.isoformat(timespec="seconds"),
        finished_at=now.isoformat(timespec="seconds"),
        wall_s=round((now - begun).total_seconds(), 3),
        model=plan.job.model,
        fingerprint=plan.ledger.fingerprint,
        settings=public_settings(plan),
        run=_run_counts(
            plan,
            committer.tally if committer else Tally(),
            committer.taken_up if committer else None,
        ),
        totals=_totals(plan, committer.limited if committer else []),
        versions=versions(),
        machine=_machine(sizing),
        outlook=_outlook(plan, is_dry=committer is None and sizing is not None),
    )


def _nodes(nodes: NodeWatch | None, heard: Heard) -> dict[str, list[dict[str, Any]]]:
    """What became of the cluster's nodes, with the rows that each lost one had in hand."""
    if nodes is None:
        return {"lost": [], "joined": []}
    nodes.look()
    return {
        "lost": [
            _told(c) | {"rows_again": None if heard.missing else heard.lost.get(c.node, 0)}
            for c in nodes.lost
        ],
        "joined": [_told(change) for change in nodes.joined],
    }


def _told(change: Change) -> dict[str, Any]:
    at = change.at.isoformat(timespec="seconds")
    return {"node": change.node, "address": change.address, "at": at}


def _machine(sizing: Sizing | None) -> dict[str, Any]:
    here = {"platform": platform.platform(), "python": platform.python_version()}
    return here | (asdict(sizing) if sizing is not None else {})


def _outlook(plan: Plan, *, is_dry: bool) -> dict[str, Any]:
    """What was to be done; of a dry run with what a worker's device holds, which loads torch, and what an image
    costs."""
    if not is_dry:
        return plan.outlook()
    costs = {
        "weights_bytes": plan.weights_bytes,
        "slot_tokens": plan.slot_tokens,
        "image_tokens": list(plan.checkpoint.image_tokens_range),
    }
    return plan.outlook() | costs


def _questions(
    plan: Plan, tally: Tally, joined: Joined | None, several: SeveralImages | None, status: str
) -> dict[str, int | None]:
    """How a file's questions joined; which joined nothing is known where all was answered."""
    counts: dict[str, int | None] = {}
    if joined is not None:
        all_told = status == "complete" and not tally.failed_units and plan.job.limit is None
        counts["questions_without_image"] = joined.count_unjoined() if all_told else None
    if several is not None:
        counts["questions_with_several_images"] = several.count
    return counts


def provenance(plan: Plan) -> dict[str, Any]:
    """What each table's footer says of how its answers were made."""
    return {
        "model": plan.job.model,
        "commit": plan.checkpoint.commit,
        "settings": plan.ledger.settings,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Of this package and those that answers could depend on."""
    found = {"llava-batch": __version__}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def public_settings(plan: Plan) -> dict[str, Any]:
    """The job's settings with no credentials in any path."""
    job = plan.job.settings()
    shown = {
        name: without_credentials(job[name])
        for name in ("output", "image_root", "model", "questions", "template")
        if job[name]
    }
    lists = {
        "input": [*map(without_credentials, plan.job.input)],
        "publish": [table.shown for table in map(lake_table, plan.job.publish)],
    }
    return job | shown | lists


def _run_counts(plan: Plan, tally: Tally, taken_up: Tally | None) -> dict[str, Any]:
    return {
        "units_answered": tally.units,
        "units_done_before": plan.work.num_done,
        "units_changed": plan.work.num_changed,
        "units_kept": plan.work.num_kept,
        "units_failed": dict(tally.failed_units),
        "left_out": plan.inputs.left_out,
        "skipped": plan.inputs.skipped,
        "snapshots": {t.place.name: t.snapshot for t in plan.inputs.tables},
        "images": tally.images,
        "images_taken_up": taken_up.images if taken_up else 0,
        "rows": tally.rows,
        "ok": tally.rows - tally.num_errors,
        "errors": dict(tally.errors.most_common()),
        "images_without_question": tally.images_without_question,
        "rows_copied": tally.rows_copied,
        "rows_with_several_images": tally.rows_with_several_images,
        "prompt_tokens": tally.prompt_tokens,
        "answer_tokens": tally.answer_tokens,
    }


def _totals(plan: Plan, limited: Sequence[Record]) -> dict[str, Any]:
    """Counts of the tables that lie in the folder, those that `limited` speaks of among them."""
    ledger = plan.ledger
    standing = ledger.standing()
    records = [*(ledger.records[name] for name in standing), *limited]
    errors: Counter[str] = Counter()
    for record in records:
        errors.update(record.errors)
    rows = sum(r.rows for r in records)
    return {
        "units": len(records),
        "units_limited": len(limited),
        "images": sum(r.images for r in records),
        "rows": rows,
        "ok": rows - errors.total(),
        "errors": dict(errors.most_common()),
    }


def _write(plan: Plan, name: str, data: bytes) -> None:
    out = plan.ledger.out
    write_whole(out.fs, f"{out.path}/{name}", data, plan.ledger.patience)
