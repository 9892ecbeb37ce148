"""The instruct job: answers by a recipe, filtered into instruction data, exported for trainers.

OUT/answers/         the answers, as `caption` and `vqa` write them
OUT/instructions/    conversations kept and rejected, with the reason
OUT/llava.json, OUT/images/    --export llava
OUT/webdataset/                --export webdataset
OUT/huggingface/               --export huggingface
"""

import json
import sys
from collections.abc import Sequence

from llava_batch.cli.terminal import placed, run_and_tell
from llava_batch.driver.settle import settle
from llava_batch.errors import UsageError
from llava_batch.instruct.conversations import write_instructions
from llava_batch.job import Job
from llava_batch.read.find import find
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
    job = job.but(output=f"{out}/answers", recipe=job.recipe or DEFAULT_RECIPE)
    settled = settle(job)
    recipe = settled.recipe
    assert recipe is not None
    run_and_tell(job, settled)
    if job.dry_run:
        return
    counts = write_instructions(job.output, f"{out}/instructions", recipe)
    _export(job, out, exports, counts, title=f"{recipe.name}: {recipe.description}")
    if not job.quiet:
        print(f"{out}/instructions: {json.dumps(counts)}", file=sys.stderr)


def _export(
    job: Job, out: str, exports: Sequence[str], counts: dict[str, int], *, title: str
) -> None:
    if not exports:
        return
    from llava_batch.instruct.exports import (
        Pairs,
        export_hugging_face,
        export_llava,
        export_webdataset,
        images_of,
    )

    ledger = Ledger(locate(job.output), job.format)
    ledger.load()
    units = find(job.input, ledger.members, output=ledger.out).units
    images = images_of(
        units,
        image_column=job.image_column,
        key_column=job.key_column,
        max_image_bytes=job.max_image_bytes,
    )
    pairs = Pairs.open(f"{out}/instructions", images)
    if "llava" in exports:
        export_llava(pairs, f"{out}/llava.json", images=f"{out}/images")
    if "webdataset" in exports:
        export_webdataset(pairs, f"{out}/webdataset")
    if "huggingface" in exports:
        export_hugging_face(pairs, f"{out}/huggingface", title=title, counts=counts)
