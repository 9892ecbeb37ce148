"""The instruct job: answers by a recipe, filtered into instruction data, exported for trainers.

OUT/answers/**/*.parquet         the answers, as `caption` and `vqa` write them
OUT/instructions/**/*.parquet    conversations kept and rejected, with the reason
OUT/llava.json, OUT/images/      --export llava
OUT/webdataset/**/*.tar          --export webdataset
OUT/huggingface/                 --export huggingface

Each of these patterns reads tables of one kind. What opens an output folder (show, report, score)
takes OUT itself for its answers.
"""

import sys
from collections.abc import Sequence
from contextlib import closing

from llava_batch.answers.folder import ANSWERS
from llava_batch.cli.terminal import placed, refuse_mixing, run_and_tell
from llava_batch.driver.plan import inputs_of
from llava_batch.driver.settle import Settled, settle
from llava_batch.errors import UsageError, counted
from llava_batch.instruct.conversations import write_instructions
from llava_batch.job import Job
from llava_batch.prepare.fetch import Fetch
from llava_batch.storage import locate
from llava_batch.write.ledger import Ledger

EXPORTS = ("llava", "webdataset", "huggingface")
DEFAULT_RECIPE = "conversation"


def run_instruct(job: Job, exports: Sequence[str]) -> None:
    """Run the job by its recipe (`conversation` where none is given) and write what is asked for.

    Raises:
        UsageError: an export or a recipe that there is not; before anything runs.
    """
    for name in exports:
        if name not in EXPORTS:
            raise UsageError(f"--export {name}: give one of {', '.join(EXPORTS)}")
    job = placed(job, demo="instruct")
    out = job.output.rstrip("/")
    refuse_mixing(out, instruct=True)
    job = of_answers(job)
    settled = settle(job)
    recipe = settled.recipe
    assert recipe is not None
    run_and_tell(job, settled)
    if job.dry_run:
        return
    counts = write_instructions(job.output, f"{out}/instructions", recipe)
    lines = [_kept_line(f"{out}/instructions", counts)]
    if exports:
        title = f"{recipe.name}: {recipe.description}"
        lines += _export(settled, out, exports, counts, title=title)
    if not job.quiet:
        print("\n".join(lines), file=sys.stderr)


def of_answers(job: Job) -> Job:
    """The job that makes the answers: by its recipe, in a folder of their own."""
    output = job.output and f"{job.output.rstrip('/')}/{ANSWERS}"
    return job.but(output=output, recipe=job.recipe or DEFAULT_RECIPE)


def _kept_line(folder: str, counts: dict[str, int]) -> str:
    """What became of the answers: how many were kept, were rejected, by filter, and are in error."""
    ends = {"rejected": "rejected", "error": "from rows in error"}
    parts = [f"{counted(counts.get('kept', 0), 'conversation')} kept"]
    for end, said in ends.items():
        why = {n.partition(":")[2]: c for n, c in counts.items() if n.startswith(f"{end}:")}
        if why:
            reasons = ", ".join(f"{count} {reason}" for reason, count in why.items())
            parts.append(f"{sum(why.values()):,} {said} ({reasons})")
    return f"{folder}/**/*.parquet: {', '.join(parts)}"


def _export(
    settled: Settled, out: str, exports: Sequence[str], counts: dict[str, int], *, title: str
) -> list[str]:
    """Write what is asked for; a line on each, which says where it is."""
    with closing(Fetch.of(settled.job)) as fetch:
        return _export_with(fetch, settled, out, exports, counts, title=title)


def _export_with(
    fetch: Fetch,
    settled: Settled,
    out: str,
    exports: Sequence[str],
    counts: dict[str, int],
    *,
    title: str,
) -> list[str]:
    from llava_batch.instruct.exports import (
        Pairs,
        export_hugging_face,
        export_llava,
        export_webdataset,
        images_of,
    )

    job = settled.job
    ledger = Ledger(locate(job.output), job.format)
    ledger.load()
    units = [ledger.as_answered(unit) for unit in inputs_of(settled, ledger).units]
    images = images_of(
        units,
        image_column=job.image_column,
        key_column=job.key_column,
        image_root=job.image_root,
        max_image_bytes=job.max_image_bytes,
        fetch=fetch.images,
    )
    pairs = Pairs.open(f"{out}/instructions", images)
    lines = []
    if "llava" in exports:
        number = export_llava(pairs, f"{out}/llava.json", images=f"{out}/images")
        lines.append(f"{out}/llava.json: {counted(number, 'conversation')} in LLaVA's form, about "
                     f"the images in {out}/images")  # fmt: skip
    if "webdataset" in exports:
        number = export_webdataset(pairs, f"{out}/webdataset")
        lines.append(f"{out}/webdataset/**/*.tar: {counted(number, 'sample')} for WebDataset")
    if "huggingface" in exports:
        number = export_hugging_face(pairs, f"{out}/huggingface", title=title, counts=counts)
        lines.append(
            f"{out}/huggingface: {counted(number, 'conversation')} as a Hugging Face dataset"
        )
    return lines
