"""What a run says on the terminal before and after itself; the demo's shards where none are given."""

import sys
from pathlib import Path

from llava_batch.driver.summary import Summary
from llava_batch.errors import RunFailed, UsageError
from llava_batch.job import Job
from llava_batch.pipeline import run
from llava_batch.report import write_report

DEMO_IMAGES = 48
DEMO_SEED = 20_260_101
MAX_REPORT_ROWS = 1_000_000
"""Over so many rows the report is left to `llava-batch report`: it reads every row."""


def run_and_tell(job: Job) -> Summary:
    """Run the job and say in a few lines what came of it and where it lies."""
    given = bool(job.input)
    if not given:
        job = with_demo_shards(job)
    try:
        summary = run(job)
    except RunFailed:
        _write_report(job)
        raise
    if not job.dry_run and summary.totals["rows"] <= MAX_REPORT_ROWS:
        _write_report(job)
    if not job.quiet:
        for line in told(summary):
            print(line, file=sys.stderr)
        if job.model == "demo" and not job.dry_run:
            print(_DEMO_MODEL, file=sys.stderr)
    return summary


def _write_report(job: Job) -> None:
    try:
        write_report([job.output])
    except UsageError as error:  # nothing was answered yet, so there is nothing to look at
        print(f"no report: {error}", file=sys.stderr)


def with_demo_shards(job: Job) -> Job:
    """The job over freshly drawn scenes: one tar and one Parquet file beside the output."""
    from llava_batch.demo.shards import write_shards

    folder = Path(job.output).absolute().parent / "shards"
    paths = sorted(folder.glob("shapes-*"))
    if not paths:
        paths = write_shards(folder, count=DEMO_IMAGES, seed=DEMO_SEED)
        print(f"Drew {len(paths)} shards of {DEMO_IMAGES} scenes into {folder}", file=sys.stderr)
    return job.but(input=tuple(map(str, paths)))


def told(summary: Summary) -> list[str]:
    """The run in a few lines of text."""
    run, totals = summary.run, summary.totals
    if summary.status == "dry run":
        return outlook(summary)
    lines = [*summary.outlook["notes"], *summary.notes]
    if run["units_done_before"]:
        lines.append(
            f"{run['units_done_before']} units were answered before and stand as they are."
        )
    if run["units_changed"]:
        lines.append(f"{run['units_changed']} units had changed and were answered again.")
    if run["rows_with_several_images"]:
        lines.append(
            f"{run['rows_with_several_images']} rows had several images: LLaVA-1.5 was not trained on "
            "that, and answers may be poor."
        )
    if run["images_without_question"]:
        lines.append(f"{run['images_without_question']} images had no question in the file.")
    if run.get("questions_without_image"):
        lines.append(f"{run['questions_without_image']} questions of the file joined no image.")
    errors = ", ".join(f"{count} {code}" for code, count in totals["errors"].items())
    rate = summary.throughput.get("images_per_s", 0.0)
    lines.append(
        f"{run['images']} images in {summary.wall_s:.1f} s ({rate:.1f} images/s); "
        f"{summary.output} holds {totals['rows']} answers in {totals['units']} units, "
        f"{totals['rows'] - totals['ok']} of them in error" + (f" ({errors})." if errors else ".")
    )
    if totals["rows"] <= MAX_REPORT_ROWS:
        lines.append(f"Look at them: {summary.output}/_report.html")
    else:
        lines.append(f"Look at them: llava-batch report {summary.output}")
    return lines


def outlook(summary: Summary) -> list[str]:
    """What a dry run found, in a few lines of text."""
    ahead, machine, settings = summary.outlook, summary.machine, summary.settings
    dtype = ", ".join(filter(None, (settings["dtype"], settings["quantization"])))
    card = f" ({ahead['card']})" if ahead["card"] else ""
    kinds = ", ".join(f"{count} {kind}" for kind, count in ahead["units_todo"].items()) or "none"
    named = f" ({', '.join(ahead['first_units'])}, …)" if ahead["first_units"] else ""
    lines = [
        f"Units to answer: {kinds}{named}; answered before: {summary.run['units_done_before']}.",
        f"Output: {summary.output}, {settings['format']}, fingerprint {summary.fingerprint}.",
        f"Model: {summary.model}, {dtype}; {machine['workers']} generating actor(s) of "
        f"{machine['gpus_per_worker']:g} GPU{card} and {machine['threads_per_worker']} threads, "
        f"{ahead['weights_bytes'] / 2**30:.2f} GiB of weights each besides the cache; up to "
        f"{machine['prepare_workers']} preparing actor(s).",
    ]
    if ahead["loose_images"]:
        lines.append(f"Loose images among them: {ahead['loose_images']}.")
    if ahead["rows_to_retry"]:
        lines.append(f"Images in error that are tried again: {ahead['rows_to_retry']}.")
    return [*lines, "Nothing was started (--dry-run)."]


_DEMO_MODEL = (
    "The demo model knows only drawn shapes. For real work: "
    "--model llava-hf/llava-1.5-7b-hf (on a GPU), --input your shards, --output a folder."
)
