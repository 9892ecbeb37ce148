"""The benchmarks' annotation files as lists of questions with their references.

Each reader takes the file as the benchmark publishes it (or, for a test split without references,
its questions file) and keeps its order, since some evaluators go by order alone.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow.fs as pafs

from llava_batch.errors import UsageError
from llava_batch.storage import Location, list_files, locate, read_bytes


@dataclass(frozen=True, kw_only=True)
class Item:
    """One annotated question. `references` is empty where the file has none (a test split);
    `groups` are the names under which it is also averaged; `options` counts its choices;
    `raw_id` is the id as it stands in the file (a number or a string)."""

    raw_id: Any
    image: str = ""
    question: str = ""
    references: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    options: int = 0

    @property
    def question_id(self) -> str:
        return str(self.raw_id)


def read_items(benchmark: str, path: str) -> list[Item]:
    """The questions of a benchmark's annotation file or folder.

    Raises:
        UsageError: no such file, or not the form that the benchmark publishes.
    """
    location = locate(path)
    if location.info().type == pafs.FileType.NotFound:
        raise UsageError(f"--annotations {path}: no such file or folder")
    try:
        items = list(_READERS[benchmark](location))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        # A reader fails at the first field that a file of another form lacks; the user has to fix the form.
        raise UsageError(
            f"--annotations {path}: not in the form of {benchmark}'s annotations "
            f"({type(error).__name__}: {error})"
        ) from None
    if not items:
        raise UsageError(f"--annotations {path}: holds no questions")
    return items


def read_tsv(location: Location) -> tuple[list[str], list[dict[str, str]]]:
    """A TSV's column names and rows, all as text (MMBench's holds whole images)."""
    csv.field_size_limit(1 << 30)
    text = io.StringIO(_read(location).decode("utf-8-sig"), newline="")
    reader = csv.DictReader(text, delimiter="\t")
    rows = list(reader)
    return list(reader.fieldnames or []), rows


def _vqav2(location: Location) -> Iterator[Item]:
    document = _document(location)
    entries = document if isinstance(document, list) else document.get("annotations")
    for entry in entries if entries is not None else document["questions"]:
        yield Item(
            raw_id=entry["question_id"],
            references=_answers(entry),
            groups=tuple(entry[n] for n in ("answer_type", "question_type") if n in entry),
        )


def _textvqa(location: Location) -> Iterator[Item]:
    for entry in _document(location)["data"]:
        yield Item(
            raw_id=entry["question_id"],
            image=str(entry["image_id"]),
            question=entry["question"],
            references=_answers(entry),
        )


def _vizwiz(location: Location) -> Iterator[Item]:
    for entry in _entries(location):
        yield Item(
            raw_id=entry.get("question_id", ""),
            image=entry["image"],
            question=entry["question"] if "question" in entry else entry["text"],
            references=_answers(entry),
            groups=(entry["answer_type"],) if "answer_type" in entry else (),
        )


def _gqa(location: Location) -> Iterator[Item]:
    for question_id, entry in _document(location).items():
        structural = entry.get("types", {}).get("structural")
        if not entry.get("isBalanced", True):  # the official accuracy is over balanced questions
            continue
        yield Item(
            raw_id=question_id,
            image=str(entry["imageId"]),
            question=entry["question"],
            references=(entry["answer"],) if "answer" in entry else (),
            groups=() if structural is None else ("open" if structural == "query" else "binary",),
        )


def _pope(location: Location) -> Iterator[Item]:
    """One category's lines, or a folder of `coco_pope_<category>.json`."""
    if location.info().type == pafs.FileType.File:
        yield from _pope_category(location)
        return
    for file in list_files(location):
        if file.base_name.startswith("coco_pope_") and file.extension in ("json", "jsonl"):
            yield from _pope_category(location.child(file.base_name))


def _pope_category(location: Location) -> Iterator[Item]:
    name = location.path.rpartition("/")[2].rpartition(".")[0]
    for entry in _entries(location):
        yield Item(
            raw_id=entry["question_id"],
            image=entry["image"],
            question=entry["text"],
            references=(entry["label"],),
            groups=(name.removeprefix("coco_pope_"),),
        )


def _scienceqa(location: Location) -> Iterator[Item]:
    """`problems.json` with `pid_splits.json` beside it (or their folder): the test split."""
    if location.info().type == pafs.FileType.Directory:
        location = location.child("problems.json")
    folder = location.path.rpartition("/")[0]
    splits = Location(location.fs, f"{folder}/pid_splits.json", "pid_splits.json")
    problems = _document(location)
    for question_id in _document(splits)["test"]:
        problem = problems[question_id]
        yield Item(
            raw_id=question_id,
            references=(str(problem["answer"]),),
            groups=("image" if problem.get("image") else "text",),
            options=len(problem["choices"]),
        )


def _seed(location: Location) -> Iterator[Item]:
    document = _document(location)
    kinds = {number: name for name, number in document.get("question_type", {}).items()}
    for entry in document["questions"]:
        kind = entry.get("question_type_id")
        yield Item(
            raw_id=entry["question_id"],
            references=(entry["answer"],) if "answer" in entry else (),
            groups=(entry.get("data_type", "image"), str(kinds.get(kind, kind))),
        )


def _mme(location: Location) -> Iterator[Item]:
    """The release's folder: for each category, text files of `question<TAB>answer` lines."""
    for file in list_files(location):
        parts = file.path[len(location.path) + 1 :].split("/")
        beside_images = len(parts) == 3 and parts[1] == "questions_answers_YN"
        if file.extension != "txt" or not (len(parts) == 2 or beside_images):
            continue
        text = (read_bytes(location.fs, file.path) or b"").decode("utf-8")
        for line in text.splitlines():
            question, answer = line.strip().split("\t")
            yield Item(
                raw_id=f"{parts[0]}/{parts[-1]}",
                image=f"{parts[0]}/{parts[-1].removesuffix('.txt')}",
                question=question,
                references=(answer,),
                groups=(parts[0],),
            )


def _mmbench(location: Location) -> Iterator[Item]:
    _, rows = read_tsv(location)
    for row in rows:
        yield Item(raw_id=row["index"], references=(row["answer"],) if row.get("answer") else ())


def _listed(location: Location) -> Iterator[Item]:
    for entry in _entries(location):
        yield Item(raw_id=entry["question_id"])


_READERS: dict[str, Callable[[Location], Iterator[Item]]] = {
    "vqav2": _vqav2,
    "textvqa": _textvqa,
    "vizwiz": _vizwiz,
    "gqa": _gqa,
    "pope": _pope,
    "scienceqa": _scienceqa,
    "seed": _seed,
    "mme": _mme,
    "mmbench": _mmbench,
    "mmbench_cn": _mmbench,
    "mm_vet": _listed,
    "llava_bench": _listed,
}
BENCHMARKS = tuple(_READERS)


def _answers(entry: dict[str, Any]) -> tuple[str, ...]:
    found = entry.get("answers") or ()
    return tuple(a["answer"] if isinstance(a, dict) else a for a in found)


def _entries(location: Location) -> list[Any]:
    """A JSON list, or JSON lines, of which there may be one."""
    document = _document(location)
    return [document] if isinstance(document, dict) else document


def _document(location: Location) -> Any:
    """A JSON document, or JSON lines as a list."""
    data = _read(location)
    try:
        return json.loads(data)
    except ValueError:
        return [json.loads(line) for line in data.splitlines() if line.strip()]


def _read(location: Location) -> bytes:
    data = read_bytes(location.fs, location.path)
    if data is None:
        raise ValueError(f"there is no {location.path.rpartition('/')[2]}")
    return data
