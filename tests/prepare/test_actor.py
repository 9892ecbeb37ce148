"""Prepare: every row comes out, in its place, good or with what was wrong with it."""

import hashlib
import io
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageFile

from llava_batch.checkpoint import Checkpoint
from llava_batch.ids import answer_digest
from llava_batch.job import Job
from llava_batch.prepare.actor import Prepare
from llava_batch.prepare.fetch import Fetch
from llava_batch.prepare.image_processor import load_image_processor
from llava_batch.read.columns import image_schema
from llava_batch.read.find import find_units
from llava_batch.read.reading import Reading
from llava_batch.read.source import read_blocks
from llava_batch.tables import PREPARED
from llava_batch.workers import process
from tests.without_ray import LocalState, go_without_ray

CHECKPOINT = Checkpoint.find(Job())
NUM_TOKENS = 64


@pytest.fixture(autouse=True)
def _without_ray(monkeypatch) -> Iterator[None]:
    go_without_ray(monkeypatch)
    monkeypatch.setattr(Checkpoint, "find", lambda job: CHECKPOINT)  # loaded once for all tests
    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    yield
    Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = before


def preparer(state: LocalState | None = None, lookup=None, **settings: Any) -> Prepare:
    return Prepare(Job(**settings), state or LocalState(), lookup)


def picture(width: int = 30, height: int = 20, colour: str = "red", kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, kind)
    return buffer.getvalue()


def row(*images: bytes, number: int = 0, columns: dict | None = None, **change: Any) -> dict:
    return {
        "unit": "u",
        "ordinal": number,
        "end": False,
        "key": f"k{number}",
        "mark": "",
        "id_base": "u",
        "images": list(images) or None,
        "columns": json.dumps(columns) if columns is not None else None,
        "error_code": None,
        "error_message": None,
    } | change


def end_row(number: int) -> dict:
    return row(number=number, end=True, key=None, mark=None)


def table(*rows: dict, keep: pa.Schema | None = None) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=image_schema(keep or pa.schema([])))


def prepared(prepare: Prepare, *rows: dict) -> list[dict]:
    return [made for part in prepare.tables(table(*rows)) for made in part.to_pylist()]


ODD = [
    picture(),
    b"",
    b"<html>404</html>",
    picture(kind="JPEG")[:200],
    picture(1, 1),
    picture(10_000, 1),
    b"\x89PNG\r\n\x1a\n" + b"\0" * 40,
    picture(kind="WEBP"),
]
CODES = [
    None, "image_unreadable", "image_unreadable", "image_truncated", None, "image_too_large",
    "image_unreadable", None,
]  # fmt: skip


def test_every_row_comes_out_in_its_place_with_its_own_code() -> None:
    rows = [row(data, number=n) for n, data in enumerate(ODD)] + [end_row(len(ODD))]
    out = prepared(preparer(), *rows)
    assert [r["ordinal"] for r in out] == list(range(len(ODD) + 1))
    codes = [r["error_code"] for r in out]
    # What each decoder calls a picture that is not all there is its own affair.
    assert [c if c != "image_truncated" else "image_unreadable" for c in codes[:-1]] == [
        c if c != "image_truncated" else "image_unreadable" for c in CODES
    ]
    assert all(r["error_message"] for r in out if r["error_code"])
    assert out[-1]["end"] and out[-1]["asks"] is None


def test_a_row_among_broken_ones_is_as_it_is_alone() -> None:
    good = row(ODD[0], number=0)
    beside = [row(data, number=n) for n, data in enumerate(ODD[1:], 1)]
    assert prepared(preparer(), *beside, good)[-1] == prepared(preparer(), good)[0]


@pytest.mark.parametrize("num_samples", [1, 2])
def test_an_image_whose_every_answer_stands_is_left_to_be_copied_and_any_other_is_asked(
    num_samples,
) -> None:
    def prepare(*standing: tuple[str, str, str]) -> list[dict]:
        digests = [
            answer_digest(ident, hashlib.sha256(picture(colour=colour)).hexdigest(), [question])
            for ident, colour, question in standing
        ]
        job = Job(question=("What?", "Where?"), num_samples=num_samples, temperature=1.0)
        actor = Prepare(job, LocalState(), standing=np.unique(np.array(digests, np.uint64)))
        return prepared(actor, row(picture(colour="red")))

    samples = [f"~{n}" for n in range(num_samples)] if num_samples > 1 else [""]
    all_of_it = [(f"u/k0#{q}{s}", "red", text)
                 for q, text in (("0", "What?"), ("1", "Where?")) for s in samples]  # fmt: skip
    (copied,) = prepare(*all_of_it)
    assert copied["copied"] and copied["asks"] == [] and copied["pixels"] is None
    others = ([(i, "blue", q) for i, _, q in all_of_it], [(i, c, "Who?") for i, c, _ in all_of_it])
    for standing in (all_of_it[:-1], *others):
        (asked,) = prepare(*standing)
        assert not asked["copied"] and len(asked["asks"]) == 2


def test_pixels_leave_as_the_checkpoints_own_in_uint8() -> None:
    data = picture(31, 20)
    (out,) = prepared(preparer(image_aspect="crop"), row(data))
    assert out["shapes"] == [[1, 3, 112, 112]] and out["layouts"] == [[]]
    pixels = np.frombuffer(out["pixels"], np.uint8).reshape(out["shapes"][0])
    assert np.array_equal(
        pixels[0], load_image_processor(CHECKPOINT).pixels(Image.open(io.BytesIO(data)))
    )
    assert (out["width"], out["height"], out["num_images"]) == (31, 20, 1)


def test_auto_pads_where_the_checkpoint_does() -> None:
    def pixels(aspect: str) -> bytes:
        return prepared(preparer(image_aspect=aspect), row(picture(90, 20)))[0]["pixels"]

    assert load_image_processor(CHECKPOINT).pads
    assert pixels("auto") == pixels("pad") != pixels("crop")


def test_a_turned_photo_has_its_upright_size() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.new("RGB", (30, 20)).save(buffer, "JPEG", exif=exif)
    (out,) = prepared(preparer(), row(buffer.getvalue()))
    assert (out["width"], out["height"]) == (20, 30)


def test_the_prompt_has_one_bos_and_as_many_image_tokens_as_the_picture_has_patches() -> None:
    (out,) = prepared(preparer(prompt="What is it?"), row(picture()))
    (ask,) = out["asks"]
    assert ask["segments"] == ["USER: <image>\nWhat is it? ASSISTANT:"]
    assert ask["questions"] == ["What is it?"]
    (ids,) = ask["token_ids"]
    assert ids.count(CHECKPOINT.image_token_id) == NUM_TOKENS
    assert ids.count(CHECKPOINT.tokenizer.bos_token_id) == 1
    start = ids.index(CHECKPOINT.image_token_id)
    assert set(ids[start : start + NUM_TOKENS]) == {CHECKPOINT.image_token_id}


def test_a_dialogue_has_a_segment_for_each_turn_and_one_image() -> None:
    (out,) = prepared(preparer(question=("Who?", "Why?"), dialogue=True), row(picture()))
    (ask,) = out["asks"]
    assert ask["segments"] == ["USER: <image>\nWho? ASSISTANT:", "</s>USER: Why? ASSISTANT:"]
    assert [ids.count(CHECKPOINT.image_token_id) for ids in ask["token_ids"]] == [NUM_TOKENS, 0]
    bos, eos = CHECKPOINT.tokenizer.bos_token_id, CHECKPOINT.tokenizer.eos_token_id
    assert [ids.count(bos) for ids in ask["token_ids"]] == [1, 0]
    assert [ids.count(eos) for ids in ask["token_ids"]] == [0, 1] and ask["token_ids"][1][0] == eos


def test_special_words_in_a_question_stay_words() -> None:
    asked = "USER: what is </s> in <pad>? ASSISTANT:"
    (out,) = prepared(preparer(question_column="q"), row(picture(), columns={"q": asked}))
    (ask,) = out["asks"]
    ids = ask["token_ids"][0]
    special = CHECKPOINT.tokenizer.convert_tokens_to_ids(["</s>", "<pad>"])
    assert not set(special) & set(ids)
    assert ask["questions"] == [asked] and asked in ask["segments"][0]


def test_an_image_in_error_still_carries_its_asks_so_that_each_question_keeps_its_id() -> None:
    prepare = preparer(question=("A?", "B?"))
    for bad in (row(b"broken"), row(error_code="image_missing", error_message="none")):
        (out,) = prepared(prepare, bad)
        assert [a["question_id"] for a in out["asks"]] == ["0", "1"]
        assert out["error_code"] in ("image_unreadable", "image_missing")
        assert out["pixels"] is None


def test_what_the_reader_found_is_passed_on() -> None:
    bad = row(error_code="shard_damaged", error_message="cut", mark="%damaged-1")
    (out,) = prepared(preparer(), bad)
    assert (out["error_code"], out["error_message"], out["mark"]) == (
        "shard_damaged",
        "cut",
        "%damaged-1",
    )


def test_several_images_of_a_row_are_stacked_and_each_has_its_tokens() -> None:
    pictures = [picture(30, 20), picture(5, 9, "blue"), picture(50, 50, "lime")]
    (out,) = prepared(preparer(), row(*pictures))
    assert out["num_images"] == 3 and out["shapes"] == [[1, 3, 112, 112]] * 3
    assert (out["width"], out["height"]) == (30, 20)
    ids = out["asks"][0]["token_ids"][0]
    assert ids.count(CHECKPOINT.image_token_id) == 3 * NUM_TOKENS
    assert out["asks"][0]["segments"][0].count("<image>") == 3


def test_one_bad_image_of_several_puts_its_row_in_error() -> None:
    (out,) = prepared(preparer(), row(picture(), b"broken"))
    assert out["error_code"] == "image_unreadable" and out["pixels"] is None


@pytest.mark.parametrize(
    ("question", "num_images"),
    [("<image> <image> Same?", 1), ("<image> Who?", 2)],
)
def test_another_number_of_marks_than_images_is_a_bad_prompt_of_that_ask(
    question: str, num_images: int
) -> None:
    prepare = preparer(question=(question, "Fine?"))
    (out,) = prepared(prepare, row(*[picture()] * num_images))
    bad, good = out["asks"]
    assert bad["error_code"] == "bad_prompt" and "<image> mark" in bad["error_message"]
    assert good["error_code"] is None and good["token_ids"]
    assert out["error_code"] is None and out["pixels"]


def test_a_null_column_is_a_bad_prompt_of_its_row_alone() -> None:
    prepare = preparer(prompt="Alt: {alt}.")
    rows = [row(picture(), number=n, columns={"alt": a}) for n, a in enumerate(["x", None, "y"])]
    out = prepared(prepare, *rows)
    assert [r["asks"][0]["error_code"] for r in out] == [None, "bad_prompt", None]
    assert out[1]["asks"][0]["error_message"] == "column alt is null"


def test_a_question_with_half_a_character_is_a_bad_prompt_of_its_ask_alone() -> None:
    prepare = preparer(question_column="q")
    rows = [
        row(picture(), columns={"q": ["Is \ud83d it?", "Fine?"]}),
        row(b"broken", number=1, columns={"q": "Is \ud83d it?"}),
    ]
    out = prepared(prepare, *rows)
    bad, good = out[0]["asks"]
    assert bad["error_code"] == "bad_prompt" and "U+D83D" in bad["error_message"]
    assert bad["questions"] == ["Is \\ud83d it?"] and bad["token_ids"] is None
    assert good["error_code"] is None and good["token_ids"] and out[0]["pixels"]
    assert out[1]["error_code"] == "image_unreadable"


def test_a_question_that_the_template_cannot_take_is_a_bad_prompt_of_its_row_alone(
    tmp_path: Path,
) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("{% for m in messages %}Q: {{ m.content | replace('cat', 'dog') }}{% endfor %}")
    prepare = preparer(question_column="q", template=str(file))
    rows = [row(picture(), number=n, columns={"q": q}) for n, q in enumerate(["A cat?", "A dog?"])]
    bad, good = (r["asks"][0] for r in prepared(prepare, *rows))
    assert bad["error_code"] == "bad_prompt" and "is lost in it" in bad["error_message"]
    assert good["error_code"] is None and good["token_ids"]


def test_questions_are_looked_up_by_unit_key_and_the_hash_of_the_bytes() -> None:
    import hashlib

    seen = []

    def lookup(unit: str, key: str, sha256: str | None) -> list[tuple[str, str]]:
        seen.append((unit, key, sha256))
        return [("q1", "Who?")]

    prepare = preparer(lookup=lookup, questions="q.jsonl")
    out = prepared(prepare, row(picture()), row(number=1, error_code="image_missing"))
    sha256 = hashlib.sha256(picture()).hexdigest()
    assert seen == [("u", "k0", sha256), ("u", "k1", None)]
    assert out[0]["image_sha256"] == sha256
    assert out[0]["asks"][0]["question_id"] == "q1"


def test_kept_columns_travel_beside_their_rows() -> None:
    keep = pa.schema([("caption", pa.string()), ("score", pa.float64())])
    rows = [
        row(picture(), number=n) | {"keep.caption": c, "keep.score": s}
        for n, (c, s) in enumerate([("a", 1.0), (None, 2.0)])
    ]
    (out,) = preparer().tables(table(*rows, keep=keep))
    assert out.schema.names == [*PREPARED.names, "keep.caption", "keep.score"]
    assert out["keep.caption"].to_pylist() == ["a", None]
    assert out["keep.score"].to_pylist() == [1.0, 2.0]


def test_a_batch_of_nothing_but_bad_rows_has_the_schema_of_a_good_one() -> None:
    (bad,) = preparer().tables(table(row(b"x"), end_row(1)))
    (good,) = preparer().tables(table(row(picture())))
    assert bad.schema == good.schema == PREPARED


def test_pixels_leave_in_tables_of_bounded_bytes(monkeypatch) -> None:
    # 32 rows of an image cut in many tiles were one batch of hundreds of megabytes.
    keep = pa.schema([("n", pa.int64())])
    size = 3 * 112 * 112
    monkeypatch.setattr("llava_batch.prepare.actor._TABLE_BYTES", 2 * size)
    rows = [row(picture(), number=n) | {"keep.n": n} for n in range(5)]
    rows[1]["images"] = [b"broken"]
    state = LocalState()
    out = [*preparer(state).tables(table(*rows, end_row(5), keep=keep))]
    assert [part["ordinal"].to_pylist() for part in out] == [[0, 1, 2], [3, 4], [5]]
    assert [part["keep.n"].to_pylist() for part in out] == [[0, 1, 2], [3, 4], [None]]
    assert state.stages.remote()["prepare"]["rows"] == 5
    assert not state.state._attempts


def test_the_pixel_limit_is_the_jobs() -> None:
    (out,) = prepared(preparer(max_pixels=30 * 30), row(picture(31, 20)))
    assert out["error_code"] == "image_too_large"
    assert "--max-pixels" in out["error_message"]


def test_a_folder_of_odd_and_broken_files_gives_a_row_for_each(tmp_path) -> None:
    kinds = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "ICO", "TGA", "PCX")
    whole = {f"good.{kind.lower()}": picture(kind=kind) for kind in kinds}
    modes = ("1", "L", "P", "RGBA", "LA", "I;16")
    for mode in modes:
        buffer = io.BytesIO()
        Image.new(mode, (9, 7)).save(buffer, "PNG")
        whole[f"mode {mode}.png"] = buffer.getvalue()
    broken = {f"cut {name}": data[: len(data) // 2] for name, data in whole.items()}
    broken |= {f"odd {n}.jpg": data for n, data in enumerate(ODD)} | {"sub/#~%.jpg": b"GIF89a"}
    for name, data in (whole | broken).items():
        path = tmp_path / "odd" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (unit,) = find_units([str(tmp_path / "odd")])
    prepare = preparer()
    out = [
        r
        for block in read_blocks(unit, Reading.of(Job(), (), pa.schema([])))
        for part in prepare.tables(block)
        for r in part.to_pylist()
    ]
    *rows, end = out
    assert end["end"] and end["ordinal"] == len(whole | broken)
    assert sorted(r["key"] for r in rows) == sorted(whole | broken)
    assert {r["key"] for r in rows if r["pixels"]} >= set(whole)
    for r in rows:
        assert bool(r["pixels"]) != bool(r["error_code"]), r["key"]
        assert len(r["asks"]) == 1


# A row that killed a worker


def test_rows_are_written_down_while_in_hand_and_struck_off_after() -> None:
    state = LocalState()
    seen = []
    prepare = preparer(state)
    inner = prepare.row
    prepare.row = lambda r: (seen.append(dict(state.state._attempts)), inner(r))[1]  # type: ignore
    prepared(prepare, row(picture()), end_row(1))
    assert {row: len(nodes) for row, nodes in seen[0].items()} == {("prepare", "u", 0): 1}
    assert state.state._attempts == {}


def test_a_row_that_killed_its_worker_too_often_is_given_up_and_its_neighbours_are_not() -> None:
    state = LocalState()
    for _ in range(3):
        state.state.begin([("prepare", "u", 1)], "here")
    prepare = preparer(state, max_tries=3)
    tried = []
    inner = prepare._put_pixels
    prepare._put_pixels = lambda images, out: (tried.append(out["ordinal"]), inner(images, out))[1]  # type: ignore
    out = prepared(prepare, row(picture(), number=0), row(picture(), number=1), end_row(2))
    assert [r["error_code"] for r in out] == [None, "worker_died", None]
    assert "3 times" in out[1]["error_message"]
    assert tried == [0]
    assert [a["question_id"] for a in out[1]["asks"]] == [None]


# Images that a table only names


def named(*uris: str, number: int = 0, **change: Any) -> dict:
    return row(number=number, uris=list(uris), **change)


def test_a_named_image_is_prepared_as_one_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    there, fetched = prepared(preparer(), row(picture()), named(str(tmp_path / "a.png"), number=1))
    same = {"ordinal", "key"}
    assert {n: v for n, v in fetched.items() if n not in same} == {
        n: v for n, v in there.items() if n not in same
    }
    assert fetched["image_sha256"] == hashlib.sha256(picture()).hexdigest()


def test_an_image_that_cannot_be_had_costs_its_own_row_alone(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    (tmp_path / "b.png").write_bytes(b"<html>")
    (tmp_path / "c.png").write_bytes(picture() + b"x" * 5000)
    good = str(tmp_path / "a.png")
    rows = [
        named(good),
        named(str(tmp_path / "none.png"), number=1),
        named(str(tmp_path / "b.png"), number=2),
        named(str(tmp_path / "c.png"), number=3),
        row(picture(), number=4),
        row(number=5, error_code="image_missing", error_message="null"),
        named(good, str(tmp_path / "none.png"), number=6),
        named("", good, images=[picture(), b""], number=7),
        end_row(8),
    ]
    out = prepared(preparer(max_image_bytes=4000, prompt="<image><image>What?"), *rows)
    assert [r["error_code"] for r in out] == [
        None, "image_missing", "image_unreadable", "image_too_large", None, "image_missing",
        "image_missing", None, None,
    ]  # fmt: skip
    assert [r["num_images"] for r in out] == [1, 1, 1, 1, 1, 0, 2, 2, 0]
    assert out[6]["image_sha256"] == out[0]["image_sha256"] and out[1]["image_sha256"] is None
    assert all(r["asks"] for r in out[:-1])  # a row in error stands with what was asked


def test_a_worker_that_waits_for_a_storage_is_not_taken_for_hung(tmp_path, monkeypatch) -> None:
    watched = []

    @contextmanager
    def watchdog(seconds: float) -> Iterator[None]:
        watched.append(seconds)
        yield
        watched.pop()

    def away(self: Any, flight: Any) -> bytes:
        # The row before may be watched still, while it is decoded; whoever waits for this one is not.
        deadline = time.monotonic() + 5
        while watched and time.monotonic() < deadline:
            time.sleep(0.001)
        assert not watched
        return picture()

    monkeypatch.setattr(process, "watchdog", watchdog)
    monkeypatch.setattr(Fetch, "_try", away)
    prepare = preparer(LocalState())
    out = prepared(prepare, named("s3://b/1"), named("s3://b/2", number=1))
    assert [r["error_code"] for r in out] == [None, None]


def test_a_row_that_was_in_hand_when_a_worker_died_is_fetched_by_itself(tmp_path) -> None:
    paths = [tmp_path / f"{n}.png" for n in range(3)]
    for path in paths:
        path.write_bytes(picture())
    rows = [named(str(path), number=n) for n, path in enumerate(paths)]
    state = LocalState()
    state.state.begin([("prepare", "u", 0), ("prepare", "u", 1)], "here")
    for _ in range(3):
        state.state.begin([("prepare", "u", 1)], "here")
    out = prepared(preparer(state), *rows)
    assert [r["error_code"] for r in out] == [None, "worker_died", None]
