"""Questions files of the field, read as a stream of (id, image, text).

Kinds: LLaVA's JSON lines (also POPE's, named `.json`); OpenAI batch files; VQAv2's, TextVQA's and
GQA's JSON; JSON lists (VizWiz; LLaVA's conversations as for ScienceQA); CSV and TSV (MMBench);
Parquet. Lines, CSV and Parquet are streamed; one JSON document is read whole, as its kind demands.

Which field is what is told by name. A question without text is a question (its row will be in
error). A line that cannot be used otherwise stops the reading with its number: a question that was
silently dropped would be missed only when the scores are counted.
"""

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from llava_batch.errors import UsageError
from llava_batch.prompts.questions.openai_batch import is_batch_line, parse_batch_line
from llava_batch.storage import Location

ID_FIELDS = ("question_id", "questionId", "custom_id", "id", "qid", "index")
IMAGE_FIELDS = ("image", "image_id", "imageId", "file_name", "filename", "image_path", "key", "url")
TEXT_FIELDS = ("text", "question", "prompt", "query", "conversations")
_MMBENCH_OPTIONS = ("A", "B", "C", "D")


class Record(NamedTuple):
    """One question as its file has it; `image` None where the question has none, `text` blank where
    it says nothing."""

    question_id: str
    image: str | None
    text: str


def read_records(location: Location, notes: set[str]) -> Iterator[Record]:
    """The questions of a file, in its order; remarks on what is not applied are put into `notes`.

    Raises:
        UsageError: no such file, a kind that is not known, or a line that cannot be used.
    """
    suffix = location.path.rpartition(".")[2].lower()
    readers = {"jsonl": _lines, "ndjson": _lines, "json": _json, "csv": _csv, "tsv": _csv}
    try:
        if suffix == "parquet":
            yield from _parquet(location)
        elif suffix in readers:
            with location.fs.open_input_stream(location.path) as raw:
                yield from readers[suffix](io.BufferedReader(raw, 1 << 20), location, notes)
        else:
            raise UsageError(
                f"{location.shown}: a questions file is .jsonl, .json, .csv, .tsv or .parquet"
            )
    except (FileNotFoundError, IsADirectoryError):
        raise UsageError(f"{location.shown}: no such questions file") from None
    except pa.ArrowInvalid as error:
        raise UsageError(f"{location.shown}: cannot be read ({error})") from None


def _lines(stream: io.BufferedReader, location: Location, notes: set[str]) -> Iterator[Record]:
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        where = f"{location.shown}, line {number}"
        try:
            fields = json.loads(line.decode("utf-8-sig"))
        except ValueError as error:  # of JSON, and of UTF-8
            raise UsageError(f"{where}: not JSON ({error})") from None
        if isinstance(fields, dict) and is_batch_line(fields):
            yield Record(*parse_batch_line(fields, where, notes))
        else:
            yield parse_record(fields, where, number)


def _json(stream: io.BufferedReader, location: Location, notes: set[str]) -> Iterator[Record]:
    if _looks_like_lines(stream):
        yield from _lines(stream, location, notes)
        return
    try:
        document = json.loads(stream.read().decode("utf-8-sig"))
    except ValueError as error:
        raise UsageError(f"{location.shown}: not JSON ({error})") from None
    for number, fields in enumerate(_entries(document, location), 1):
        yield parse_record(fields, f"{location.shown}, question {number}", number)


def _looks_like_lines(stream: io.BufferedReader) -> bool:
    """Whether the file's first line is a whole JSON object with a question in it."""
    first = stream.peek(1 << 20).split(b"\n", 1)[0]
    try:
        fields = json.loads(first.decode("utf-8-sig"))
    except ValueError:
        return False
    return isinstance(fields, dict) and (bool(_named(fields, TEXT_FIELDS)) or is_batch_line(fields))


def _entries(document: Any, location: Location) -> Iterable[Any]:
    if isinstance(document, list):
        return document
    if isinstance(document, dict):
        for name in ("questions", "data"):  # VQAv2, TextVQA
            if isinstance(entries := document.get(name), list):
                return entries
        if document and all(isinstance(entry, dict) for entry in document.values()):  # GQA
            return ({"question_id": key} | entry for key, entry in document.items())
    raise UsageError(
        f"{location.shown}: no questions found; expected a list, VQAv2's `questions`, TextVQA's "
        "`data`, or GQA's object of questions by id"
    )


def _csv(stream: io.BufferedReader, location: Location, notes: set[str]) -> Iterator[Record]:
    csv.field_size_limit(1 << 30)  # MMBench's TSV holds whole images
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
    reader = csv.DictReader(text, delimiter="\t" if location.path.endswith("tsv") else ",")
    try:
        for number, fields in enumerate(reader, 1):
            where = f"{location.shown}, line {reader.line_num}"
            if None in fields or None in fields.values():
                raise UsageError(f"{where}: another number of fields than the header has")
            yield parse_record(_mmbench(fields), where, number)
    except (csv.Error, UnicodeDecodeError) as error:
        raise UsageError(f"{location.shown}, after line {reader.line_num}: {error}") from None


def _mmbench(fields: dict[str, str]) -> dict[str, str]:
    """MMBench's columns as LLaVA asks them: hint, question, options; the image by its index."""
    if not {"index", "question", "A", "B"} <= fields.keys():
        return fields
    lines = [fields["hint"]] if _is_given(fields.get("hint")) else []
    lines.append(fields["question"])
    for letter in _MMBENCH_OPTIONS:
        if not _is_given(fields.get(letter)):
            break
        lines.append(f"{letter}. {fields[letter]}")
    return {"question_id": fields["index"], "image": fields["index"], "text": "\n".join(lines)}


def _is_given(value: str | None) -> bool:
    return value is not None and value.lower() not in ("", "nan", "none")


def _parquet(location: Location) -> Iterator[Record]:
    with location.fs.open_input_file(location.path) as raw:
        file = pq.ParquetFile(raw)
        names = file.schema_arrow.names
        wanted = [_named(dict.fromkeys(names), f) for f in (ID_FIELDS, IMAGE_FIELDS, TEXT_FIELDS)]
        columns = [name for name in wanted if name]
        number = 0
        for batch in file.iter_batches(batch_size=8192, columns=columns):
            for fields in batch.to_pylist():
                number += 1
                yield parse_record(fields, f"{location.shown}, row {number}", number)


def parse_record(fields: Any, where: str, number: int) -> Record:
    """A question from named fields; `number`, from 1, is its id where it brings none.

    Raises:
        UsageError: `where` and what is missing or of the wrong kind.
    """
    if not isinstance(fields, dict):
        raise UsageError(f"{where}: expected an object with a question, found {fields!r:.80}")
    question_id = _value(fields, ID_FIELDS)
    text_field = _named(fields, TEXT_FIELDS)
    if not text_field:
        raise UsageError(f"{where}: no question; expected one of {', '.join(TEXT_FIELDS)}, "
                         f"found {', '.join(map(str, fields))}")  # fmt: skip
    text = "" if fields[text_field] is None else fields[text_field]
    if text_field == "conversations":
        text = _first_turn(text, where)
    if not isinstance(text, str):
        raise UsageError(f"{where}: {text_field} is {text!r:.80}; expected a question")
    image = _value(fields, IMAGE_FIELDS)
    if image is None and text_field != "conversations":
        raise UsageError(f"{where}: no image; expected one of {', '.join(IMAGE_FIELDS)}, "
                         f"found {', '.join(map(str, fields))}")  # fmt: skip
    return Record(
        str(number) if question_id is None else _scalar(question_id, where),
        None if image is None else _image_name(image, where),
        text,
    )


def _first_turn(turns: Any, where: str) -> str:
    """The first human turn of a LLaVA conversation, without its image mark."""
    try:
        text: str = turns[0]["value"].replace("<image>", "").strip()
        return text
    except (TypeError, KeyError, IndexError, AttributeError):
        raise UsageError(f"{where}: conversations hold no first turn with a value") from None


def _image_name(image: Any, where: str) -> str:
    if isinstance(image, list) and len(image) == 1:
        image = image[0]
    if isinstance(image, dict):  # Hugging Face's struct<bytes, path>
        if image.get("path"):
            return str(image["path"])
        if isinstance(image.get("bytes"), bytes):
            return "sha256:" + hashlib.sha256(image["bytes"]).hexdigest()
    if isinstance(image, bytes):
        return "sha256:" + hashlib.sha256(image).hexdigest()
    return _scalar(image, where)


def _scalar(value: Any, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise UsageError(f"{where}: {value!r:.80} where an id or a name was expected")
    return str(value)


def _named(fields: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """The first of `names` that stands in `fields`, or the empty string."""
    return next((name for name in names if name in fields), "")


def _value(fields: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """The first value under one of `names` that is not null."""
    return next((fields[name] for name in names if fields.get(name) is not None), None)
