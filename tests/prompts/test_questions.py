"""Questions files of every kind that is read, and which image each question joins."""

import base64
import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_batch.errors import UsageError
from llava_batch.job import Job
from llava_batch.prompts.asks import Ask, asks_of
from llava_batch.prompts.guards import Guards
from llava_batch.prompts.questions import Questions, closeness, join_key, read_questions
from llava_batch.tables import load_schema

PIXEL = b"not really a picture"
DATA_URI = "data:image/png;base64," + base64.b64encode(PIXEL).decode()


def write(folder: Path, name: str, content: str) -> str:
    path = folder / name
    path.write_text(content, encoding="utf-8")
    return str(path)


def lines(*records: dict) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def llava(question_id: object, image: str, text: str = "What is it?", **more: object) -> dict:
    return {"question_id": question_id, "image": image, "text": text, **more}


def batch_line(custom_id: str, url: str, text: str = "What is it?", **body: object) -> dict:
    content = [
        {"type": "text", "text": text},
        {"type": "image_url", "image_url": {"url": url}},
    ]
    messages = [{"role": "user", "content": content}]
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"messages": messages, **body},
    }


def asked(questions: Questions, key: str, unit: str = "00000", **more: Any) -> list[str]:
    return [q.question_id for q in questions.of(unit=unit, key=key, **more)]


# Which names are the same image


@pytest.mark.parametrize(
    "name",
    [
        "42",
        "000000000042",
        "000000000042.jpg",
        "COCO_val2014_000000000042.jpg",
        "COCO_test2015_000000000042",
        "train2014/COCO_train2014_000000000042.JPEG",
        "https://images.example.org/train/000000000042.jpg?size=large#top",
    ],
)
def test_a_coco_image_has_one_join_key(name: str) -> None:
    assert join_key(name) == "42"


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("folder/photo.one.png", "photo.one"),
        ("photo.v2", "photo.v2"),
        ("n161313.jpg", "n161313"),
        ("000.jpg", "0"),
        (".jpg", ".jpg"),
        ("https://example.org/a%20b.webp", "a b"),
        (DATA_URI, "sha256:" + hashlib.sha256(PIXEL).hexdigest()),
    ],
)
def test_a_join_key_drops_folders_and_image_extensions(name: str, key: str) -> None:
    assert join_key(name) == key


@pytest.mark.parametrize("name", ["", "  ", "/", "data:image/png,abc", "data:;base64,@@@"])
def test_a_name_without_a_name_is_an_error(name: str) -> None:
    with pytest.raises(ValueError):
        join_key(name)


@settings(deadline=None)
@given(st.integers(0, 10**11), st.sampled_from(["train2014", "val2014", "test2015"]))
def test_an_image_id_joins_coco_s_file_name(number: int, split: str) -> None:
    assert closeness(str(number), "00000", f"COCO_{split}_{number:012d}") is not None
    assert closeness(str(number), split, f"{number:012d}.jpg") is not None
    assert closeness(str(number + 1), "00000", f"{number:012d}.jpg") is None


NAMES = st.lists(st.from_regex(r"[ab1]{1,3}(\.[ab])?", fullmatch=True), min_size=1, max_size=3)


@settings(deadline=None)
@given(NAMES.map("/".join), st.text("ab", min_size=1))
def test_a_name_is_closest_to_itself(name: str, unit: str) -> None:
    itself = closeness(name, unit, name)
    base_alone = closeness(name.rpartition("/")[2], unit, name)
    assert itself is not None
    assert base_alone is not None
    assert base_alone <= itself


def test_a_row_without_a_usable_name_joins_nothing(tmp_path: Path) -> None:
    questions = read_questions(write(tmp_path, "q.jsonl", lines(llava(1, "a.jpg"))))
    assert asked(questions, "/") == []


def test_folders_that_disagree_are_other_images() -> None:
    assert closeness("val/1.jpg", "x", "train/1.jpg") is None
    assert closeness("data/train/1.jpg", "x", "train/1.jpg") is not None
    assert closeness("1.jpg", "x", "train/1.jpg") is not None


def test_only_the_closest_questions_join(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "q.jsonl",
        lines(
            llava("code", "code_reasoning/0020.png"),
            llava("common", "commonsense/0020.png"),
            llava("plain", "20"),
        ),
    )
    questions = read_questions(path)
    assert asked(questions, "0020", unit="code_reasoning") == ["code"]
    assert asked(questions, "commonsense/0020.png", unit="photos-00000") == ["common"]
    assert asked(questions, "020", unit="elsewhere") == ["code", "common", "plain"]
    assert asked(questions, "0021") == []


def test_a_question_that_names_another_unit_of_the_input_is_not_this_one_s(tmp_path: Path) -> None:
    # Once `00000/000001.jpg` joined 000001 in 00001 too, where that had no question of its own.
    path = write(tmp_path, "q.jsonl", lines(llava(1, "00000/000001.jpg"), llava(2, "000002.jpg"),
                                           llava(3, "data/day1/00000/000003.jpg")))  # fmt: skip
    alone = read_questions(path)
    assert asked(alone, "000001", unit="00001") == ["1"]
    questions = alone.among(["00000", "00001", "day1/00000", "photos-00000"])
    assert asked(questions, "000001", unit="00000") == ["1"]
    assert asked(questions, "000001", unit="00001") == []
    assert asked(questions, "000002", unit="00001") == ["2"]
    assert asked(questions, "000003", unit="day1/00000") == ["3"]
    assert asked(questions, "000003", unit="00000") == []
    assert pickle.loads(pickle.dumps(questions)).units == questions.units


def test_loose_files_are_named_by_their_folder(tmp_path: Path) -> None:
    # Once the question of more/a.jpg was asked of photos/a.jpg as well.
    path = write(tmp_path, "q.jsonl", lines(llava(1, "photos/a.jpg"), llava(2, "more/a.jpg"),
                                           llava(3, "photos/sub/b.jpg")))  # fmt: skip
    questions = read_questions(path).among(["photos-00000", "more-00000"])
    assert asked(questions, "a.jpg", unit="photos-00000") == ["1"]
    assert asked(questions, "a.jpg", unit="more-00000") == ["2"]
    assert asked(questions, "sub/b.jpg", unit="photos-00000") == ["3"]
    assert asked(questions, "b.jpg", unit="more-00000") == []


def test_folders_of_a_data_set_that_no_key_has_join_by_the_unit_among_them(tmp_path: Path) -> None:
    path = write(tmp_path, "q.jsonl", lines(llava(1, "ocr_vqa/images/7.jpg"), llava(2, "vg/VG_100K/7.jpg"),
                                           llava(3, "coco/train2017/8.jpg")))  # fmt: skip
    questions = read_questions(path).among(["ocr_vqa", "vg", "rest"])
    assert asked(questions, "7", unit="ocr_vqa") == ["1"]
    assert asked(questions, "7", unit="vg") == ["2"]
    assert asked(questions, "7", unit="rest") == []
    assert asked(questions, "8", unit="rest") == ["3"]


# The kinds of file


def test_llava_s_json_lines(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "q.jsonl",
        "\ufeff"
        + lines(
            llava(7, "b.jpg", "Second image?"),
            llava(8, "a.jpg", "One?", category="conv"),
        )
        + "\n"
        + lines(llava(9, "a.jpg", "Two?\nIn two lines.")),
    )
    questions = read_questions(path)
    assert questions.table.schema.equals(load_schema("questions"))
    found = questions.of(unit="00000", key="a")
    assert [(q.question_id, q.text) for q in found] == [
        ("8", "One?"),
        ("9", "Two?\nIn two lines."),
    ]
    assert asked(questions, "b.jpg") == ["7"]


def test_vqav2_s_json(tmp_path: Path) -> None:
    document = {
        "info": {"year": 2017},
        "questions": [
            {"image_id": 42, "question": "What?", "question_id": 42001},
            {"image_id": 42, "question": "Who?", "question_id": 42000},
            {"image_id": 9, "question": "Where?", "question_id": 9000},
        ],
    }
    questions = read_questions(write(tmp_path, "v2.json", json.dumps(document, indent=1)))
    assert asked(questions, "COCO_val2014_000000000042") == ["42001", "42000"]
    assert asked(questions, "000000000009.jpg") == ["9000"]


def test_gqa_s_json(tmp_path: Path) -> None:
    document = {
        "201307251": {"imageId": "n161313", "question": "Is it red?", "answer": "yes"},
        "201640614": {"imageId": "2354786", "question": "Who?", "answer": "man"},
    }
    questions = read_questions(write(tmp_path, "testdev.json", json.dumps(document)))
    assert asked(questions, "n161313.jpg") == ["201307251"]
    assert asked(questions, "2354786") == ["201640614"]


def test_json_lines_named_json_as_pope_s_are(tmp_path: Path) -> None:
    record = llava(1, "COCO_val2014_000000310196.jpg", "Is there a car?", label="no")
    questions = read_questions(write(tmp_path, "coco_pope_random.json", lines(record, record)))
    assert asked(questions, "310196") == ["1", "1:2"]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["1", "1:2", "1:2:2", "2", ""]))))
def test_no_two_questions_of_an_image_have_one_id(tmp_path_factory, given_ids) -> None:
    # `1, 1, 1:2` became `1, 1:2, 1:2`: two rows of one id ended the run with a traceback.
    folder = tmp_path_factory.mktemp("q")
    records = [
        llava(f"q{ident}", f"{image}.jpg", str(n)) for n, (image, ident) in enumerate(given_ids)
    ]
    if not records:
        return
    questions = read_questions(write(folder, "q.jsonl", lines(*records)))
    for image in "ab":
        own = [f"q{ident}" for name, ident in given_ids if name == image]
        found = asked(questions, image)
        assert len(found) == len(own) == len(set(found))
        firsts = [ident for n, ident in enumerate(own) if ident not in own[:n]]
        assert [ident for n, ident in enumerate(found) if own.index(own[n]) == n] == firsts


def test_an_image_asked_by_its_key_and_by_its_bytes_has_no_id_twice(tmp_path: Path) -> None:
    records = [
        llava(1, "a.jpg", "One?"),
        llava(1, DATA_URI, "Two?"),
        llava("1:2", "a.jpg", "Three?"),
    ]
    questions = read_questions(write(tmp_path, "q.jsonl", lines(*records)))
    found = asked(questions, "a", sha256=hashlib.sha256(PIXEL).hexdigest())
    assert found == ["1", "1:3", "1:2"]


def test_textvqa_s_json_and_a_plain_list(tmp_path: Path) -> None:
    entry = {"question_id": 34602, "image_id": "003a8ae2ef43b901", "question": "What brand?"}
    document = json.dumps({"dataset_type": "val", "data": [entry]})
    assert asked(read_questions(write(tmp_path, "t.json", document)), "003a8ae2ef43b901.jpg") == [
        "34602"
    ]
    vizwiz = json.dumps([{"image": "VizWiz_val_00000000.jpg", "question": "What?"}])
    assert asked(read_questions(write(tmp_path, "v.json", vizwiz)), "VizWiz_val_00000000") == ["1"]


def test_scienceqa_s_conversations_without_an_image_are_left_out_and_counted(
    tmp_path: Path,
) -> None:
    turns = [{"from": "human", "value": "<image>\nWhich?\nA. x\nB. y"}]
    document = json.dumps(
        [
            {"id": "4", "image": "4/image.png", "conversations": turns},
            {"id": "5", "conversations": turns},
        ]
    )
    questions = read_questions(write(tmp_path, "sqa.json", document))
    assert [q.text for q in questions.of(unit="u", key="4/image.png")] == ["Which?\nA. x\nB. y"]
    assert questions.notes == ("Questions without an image, left out: 1",)


def test_mmbench_s_tsv_asks_hint_question_and_options(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "mmbench.tsv",
        "index\tquestion\thint\tA\tB\tC\tD\timage\n"
        "241\tWhich?\tA hint.\tone\ttwo\t\t\t/9j/4AAQ\n"
        "252\tWho?\tnan\tone\ttwo\tthree\tfour\t/9j/4AAQ\n",
    )
    questions = read_questions(path)
    assert [q.text for q in questions.of(unit="u", key="241")] == [
        "A hint.\nWhich?\nA. one\nB. two"
    ]
    assert [q.text for q in questions.of(unit="u", key="252.jpg")] == [
        "Who?\nA. one\nB. two\nC. three\nD. four"
    ]


def test_csv_with_line_breaks_inside_a_field(tmp_path: Path) -> None:
    path = write(tmp_path, "q.csv", 'id,image,question\nx1,a.jpg,"One,\nor two?"\n')
    assert [q.text for q in read_questions(path).of(unit="u", key="a")] == ["One,\nor two?"]


def test_parquet_with_image_names_and_with_images(tmp_path: Path) -> None:
    named = pa.table({"question_id": [5], "image_id": [42], "question": ["What?"], "more": [1.0]})
    pq.write_table(named, tmp_path / "named.parquet")
    assert asked(read_questions(str(tmp_path / "named.parquet")), "000000000042") == ["5"]
    inline = pa.table(
        {
            "question": ["One?", "Two?"],
            "image": [{"bytes": PIXEL, "path": None}, {"bytes": None, "path": "a.png"}],
        }
    )
    pq.write_table(inline, tmp_path / "inline.parquet")
    questions = read_questions(str(tmp_path / "inline.parquet"))
    assert asked(questions, "z", sha256=hashlib.sha256(PIXEL).hexdigest()) == ["1"]
    assert asked(questions, "a") == ["2"]


def test_openai_batch_lines_with_urls_and_data_uris(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "batch.jsonl",
        lines(
            batch_line("r1", "https://example.org/pictures/cat.jpg", "A cat?"),
            batch_line("r2", DATA_URI, "A dog?", model="gpt", max_tokens=5),
        ),
    )
    questions = read_questions(path)
    assert asked(questions, "cat") == ["r1"]
    assert asked(questions, "00018", sha256=hashlib.sha256(PIXEL).hexdigest()) == ["r2"]
    assert len(questions.notes) == 2
    assert all("is not applied; give it as a flag" in note for note in questions.notes)
    assert "base64" not in str(questions.table["image"].to_pylist())


# What joined nothing


def test_a_copy_for_a_worker_answers_alike(tmp_path: Path) -> None:
    path = write(tmp_path, "q.jsonl", lines(*(llava(i, f"{i % 7}.jpg") for i in range(50))))
    questions = read_questions(path)
    copy = pickle.loads(pickle.dumps(questions))
    for key in map(str, range(8)):
        assert copy.of(unit="u", key=key) == questions.of(unit="u", key=key)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), min_size=1, max_size=30))
def test_every_question_is_asked_once_of_its_image_in_file_order(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[int, int]]
) -> None:
    folder = tmp_path_factory.mktemp("q")
    records = [llava(question, f"{image}.png", str(n)) for n, (question, image) in enumerate(pairs)]
    questions = read_questions(write(folder, "q.jsonl", lines(*records)))
    for image in range(6):
        found = questions.of(unit="u", key=f"{image}")
        assert [int(q.text) for q in found] == [n for n, (_, i) in enumerate(pairs) if i == image]
        assert len({q.question_id for q in found}) == len(found)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("q.jsonl", lines(llava(1, "a"), llava(2, "a", ""), llava(3, "a", " \n"))),
        ("q.jsonl", lines(llava(1, "a"), {"question_id": 2, "image": "a", "text": None},
                          llava(3, "a", ""))),
        ("q.json", json.dumps([llava(1, "a"), llava(2, "a", ""), llava(3, "a", "")])),
        ("q.csv", 'question_id,image,question\n1,a,What is it?\n2,a,\n3,a," "\n'),
        ("b.jsonl", lines(batch_line("1", "a"), batch_line("2", "a", ""), batch_line("3", "a", " "))),
    ],
)  # fmt: skip
def test_an_empty_question_costs_its_own_row_and_not_the_file(
    tmp_path: Path, name: str, content: str
) -> None:
    questions = read_questions(write(tmp_path, name, content))

    def lookup(unit: str, key: str, sha256: str | None) -> list[tuple[str, str]]:
        return [(q.question_id, q.text) for q in questions.of(unit=unit, key=key, sha256=sha256)]

    job = Job(questions=name, suffix=" Be brief.")
    asks = asks_of(job, "u", "a", {}, Guards(["</s>"]), lookup=lookup)
    assert asks == [
        Ask("1", ("What is it? Be brief.",)),
        Ask("2", (), "question 2 of the file is empty"),
        Ask("3", (), "question 3 of the file is empty"),
    ]
    (talk,) = asks_of(job.but(dialogue=True), "u", "a", {}, Guards(["</s>"]), lookup=lookup)
    assert talk.why_not == "question 2 of the file is empty"


# Files that cannot be used


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("q.jsonl", lines(llava(1, "a")) + "{broken\n", r"q\.jsonl, line 2: not JSON"),
        ("q.jsonl", lines({"image": "a"}), r"line 1: no question; expected one of text, question"),
        ("q.jsonl", lines({"text": "What?"}), r"line 1: no image; expected one of image"),
        ("q.jsonl", lines({"image": "a", "text": 5}), r"line 1: text is 5; expected a question"),
        ("q.jsonl", lines(llava(1, "")), r"line 1: '' where an id or a name was expected"),
        ("q.jsonl", lines(llava(1.5, "a")), r"line 1: 1.5 where an id or a name was expected"),
        ("q.jsonl", lines(llava(1, "data:image/png,xx")), r"question 1: a data: URI that is not"),
        ("q.jsonl", "[1]\n", r"line 1: expected an object"),
        ("q.jsonl", "\n\n", r"holds no question about an image"),
        ("q.json", '{"info": 1}', r"q\.json: no questions found"),
        ("q.json", "[1, 2", r"q\.json: not JSON"),
        ("q.csv", "image,question\na.jpg\n", r"q\.csv, line 2: another number of fields"),
        ("q.csv", "image\na.jpg\n", r"line 2: no question; expected one of .* found image"),
        ("q.txt", "What?", r"a questions file is \.jsonl"),
        ("q.parquet", "PAR", r"q\.parquet: cannot be read"),
    ],
)
def test_a_bad_file_is_refused_with_the_line(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        read_questions(write(tmp_path, name, content))
    assert "\n" not in str(caught.value)


def test_a_line_that_is_not_utf_8_is_refused_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_bytes(lines(llava(1, "a")).encode() + b'{"text": "\xff"}\n')
    with pytest.raises(UsageError, match=r"line 2: not JSON"):
        read_questions(str(path))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such questions file"):
        read_questions(str(tmp_path / "none.jsonl"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"messages": []}, "body has no messages"),
        ({"messages": [{"role": "system", "content": "Be brief."}]}, "messages of system;"),
        ({"messages": [{"role": "user", "content": "What?"}]}, "0 images in the message"),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
            "a message part of type 'input_audio'",
        ),
    ],
)
def test_a_batch_line_that_is_not_one_question_is_refused(
    tmp_path: Path, change: dict, message: str
) -> None:
    record = batch_line("r1", "cat.jpg")
    record["body"].update(change)
    with pytest.raises(UsageError, match=message):
        read_questions(write(tmp_path, "b.jsonl", lines(record)))
