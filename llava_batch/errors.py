"""What can go wrong: exceptions that stop a run, and the codes that a row in error carries.

    LlavaBatchError        whatever this package raises on purpose; its text is one line for a person
    ├── UsageError         a flag, an input or a model that cannot be used; raised before any actor starts
    │   └── OutputConflict the output folder holds answers of another run, or a run is writing to it
    └── RunFailed          the run ended, but not as asked (more rows in error than allowed)

A bad row is never an exception: it is a row whose `error_code` is one of `RowError`.
"""

from enum import StrEnum


class LlavaBatchError(Exception):
    """Base of this package's exceptions; `str(error)` says what, the value, and what to do."""


class UsageError(LlavaBatchError):
    """The run cannot start as asked."""

    exit_status = 2


class OutputConflict(UsageError):
    """The output folder holds, or is being given, the answers of another run."""


class RunFailed(LlavaBatchError):
    """The run ended with more rows in error than `--max-error-rate` allows; the rest is committed."""

    exit_status = 3


class RowError(StrEnum):
    """Codes of the answers table's `error_code`; `sentence` is what the documentation prints."""

    IMAGE_MISSING = "image_missing"
    IMAGE_UNREACHABLE = "image_unreachable"
    IMAGE_UNREADABLE = "image_unreadable"
    IMAGE_TRUNCATED = "image_truncated"
    IMAGE_TOO_LARGE = "image_too_large"
    BAD_PROMPT = "bad_prompt"
    PROMPT_TOO_LONG = "prompt_too_long"
    ANSWER_CUT_OFF = "answer_cut_off"
    SHARD_DAMAGED = "shard_damaged"
    OUT_OF_MEMORY = "out_of_memory"
    WORKER_DIED = "worker_died"
    ENGINE_FAILED = "engine_failed"

    @property
    def sentence(self) -> str:
        return _SENTENCES[self]


_SENTENCES = {
    RowError.IMAGE_MISSING: "The row has no image: no such member, file or object, no permission to "
    "read it, a null, an empty value, a URI that is not fetched, or a download that failed.",
    RowError.IMAGE_UNREACHABLE: "The image could not be fetched, tried again and again: its storage "
    "or server did not answer, or failed. `--retry-errors` asks for it again.",
    RowError.IMAGE_UNREADABLE: "The bytes are not an image that Pillow can decode.",
    RowError.IMAGE_TRUNCATED: "The image ends early; `--allow-truncated` takes what is there.",
    RowError.IMAGE_TOO_LARGE: "The file, the image, or the canvas it would be resized or padded on "
    "is over `--max-image-bytes` or `--max-pixels`.",
    RowError.BAD_PROMPT: "The prompt cannot be made for this row: a null column, no question, "
    "or another number of `<image>` marks than images.",
    RowError.PROMPT_TOO_LONG: "Prompt and answer take more tokens than the model has positions for.",
    RowError.ANSWER_CUT_OFF: "`--max-new-tokens` ended the answer before its JSON did (`--json-schema`); "
    "the message ends with what was said.",
    RowError.SHARD_DAMAGED: "This part of the shard could not be read; the good rows around it were.",
    RowError.OUT_OF_MEMORY: "The row alone does not fit the device's memory.",
    RowError.WORKER_DIED: "The worker died every time it had this row, `--max-tries` times.",
    RowError.ENGINE_FAILED: "The model gave no usable output (such as NaN) for this row.",
}


def counted(number: int, noun: str) -> str:
    """For a sentence: `1 image`, `1,204 images`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def first_line(error: BaseException | str) -> str:
    """The first line that says something; of an error that says nothing, its type's name."""
    unsaid = "no reason given" if isinstance(error, str) else type(error).__name__
    return next((line.strip() for line in str(error).splitlines() if line.strip()), unsaid)
