"""Offline captioning and visual question answering over image corpora with LLaVA.

Importing this package is cheap: neither torch nor ray is loaded until a run starts. It keeps to itself
a few warnings that importing transformers gives and that no user can act on.
"""

import logging
from typing import TYPE_CHECKING

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


def _is_of_use(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    return not text.startswith("Failed to load /") and "register_constant()" not in text


# transformers imports torchao wherever it is installed, which warns of kernels for other machines and
# of a call that torch has come to deprecate. This has to stand before transformers is imported.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).addFilter(_is_of_use)
