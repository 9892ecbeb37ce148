"""Exports read back by what they are for: LLaVA's form, WebDataset, the datasets library, ourselves."""

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from llava_batch.errors import UsageError
from llava_batch.instruct.conversations import write_instructions
from llava_batch.instruct.exports import (
    Pairs,
    export_hugging_face,
    export_llava,
    export_webdataset,
    images_of,
)
from llava_batch.prompts.recipe import load_recipe
from llava_batch.tables import load_schema
from tests.instruct.llava_form import check_llava


def picture(colour: str, format: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, format)
    return buffer.getvalue()


IMAGES = {
    "00000": [
        ("00000/0001", picture("red")),
        ("00000/0002", picture("green")),
        ("00000/0003", picture("blue")),
    ],
    "photos-00000": [
        ("photos-00000/a/cat.v2.PNG", picture("black", "PNG")),
        ("photos-00000/b%23c.jpeg", picture("white")),
        ("photos-00000/b%23c.jpeg%dup2", picture("gray", "WEBP")),
    ],
}


def images(unit: str) -> Iterator[tuple[str, bytes]]:
    yield from IMAGES[unit]


def row(image: str, *answers: str | None, key: str = "", suffix: str = "") -> dict[str, Any]:
    """An answer row about `image`, with one turn for each answer; null: in error."""
    unit, _, rest = image.partition("/")
    ok = None not in answers
    turns = [
        {
            "question": f"Question {n}?",
            "answer": text,
            "finish_reason": "stop",
            "mean_logprob": -0.1,
        }
        for n, text in enumerate(answers)
    ]
    return {
        "id": image + suffix,
        "unit": unit,
        "key": key or rest,
        "num_images": 1,
        "turns": turns if ok else None,
        "answer": answers[-1] if ok else None,
        "status": "ok" if ok else "error",
        "error_code": None if ok else "image_unreadable",
    }


ROWS = {
    "00000": [
        row("00000/0001", "Red, all of it.", suffix="#q1"),
        row("00000/0001", "A red square, and no more than that.", suffix="#q2"),
        row("00000/0002", None),
        row("00000/0003", "Blue.", "Yes, blue indeed."),
    ],
    "photos-00000": [
        row("photos-00000/a/cat.v2.PNG", "Black."),
        row("photos-00000/b%23c.jpeg", "White.", key="b#c.jpeg"),
        row("photos-00000/b%23c.jpeg%dup2", "Grey.", key="b#c.jpeg", suffix="~0"),
    ],
}


def write_answers(folder: Path, tables: dict[str, list[dict[str, Any]]] = ROWS) -> str:
    settings = {"llava_batch.model": "demo", "llava_batch.settings": '{"seed": 7, "prompt": "a|b"}'}
    schema = load_schema("answers").with_metadata(settings)
    out = folder / "answers"
    out.mkdir()
    for name, rows in tables.items():
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), out / f"{name}.parquet")
    return str(out)


def test_llava_s_json_is_accepted_and_its_images_are_there(tmp_path: Path) -> None:
    pairs = Pairs.open(write_answers(tmp_path), images)
    output = tmp_path / "train.json"
    assert export_llava(pairs, str(output), images=str(tmp_path / "images")) == 6
    data = json.loads(output.read_text())
    assert check_llava(data) == 6
    assert data[0] == {
        "id": "00000/0001#q1",
        "image": "00000/0001.jpg",
        "conversations": [
            {"from": "human", "value": "<image>\nQuestion 0?"},
            {"from": "gpt", "value": "Red, all of it."},
        ],
    }
    assert [turn["value"] for turn in data[2]["conversations"]][2] == "Question 1?"
    assert [entry["image"] for entry in data[3:]] == [
        "photos-00000/a/cat.v2.png",
        "photos-00000/b#c.jpg",
        "photos-00000/b#c.jpeg-dup2.webp",
    ]
    for entry in data:
        assert Image.open(tmp_path / "images" / entry["image"]).size == (8, 8)


def test_nothing_to_export_is_an_empty_list(tmp_path: Path) -> None:
    pairs = Pairs.open(write_answers(tmp_path, {"00000": [row("00000/0002", None)]}), images)
    assert export_llava(pairs, str(tmp_path / "t.json"), images=str(tmp_path / "i")) == 0
    assert json.loads((tmp_path / "t.json").read_text()) == []


def test_only_kept_instructions_are_exported(tmp_path: Path) -> None:
    rows = [
        row("00000/0001", "It is a plain red square."),
        row("00000/0002", "I'm sorry, I cannot see it."),
    ]
    made = str(tmp_path / "made")
    recipe = load_recipe("conversation")
    counts = write_instructions(write_answers(tmp_path, {"00000": rows}), made, recipe)
    assert counts == {"kept": 1, "rejected:refusal": 1}
    pairs = Pairs.open(made, images)
    assert export_llava(pairs, str(tmp_path / "t.json"), images=str(tmp_path / "i")) == 1
    assert json.loads((tmp_path / "t.json").read_text())[0]["id"] == "00000/0001"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": ...}, "needs id, image and conversations"),
        ({"conversations": []}, "needs questions and answers in pairs"),
        ({"conversations": [{"from": "gpt", "value": "x"}] * 2}, "turn 0 should be from human"),
        (
            {"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]},
            "turn 0 has the wrong number of <image> marks",
        ),
        (
            {
                "conversations": [
                    {"from": "human", "value": "<image>"},
                    {"from": "gpt", "value": ""},
                ]
            },
            "turn 1 says nothing",
        ),
        ({"id": "1"}, "occurs twice"),
    ],
)
def test_the_check_refuses_what_llava_would_not_take(change: dict, message: str) -> None:
    turns = [{"from": "human", "value": "<image>\nx"}, {"from": "gpt", "value": "y"}]
    good = {"id": "1", "image": "1.jpg", "conversations": turns}
    bad = {k: v for k, v in (good | {"id": "2"} | change).items() if v is not ...}
    with pytest.raises(ValueError, match=message):
        check_llava([good, bad])


def test_webdataset_is_read_back_with_one_sample_for_each_image(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    pairs = Pairs.open(write_answers(tmp_path), images)
    assert export_webdataset(pairs, str(tmp_path / "tars")) == 5
    urls = [str(tmp_path / "tars" / f"{unit}.tar") for unit in ROWS]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    assert [s["__key__"] for s in samples] == ["0001", "0003", "a/cat_v2", "b#c", "b#c_2"]
    assert samples[0]["txt"] == "Red, all of it."
    assert [s["id"] for s in samples[0]["json"]["conversations"]] == [
        "00000/0001#q1",
        "00000/0001#q2",
    ]
    assert [sorted(s.keys() - {"__key__", "__url__", "__local_path__", "json", "txt"}) for s in samples] == [
        ["jpg"], ["jpg"], ["png"], ["jpg"], ["webp"],
    ]  # fmt: skip


def test_tars_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    pairs = Pairs.open(write_answers(tmp_path), images)
    for name in ("one", "two"):
        export_webdataset(pairs, str(tmp_path / name))
    assert (tmp_path / "one" / "00000.tar").read_bytes() == (
        tmp_path / "two" / "00000.tar"
    ).read_bytes()


def test_exported_tars_are_input_again(tmp_path: Path) -> None:
    from llava_batch.read.find import find_units

    export_webdataset(Pairs.open(write_answers(tmp_path), images), str(tmp_path / "tars"))
    again = images_of(find_units([str(tmp_path / "tars" / "00000.tar")]))
    assert list(again("00000")) == [IMAGES["00000"][0], IMAGES["00000"][2]]
    with pytest.raises(UsageError, match="has no unit 00009"):
        list(again("00009"))


def test_images_that_a_table_only_names_are_fetched_for_an_export(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    from llava_batch.job import Job
    from llava_batch.prepare.fetch import Fetch
    from llava_batch.read.find import find_units

    (tmp_path / "a.png").write_bytes(b"an image")
    pq.write_table(pa.table({"path": ["a.png", "none.png", None, "a.png"]}), tmp_path / "t.parquet")
    units = find_units([str(tmp_path / "t.parquet")])
    fetch = Fetch.of(Job())
    got = [*images_of(units, fetch=fetch.images)("t")]
    assert got == [("t/0", b"an image"), ("t/3", b"an image")]
    with pytest.raises(UsageError, match="only names"):
        [*images_of(units)("t")]
    fetch.close()


def test_the_datasets_library_sees_the_images(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    out = tmp_path / "dataset"
    pairs = Pairs.open(write_answers(tmp_path), images)
    assert export_hugging_face(pairs, str(out), title="Squares", counts={"kept": 6}) == 6
    data = datasets.load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert isinstance(data.features["image"], datasets.Image)
    assert data.num_rows == 6
    assert data[0]["image"].size == (8, 8)
    assert data[0]["answer"] == "Red, all of it."
    assert data[2]["conversations"][3] == {"from": "gpt", "value": "Yes, blue indeed."}


def test_the_card_says_how_the_data_was_made(tmp_path: Path) -> None:
    pairs = Pairs.open(write_answers(tmp_path), images)
    export_hugging_face(pairs, str(tmp_path / "d"), title="Squares", counts={"kept": 6, "error": 1})
    card = (tmp_path / "d" / "README.md").read_text()
    for line in ("# Squares", "| model | demo |", "| settings.seed | 7 |", "| kept | 6 |",
                 "| settings.prompt | a\\|b |", "    path: data/**/*.parquet"):  # fmt: skip
        assert line in card.splitlines()


def test_answers_without_their_image_are_an_error(tmp_path: Path) -> None:
    rows = [row("00000/0001", "Red."), row("00000/0009", "None.")]
    pairs = Pairs.open(write_answers(tmp_path, {"00000": rows}), images)
    with pytest.raises(
        UsageError, match=r"1 of the answers of unit 00000 without an image .*00000/0009"
    ):
        export_webdataset(pairs, str(tmp_path / "tars"))
    assert list((tmp_path / "tars").iterdir()) == []


def test_an_export_that_is_being_written_is_no_table_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its temporary name ended in .parquet: `load_dataset` took half a file for data.
    monkeypatch.setattr("llava_batch.instruct.exports.hugging_face._BATCH_ROWS", 1)
    found = []

    def watched(unit: str) -> Iterator[tuple[str, bytes]]:
        for pair in images(unit):
            files = {p.name for p in (tmp_path / "d").rglob("*") if p.is_file()}
            found.append(files - {"00000.parquet"})  # whole already while the second is written
            yield pair

    export_hugging_face(
        Pairs.open(write_answers(tmp_path), watched), str(tmp_path / "d"), title="t"
    )
    half = set().union(*found)
    assert half and not [name for name in half if name.endswith(".parquet")]


def test_tar_members_of_one_sample_stand_together(tmp_path: Path) -> None:
    export_webdataset(Pairs.open(write_answers(tmp_path), images), str(tmp_path / "tars"))
    with tarfile.open(tmp_path / "tars" / "00000.tar") as tar:
        names = [member.name for member in tar]
    assert [n.partition(".")[0] for n in names] == ["0001"] * 3 + ["0003"] * 3
