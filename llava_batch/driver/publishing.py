"""The tables that `--publish` names, through a run: refused before it costs anything, written at its end.

A run that was stopped publishes nothing, nor does one with `--limit`; of one with units left open, what is
committed is published. Where one of several tables fails, the others are written all the same.
"""

import json
from collections.abc import Callable
from typing import Any

from llava_batch.driver.plan import Plan
from llava_batch.errors import UsageError
from llava_batch.job import Job
from llava_batch.read.walk import lies_in, real_path
from llava_batch.storage import Location, locate, without_credentials
from llava_batch.write.publish.change import LakeTable, PublishFailed
from llava_batch.write.publish.columns import published_schema
from llava_batch.write.publish.publish import publish, refuse_another_folders
from llava_batch.write.publish.target import lake_table


class Publishing:
    """What a run publishes, and what came of it.

    Raises:
        UsageError: a table that cannot be named so, whose library is not installed, that lies where the
            run reads or writes, or that is named twice.
    """

    def __init__(self, job: Job) -> None:
        self.tables = [lake_table(text) for text in job.publish]
        self.done: list[dict[str, Any]] = []
        self.problem: str | None = None
        places = [("--output", job.output), *(("--input", text) for text in job.input)]
        for number, (text, table) in enumerate(zip(job.publish, self.tables, strict=True)):
            if table.place in {other.place for other in self.tables[:number]}:
                raise UsageError(f"--publish {table.shown}: given twice, drop one")
            refuse_overlap(table, text, places)

    def refuse(self, plan: Plan) -> None:
        """Look at the tables before anything is answered.

        Raises:
            UsageError: one cannot be read, holds rows of another folder (but with `--overwrite`), or cannot
                have a kept column.
        """
        if self.tables:
            published_schema(plan.reading.keep)
        for table in self.tables:
            try:
                refuse_another_folders(plan.ledger, table, overwrite=plan.job.overwrite)
            except PublishFailed as error:
                raise UsageError(f"--publish {table.shown}: cannot be opened ({error}); check its "
                                 "name, the credentials and the endpoint") from None  # fmt: skip

    def publish(self, plan: Plan, check: Callable[[], None]) -> None:
        """Bring what is committed into each table; `problem` then says what failed."""
        if plan.job.limit is not None:
            return
        for table in self.tables:
            try:
                done = publish(
                    plan.ledger,
                    table,
                    said=_said(plan),
                    overwrite=plan.job.overwrite,
                    check=check,
                )
            except PublishFailed as error:
                self.problem = why_failed(table, error)
            else:
                self.done.append(done.to_json())


def why_failed(table: LakeTable, error: PublishFailed) -> str:
    """What is said of a publication that failed."""
    return (f"--publish {table.shown}: failed ({error}); the answers stand in the output folder, run "
            "again to publish them")  # fmt: skip


def refuse_overlap(table: LakeTable, text: str, places: list[tuple[str, str]]) -> None:
    """Refuse a Delta table in a folder that is read or written, or around one: a reader would take the
    files of the one for the other's. `text` is what `--publish` was given, `places` are flags and paths."""
    kind, _, uri = text.partition(":")
    if kind != "delta":
        return
    at = locate(uri)
    for flag, given in places:
        if _share_a_folder(at, locate(given)):
            raise UsageError(
                f"--publish {table.shown}: lies in {flag} {without_credentials(given)} or around it, "
                "where its files would be taken for others; give another place"
            )


def _share_a_folder(one: Location, other: Location) -> bool:
    here, there = real_path(one), real_path(other)
    return bool(one.fs == other.fs and (lies_in(here, there) or lies_in(there, here)))


def _said(plan: Plan) -> dict[str, str]:
    """What the commit's own metadata says of the run."""
    said = {
        "llava_batch.fingerprint": plan.ledger.fingerprint,
        "llava_batch.model": plan.job.model,
        "llava_batch.inputs": json.dumps([*map(without_credentials, plan.job.input)]),
    }
    if plan.inputs.tables:
        snapshots = {table.place.name: table.snapshot for table in plan.inputs.tables}
        said["llava_batch.snapshots"] = json.dumps(snapshots)
    return said
