"""What a run says on the terminal before and after itself; the demo where no place is named."""

import shlex
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_batch.errors import RunFailed, UsageError, counted, first_line
from llava_batch.job import Job, require_places

if TYPE_CHECKING:
    from llava_batch.driver.settle import Settled
    from llava_batch.driver.summary import Summary

DEMO_FOLDER = "demo-out"
DEMO_IMAGES = 48
DEMO_SEED = 20_260_101
MAX_REPORT_ROWS = 1_000_000
"""Over so many rows the report is left to `llava-batch report`: it reads every row."""


def run_and_tell(job: Job, settled: "Settled | None" = None) -> "Summary":
    """Run the job and say in a few lines what came of it and where it lies; `settled` where the caller
    had to settle it."""
    job = placed(job, demo="answers")
    refuse_mixing(job.output, instruct=False)
    from llava_batch.driver.settle import settle  # Arrow, which a mistyped flag need not wait for
    from llava_batch.pipeline import run_settled

    began = time.monotonic()
    try:
        summary = run_settled(settled or settle(job))
    except RunFailed:
        write_report_of(job.output)
        _tell_where_to_look(job)
        raise
    ended = time.monotonic()
    if summary.run["units_answered"] and summary.totals["rows"] <= MAX_REPORT_ROWS:
        write_report_of(job.output)
    if not job.quiet:
        for line in result_lines(summary, around_s=ended - began - summary.wall_s):
            print(line, file=sys.stderr)
        if job.model == "demo" and not job.dry_run and summary.totals["rows"]:
            print(_DEMO_MODEL, file=sys.stderr)
    return summary


def placed(job: Job, *, demo: str) -> Job:
    """The job, if it names its input and its output; if neither, the demo: the job over freshly drawn
    scenes, one tar and one Parquet file, with its output in the folder `demo` beside them.

    Raises:
        UsageError: one of the two without the other.
    """
    if job.input or job.output:
        require_places(job)
        return job
    shards = Path(DEMO_FOLDER).absolute() / "shards"
    paths = sorted(shards.glob("shapes-*"))
    if not paths:
        from llava_batch.demo.shards import write_shards

        paths = write_shards(shards, count=DEMO_IMAGES, seed=DEMO_SEED)
        print(f"Drew {len(paths)} shards of {DEMO_IMAGES} scenes into {shards}", file=sys.stderr)
    return job.but(input=tuple(map(str, paths)), output=f"{DEMO_FOLDER}/{demo}")


def refuse_mixing(output: str, *, instruct: bool) -> None:
    """Refuse to begin answers in `instruct`'s folder, or `instruct` in a folder of answers: a pattern
    over all tables below it would find two kinds.

    Raises:
        UsageError: that, or a storage that cannot be looked into.
    """
    from llava_batch.answers.folder import ANSWERS, holds_answers
    from llava_batch.storage import advice, locate

    folder = locate(output)
    try:
        own, below = holds_answers(folder), holds_answers(folder.child(ANSWERS))
    except OSError as error:
        raise UsageError(f"--output {folder.shown}: {first_line(error)}; {advice(error)}") from None
    if own != below and own == instruct:
        held = "the answers of caption or vqa" if instruct else f"answers below it, in {ANSWERS}/"
        raise UsageError(f"--output {folder.shown}: holds {held}; give another folder")


def write_report_of(output: str) -> None:
    """Write the report about a folder, or say why there is none."""
    from llava_batch.report import write_report

    try:
        write_report([output])
    except UsageError as error:  # nothing was answered yet, so there is nothing to look at
        print(f"no report: {error}", file=sys.stderr)


def _tell_where_to_look(job: Job) -> None:
    """After a run that failed, which returns no summary: by what it wrote."""
    from llava_batch.answers.folder import open_answers

    with suppress(
        UsageError, OSError
    ):  # no tables or no _run.json to name; the failure is printed all the same
        totals = open_answers(job.output).run().get("totals")
        if totals and not job.quiet:
            said = [*_holds(job.output, totals), *_where_to_look(job.output, totals)]
            print("\n".join(said), file=sys.stderr)


def result_lines(summary: "Summary", *, around_s: float = 0.0) -> list[str]:
    """The run in a few lines of text; `around_s` went by before and after what it counts."""
    run, totals = summary.run, summary.totals
    if summary.status == "dry run":
        return outlook_lines(summary)
    lines = [*summary.outlook["notes"], *summary.notes]
    for name, one, many in _COUNTED:
        if run.get(name) and not (
            name == _SEVERAL and summary.outlook.get("several_images_are_known")
        ):
            lines.append(f"{run[name]:,} {one if run[name] == 1 else many}")
    num_answered = run["images"] - run.get("images_taken_up", 0)
    if num_answered:
        around = (
            f" Besides, {around_s:.1f} s to plan it, and to start and end Ray."
            if around_s >= 1
            else ""
        )
        lines.append(
            f"{counted(num_answered, 'image')} in {_speed(summary, num_answered)}.{around}"
        )
    if totals["units"] or run["units_failed"]:
        lines += _holds(summary.output, totals)
    else:
        lines.append(
            "Nothing to answer: there is no image in --input, and --output holds no answers."
        )
    lines += [published_line(done) for done in summary.published]
    if summary.settings.get("limit") and summary.settings.get("publish"):
        lines.append("Nothing was published: --limit answers a part of the input.")
    return [*lines, *_where_to_look(summary.output, totals)]


def _speed(summary: "Summary", num_images: int) -> str:
    """How long the run took, and how fast it was once it had started."""
    startup_s = summary.throughput.get("startup_s") or 0.0
    rate = num_images / max(summary.wall_s - startup_s, 1e-9)
    if not startup_s:
        return f"{summary.wall_s:.1f} s ({rate:.1f} images/s)"
    return f"{summary.wall_s:.1f} s: {startup_s:.1f} s of start-up, then {rate:.1f} images/s"


def _holds(output: str, totals: dict[str, Any]) -> list[str]:
    """What lies in the output folder: the same counts as in its report."""
    errors = ", ".join(f"{count} {code}" for code, count in totals["errors"].items())
    lines = [
        f"{output} holds {counted(totals['rows'], 'row')} in {counted(totals['units'], 'unit')}, "
        f"{totals['rows'] - totals['ok']:,} of them in error" + (f" ({errors})." if errors else ".")
    ]
    limited = totals.get("units_limited")
    if limited:
        lines.append(f"{counted(limited, 'unit')} not complete (--limit); a run without it answers "
                     "all again.")  # fmt: skip
    return lines


def published_line(done: dict[str, Any]) -> str:
    """What one publication came to."""
    if done["publication"] is None:
        return f"{done['table']}: nothing new to publish."
    parts = {n: done[f"units_{n}"] for n in ("added", "replaced", "removed")}
    told = ", ".join(f"{counted(count, 'unit')} {name}" for name, count in parts.items() if count)
    return (f"{done['table']}: {counted(done['rows_written'], 'row')} written in one commit "
            f"({told or 'its columns changed'}); it is version {done['version']} now.")  # fmt: skip


_SEVERAL = "rows_with_several_images"
_COUNTED = (
    ("units_done_before", "unit was answered before and stands as it is.",
     "units were answered before and stand as they are."),
    ("images_taken_up", "image of an open unit was answered by an earlier run.",
     "images of open units were answered by earlier runs."),
    ("units_changed", "unit had changed and was answered again.",
     "units had changed and were answered again."),
    ("units_kept", "unit had changed and keeps its answers.",
     "units had changed and keep their answers."),
    ("rows_copied", "row was answered before, in a file that the table's writer rewrote: copied.",
     "rows were answered before, in files that the table's writer rewrote: copied."),
    (_SEVERAL, "row had several images: the model was not trained on that, and its answer may be poor.",
     "rows had several images: the model was not trained on that, and answers may be poor."),
    ("images_without_question", "image had no question in the file.",
     "images had no question in the file."),
    ("questions_with_several_images", "question of the file joined several images.",
     "questions of the file joined several images."),
    ("questions_without_image", "question of the file joined no image.",
     "questions of the file joined no image."),
)  # fmt: skip
"""What is said of a run's counts that are not 0: the count's name, and how the line goes on."""


def _where_to_look(output: str, totals: dict[str, Any]) -> list[str]:
    """The last lines: where the report is, and how the rows in error are seen; none where no row is."""
    if not totals["rows"]:
        return []
    folder = shlex.quote(output)
    with_page = totals["rows"] <= MAX_REPORT_ROWS
    page = f"{output}/_report.html" if with_page else f"llava-batch report {folder}"
    errors = [f"The rows in error: llava-batch show {folder} --errors"] if totals["errors"] else []
    return [f"Look at them: {page}", *errors]


def outlook_lines(summary: "Summary") -> list[str]:
    """What a dry run found, in a few lines of text."""
    ahead, machine, settings = summary.outlook, summary.machine, summary.settings
    dtype = ", ".join(filter(None, (settings["dtype"], settings["quantization"])))
    card = f" ({ahead['card']})" if ahead["card"] else ""
    kinds = ", ".join(f"{count} {kind}" for kind, count in ahead["units_todo"].items()) or "none"
    slots = f", whose slots hold {ahead['slot_tokens']} tokens" if ahead["slot_tokens"] else ""
    first = ahead["first_units"]
    more = ", …" if sum(ahead["units_todo"].values()) > len(first) else ""
    named = f" ({', '.join(first)}{more})" if first else ""
    lines = [
        f"Units to answer: {kinds}{named}; answered before: {summary.run['units_done_before']}.",
        f"Output: {summary.output}, {settings['format']}, fingerprint {summary.fingerprint}.",
        f"Model: {summary.model}, {dtype}; {counted(machine['workers'], 'generating actor')} of "
        f"{machine['gpus_per_worker']:g} GPU{card} and {counted(machine['threads_per_worker'], 'thread')}, "
        f"{ahead['weights_bytes'] / 2**30:.2f} GiB of weights each besides the cache{slots}; up to "
        f"{counted(machine['prepare_workers'], 'preparing actor')}.",
    ]
    lines.append(_image_cost(ahead["image_tokens"], settings["max_tiles"]))
    lines += ahead["notes"]
    if settings["limit"]:
        lines.append(f"Of these the first {counted(settings['limit'], 'image')} alone (--limit).")
    elif settings["publish"]:
        lines.append(f"Published when all is answered: {', '.join(settings['publish'])}.")
    if ahead["loose_images"]:
        lines.append(f"Loose images among them: {ahead['loose_images']}.")
    if ahead["rows_to_retry"]:
        lines.append(f"Images in error that are tried again: {ahead['rows_to_retry']}.")
    return [*lines, "No actor was started, nothing was written (--dry-run)."]


def _image_cost(tokens: list[int], max_tiles: int | None) -> str:
    """How many tokens of the prompt an image takes, and what bounds it."""
    fewest, most = tokens
    if fewest == most:
        return f"An image takes {most:,} tokens."
    bound = f"with --max-tiles {max_tiles}" if max_tiles else "--max-tiles bounds it"
    return f"An image takes {fewest:,} to {most:,} tokens by its size ({bound})."


_DEMO_MODEL = (
    "The demo model knows only drawn shapes. For real work: "
    "--model llava-hf/llava-1.5-7b-hf (on a GPU), --input your shards, --output a folder."
)
