"""Job: everything that a run is, in one frozen dataclass. The command lines are derived from it.

Each field carries its help text, the group it is shown in, and whether changing it would change
rows or answers (`answers=True`): those make the fingerprint that a resumed run must match.
Knows nothing of Ray, torch or the filesystem.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import Field, asdict, dataclass, field, fields, replace
from typing import Any, Self

from llava_batch.errors import UsageError

DEFAULT_PROMPT = "Describe the image."


def _flag(default: Any, help: str, group: str, *, answers: bool = False, flag: str = "") -> Any:
    """A field with its command line's metadata; `flag` only where it is not the field's name."""
    meta = {"help": help, "group": group, "answers": answers, "flag": flag}
    return field(default=default, metadata=meta)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run over one corpus: what to read, what to ask of which model, where to write.

    Values are checked when the job is made; a bad one raises `UsageError` naming the flag.
    """

    input: tuple[str, ...] = _flag(
        (), "Shards, image files, folders, globs, {00..99} ranges or URIs; repeatable.", "Data"
    )
    output: str = _flag(
        "",
        "Folder or URI for the answers; a second run resumes. Without --input and --output the job "
        "is a demo, in demo-out.",
        "Data",
    )
    partition: tuple[str, ...] = _flag(
        (), "Read only the Hive partitions that fit KEY=PATTERN (dt=2026-11-*); repeatable: of one key "
        "any, of several keys each.", "Data",
    )  # fmt: skip
    image_column: str | None = _flag(
        None, "Table's column with the image, its path or its URI (default: by type and name); in tars, the extension of "
        "the members that are images (default: any image's).", "Data", answers=True,
    )  # fmt: skip
    image_root: str | None = _flag(
        None, "Folder or URI where relative paths in the image column start (default: the table's "
        "own folder).", "Data", answers=True,
    )  # fmt: skip
    key_column: str | None = _flag(
        None, "Table column with each row's key (default: its number; in Parquet `key`, where there is "
        "one).", "Data",
        answers=True,
    )  # fmt: skip
    keep: tuple[str, ...] = _flag(
        (),
        "Input column carried through to the answers, as NAME or NAME:TYPE (an Arrow type); "
        "repeatable.",
        "Data",
        answers=True,
    )
    snapshot: int | None = _flag(
        None, "Version of the lake table to read (Delta, Lance), or snapshot id (Iceberg); default: "
        "the newest.", "Data",
    )  # fmt: skip
    format: str = _flag("parquet", "Format of the answers: parquet or arrow.", "Data")
    limit: int | None = _flag(None, "Answer only the first N images.", "Data")
    publish: tuple[str, ...] = _flag(
        (),
        "Table of the lake that gets the answers too, in one commit a run: delta:URI or "
        "iceberg:CATALOG.NAMESPACE.TABLE; repeatable. Needs the `lake` extra.",
        "Data",
    )

    model: str = _flag(
        "demo", "`demo`, a local folder, or a hub id such as llava-hf/llava-1.5-7b-hf.", "Model",
        answers=True,
    )  # fmt: skip
    revision: str | None = _flag(None, "Revision of a hub model.", "Model", answers=True)
    dtype: str = _flag(
        "auto", "float32, bfloat16, float16 or auto (bfloat16 on a card that has it, float16 on an "
        "older one, float32 on CPU). On CPU answers depend on no batch in float32 and, by the fused "
        "kernels (--attention native), in bfloat16.", "Model", answers=True,
    )  # fmt: skip
    quantization: str | None = _flag(
        None, "Weights of the language model as nf4, fp4, int8, int8wo or fp8 (a card's; compute "
        "capability 8.9). Needs the `quant` extra.", "Model", answers=True,
    )  # fmt: skip
    attention: str = _flag(
        "auto", "native (fused CPU kernels); flash, varlen or sdpa (CUDA); torch (plain); or auto, "
        "the first of them that can be had.", "Model",
    )  # fmt: skip
    trust_remote_code: bool = _flag(
        False, "Let the checkpoint's own Python run. Off unless you mean it.", "Model", answers=True
    )
    image_aspect: str = _flag(
        "auto", "pad to a square, crop, or auto (as the checkpoint says).", "Model", answers=True
    )
    max_tiles: int | None = _flag(
        None, "Most tiles of the grid that an image of any resolution is cut into (LLaVA-NeXT): fewer cost "
        "fewer tokens; default: as many as the model has grids for.", "Model", answers=True,
    )  # fmt: skip

    prompt: str = _flag(
        DEFAULT_PROMPT, "Prompt for each image; {column} puts in a column's value.", "Prompt",
        answers=True,
    )  # fmt: skip
    question: tuple[str, ...] = _flag(
        (), "Question asked of every image; repeatable.", "Prompt", answers=True
    )
    question_column: str | None = _flag(
        None, "Column with a row's question, or list of questions.", "Prompt", answers=True
    )
    questions: str | None = _flag(
        None, "File of questions joined to the images by id, key or file name.", "Prompt",
        answers=True,
    )  # fmt: skip
    join_anywhere: bool = _flag(
        False,
        "A question of the file may join several images: a bare file name, in every shard.",
        "Prompt",
    )
    dialogue: bool = _flag(
        False, "Ask an image's questions as turns of one conversation.", "Prompt", answers=True
    )
    choices: tuple[str, ...] = _flag(
        (), "Comma-separated answers to choose from by likelihood.", "Prompt", answers=True
    )
    recipe: str | None = _flag(
        None, "Recipe of instruction data: conversation, detail, reasoning, or a YAML file.",
        "Prompt", answers=True,
    )  # fmt: skip
    json_schema: str | None = _flag(
        None, "File of the JSON schema that answers must satisfy (needs the `json-schema` extra).",
        "Prompt", answers=True,
    )  # fmt: skip
    preset: str | None = _flag(
        None, "Prompt and settings of a benchmark's original evaluation.", "Prompt", answers=True
    )
    suffix: str = _flag(
        "", "Text added to every question, as benchmarks do.", "Prompt", answers=True
    )
    system: str | None = _flag(None, "System text before the conversation.", "Prompt", answers=True)
    template: str = _flag(
        "auto", "Conversation template: auto, llava-1.5, checkpoint, or a Jinja file.", "Prompt",
        answers=True,
    )  # fmt: skip

    max_new_tokens: int = _flag(128, "Most tokens in one answer.", "Sampling", answers=True)
    min_new_tokens: int = _flag(0, "Fewest tokens in one answer.", "Sampling", answers=True)
    temperature: float = _flag(0.0, "0 takes the likeliest token.", "Sampling", answers=True)
    top_p: float = _flag(1.0, "Sample from this share of probability.", "Sampling", answers=True)
    top_k: int = _flag(0, "Sample from the k likeliest tokens; 0: all.", "Sampling", answers=True)
    repetition_penalty: float = _flag(
        1.0, "Over 1 makes repeated tokens less likely.", "Sampling", answers=True
    )
    stop: tuple[str, ...] = _flag((), "End an answer at this text.", "Sampling", answers=True)
    seed: int = _flag(0, "Seed of sampling; each row draws from (seed, id).", "Sampling",
                      answers=True)  # fmt: skip
    num_samples: int = _flag(1, "Answers drawn for each prompt.", "Sampling", answers=True)

    slots: int | None = _flag(
        None, "Requests decoded at once by one worker (default: by memory).", "Speed"
    )
    workers: int | None = _flag(
        None, "Generating actors (default: one for each GPU; without, one for each node).", "Speed"
    )
    read_workers: int | None = _flag(
        None, "Most units read at once (default: four for each generating actor).", "Speed"
    )
    prepare_workers: int | None = _flag(
        None, "Most CPU actors decoding images (default: by cores).", "Speed"
    )

    max_pixels: int = _flag(
        89_478_485, "Most pixels of an image or its canvas.", "Limits", answers=True
    )
    max_image_bytes: int = _flag(
        256 * 2**20, "Most bytes of one encoded image.", "Limits", answers=True
    )
    allow_http: bool = _flag(
        False,
        "Fetch images whose URIs are http or https. Off unless you trust the table.",
        "Limits",
    )
    allow_truncated: bool = _flag(
        False, "Decode what is there of an image cut short.", "Limits", answers=True
    )
    max_tries: int = _flag(
        3, "Times that a row may kill its worker before it is given up.", "Limits"
    )
    stall_timeout_s: float = _flag(
        600.0, "Seconds without progress after which a worker counts as hung.", "Limits"
    )
    storage_patience: float = _flag(
        600.0, "Seconds that a storage may be away before its units are left open.", "Limits"
    )

    retry_errors: bool = _flag(False, "Answer the rows in error again, keep the rest.", "Run")
    overwrite: bool = _flag(False, "Replace what the output folder holds.", "Run")
    on_change: str | None = _flag(
        None, "What an input that changed since it was answered does: answer (again), keep (the "
        "answers) or refuse. By default answer, unless that is over a tenth of the rows.", "Run",
    )  # fmt: skip
    max_error_rate: float | None = _flag(
        None, "Share of rows in error over which the run fails (exit 3). By default only one of 100 "
        "rows or more without a good one.", "Run",
    )  # fmt: skip
    shared_filesystem: bool = _flag(
        False, "Local paths are the same folder on every node of the cluster.", "Run"
    )
    quiet: bool = _flag(False, "No progress, only what went wrong.", "Run")
    dry_run: bool = _flag(False, "Say what would be done, and stop.", "Run")

    def __post_init__(self) -> None:
        for name, allowed in _ALLOWED.items():
            if getattr(self, name) not in allowed:
                raise bad_flag(name, getattr(self, name), f"give one of {_listed(allowed)}")
        for name, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise bad_flag(name, value, "give a finite number")
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise bad_flag(name, value, f"give at least {least}")
        for pattern in self.partition:
            if pattern.find("=") < 1:
                raise bad_flag("partition", pattern, "give it as KEY=PATTERN, such as dt=2026-11-*")
        if not 0 < self.top_p <= 1:
            raise bad_flag("top_p", self.top_p, "give a share over 0 and up to 1")
        if self.max_error_rate is not None and not 0 <= self.max_error_rate <= 1:
            raise bad_flag("max_error_rate", self.max_error_rate, "give a share from 0 to 1")
        if self.repetition_penalty <= 0:
            raise bad_flag("repetition_penalty", self.repetition_penalty, "give a number over 0")
        if self.min_new_tokens > self.max_new_tokens:
            raise bad_flag("min_new_tokens", self.min_new_tokens, "give at most --max-new-tokens")
        if self.num_samples > 1 and self.temperature == 0:
            raise bad_flag("num_samples", self.num_samples, "samples need --temperature over 0")
        _refuse_what_asks_nothing(self)
        if self.json_schema:
            against = [n for n in ("choices", "stop", "min_new_tokens") if getattr(self, n)]
            if against:
                raise UsageError(f"--json-schema and {flag_name(against[0])} were both given; "
                                 "the schema alone says where an answer ends, drop one")  # fmt: skip

    @property
    def asks_by(self) -> list[str]:
        """The fields that say what is asked, where the default prompt does not; at most one."""
        sources = ("question", "question_column", "questions", "recipe")
        own_prompt = ["prompt"] if self.prompt != DEFAULT_PROMPT else []
        return [*(name for name in sources if getattr(self, name)), *own_prompt]

    def but(self, **changes: Any) -> Self:
        """A copy with `changes`."""
        return replace(self, **changes)

    def settings(self) -> dict[str, Any]:
        """All fields as plain JSON values, in the order of their declaration."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    def answer_settings(self) -> dict[str, Any]:
        """The fields that would change rows or answers, as plain JSON values."""
        names = {f.name for f in job_fields() if f.metadata["answers"]}
        return {name: value for name, value in self.settings().items() if name in names}


def _refuse_what_asks_nothing(job: Job) -> None:
    """Refuse a job that asks nothing, asks in two ways, or gives choices that nobody chooses from."""
    for each in fields(job):
        value = getattr(job, each.name)
        values = value if isinstance(value, tuple) and each.name != "choices" else ()
        if "" in values or (value == "" and each.default is None):
            raise bad_flag(each.name, "''", "it is empty, give a value or leave it out")
    if not all(map(str.strip, job.question)):
        raise bad_flag("question", "' '", "a question is blank, give its text")
    if not job.prompt.strip():  # of a shell's variable that was never set, mostly
        raise bad_flag("prompt", repr(job.prompt), "it is blank, say what is asked of each image")
    if len(job.asks_by) > 1:
        flags = " and ".join(map(flag_name, job.asks_by))
        raise UsageError(f"{flags} were both given; questions come from one place, drop one")
    if job.recipe:
        for name in ("dialogue", "suffix", "preset"):
            if getattr(job, name):
                raise UsageError(f"--recipe and {flag_name(name)} were both given; the recipe says "
                                 "how it is asked, drop one")  # fmt: skip
    if job.dialogue and job.num_samples > 1:
        raise bad_flag("num_samples", job.num_samples, "a --dialogue has one sample")
    _refuse_choices(job)
    if job.dialogue and (not job.asks_by or "prompt" in job.asks_by or len(job.question) == 1):
        raise UsageError("--dialogue: there is no second question; give --question twice, "
                         "--question-column or --questions, or drop it")  # fmt: skip


def _refuse_choices(job: Job) -> None:
    if not job.choices:
        return
    said = ",".join(job.choices)
    if not all(job.choices):
        raise bad_flag("choices", said, "a choice is empty, drop a comma")
    if len(job.choices) == 1:
        raise bad_flag("choices", said, "of one there is nothing to choose, give two or more")
    if len(set(job.choices)) < len(job.choices):
        raise bad_flag("choices", said, "a choice is there twice, drop one")
    if job.dialogue or job.num_samples > 1 or job.temperature > 0:
        raise bad_flag("choices", said, "choices are scored, not sampled: drop --dialogue, "
                       "--num-samples and --temperature")  # fmt: skip
    if not job.asks_by:
        raise bad_flag("choices", said, "nothing is asked that they answer, give --question")


_ALLOWED: dict[str, tuple[str | None, ...]] = {
    "format": ("parquet", "arrow"),
    "dtype": ("auto", "float32", "bfloat16", "float16"),
    "quantization": (None, "nf4", "fp4", "int8", "int8wo", "fp8"),
    "attention": ("auto", "native", "torch", "flash", "varlen", "sdpa"),
    "image_aspect": ("auto", "pad", "crop"),
    "on_change": (None, "answer", "keep", "refuse"),
}
_LEAST: dict[str, float] = {
    "limit": 1, "snapshot": 0, "max_new_tokens": 1, "min_new_tokens": 0, "temperature": 0.0, "top_k": 0,
    "num_samples": 1, "max_tiles": 1, "slots": 1, "workers": 1, "read_workers": 1, "prepare_workers": 1,
    "max_pixels": 1,
    "max_image_bytes": 1, "max_tries": 1, "stall_timeout_s": 1, "storage_patience": 0,
}  # fmt: skip


def require_places(job: Job) -> None:
    """Refuse a job that does not say what it reads, or where it writes.

    Raises:
        UsageError: no input, or no output.
    """
    if not job.input:
        beside = f" beside --output {job.output}" if job.output else ""
        raise UsageError(
            f"--input: not given{beside}; name shards, images, folders or URIs to read"
        )
    if not job.output:
        raise UsageError(f"--output: not given beside --input {job.input[0]}; name a folder or URI "
                         "for the answers")  # fmt: skip


def job_fields() -> Iterator[Field[Any]]:
    """The fields of `Job`, in order, with their metadata."""
    yield from fields(Job)


def flag_name(name: str) -> str:
    """`max_new_tokens` -> `--max-new-tokens`."""
    return "--" + name.replace("_", "-")


def bad_flag(name: str, value: object, what_to_do: str) -> UsageError:
    """The error for a field whose value cannot be used."""
    return UsageError(f"{flag_name(name)} {value}: {what_to_do}")


def fingerprint(settings: dict[str, Any]) -> str:
    """A short hash of `settings` that is the same in every process (sha256 of sorted JSON)."""
    text = json.dumps(settings, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _listed(values: tuple[str | None, ...]) -> str:
    return ", ".join(str(v) for v in values if v is not None)
