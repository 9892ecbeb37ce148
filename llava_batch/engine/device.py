"""Telling an exhausted memory from other errors, whatever library noticed it first."""

SIGNS = ("out of memory", "not enough memory", "alloc_failed")
"""torch on a device and on the host, and cuBLAS or cuDNN wanting a workspace; in lower case."""


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error says that memory ran out, or came of handling one that does."""
    while error is not None:
        if any(sign in str(error).lower() for sign in SIGNS):
            return True
        error = error.__context__
    return False
