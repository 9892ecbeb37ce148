"""Keeps warnings to itself that importing transformers gives and that no user can act on.

transformers imports torchao wherever it is installed, which warns of kernels for other machines and
of a call that torch has come to deprecate. Has to be imported before transformers is.
"""

import logging


def _is_of_use(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    return not text.startswith("Failed to load /") and "register_constant()" not in text


for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).addFilter(_is_of_use)
