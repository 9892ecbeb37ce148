"""Offline captioning and visual question answering over image corpora with LLaVA.

Importing this package is cheap: neither torch nor ray is loaded until a run starts.
"""

from typing import TYPE_CHECKING

import llava_batch.quiet  # noqa: F401 before anything imports transformers
from llava_batch.errors import LlavaBatchError
from llava_batch.job import Job
from llava_batch.version import __version__

if TYPE_CHECKING:
    from llava_batch.driver.summary import Summary

__all__ = ["Job", "LlavaBatchError", "__version__", "run"]


def run(job: Job) -> "Summary":
    """Run `job` to its end and return what came of it; see `llava_batch.pipeline.run`."""
    from llava_batch.pipeline import run as run_pipeline

    return run_pipeline(job)
