"""Questions, dialogues and instruction data end to end, on the demo model's own held-out scenes."""

import io
import json
import tarfile
from pathlib import Path

import duckdb
import pyarrow.dataset as ds
import pytest
from PIL import Image

from llava_batch.cli.instruct import run_instruct
from llava_batch.cli.jobs import app, exit_status
from llava_batch.demo.questions import Question, dialogue, questions
from llava_batch.demo.scenes import draw, make_scene
from llava_batch.demo.scoring import score_answer
from llava_batch.errors import RunFailed
from llava_batch.job import Job
from llava_batch.pipeline import run
from tests.instruct.llava_form import check_llava

pytestmark = pytest.mark.usefixtures("local_ray")

FIRST_SEED = 77 * 10**9
NUM_SCENES = 16


def scenes() -> list:
    return [make_scene(FIRST_SEED + number) for number in range(NUM_SCENES)]


def write_tar(path: Path, drawn: list) -> Path:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, scene in enumerate(drawn):
            buffer = io.BytesIO()
            draw(scene, short_side=224).save(buffer, "PNG")
            for extension, data in (("png", buffer.getvalue()), ("txt", b"an alt text")):
                info = tarfile.TarInfo(f"{number:06}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def answers(out: Path) -> list[dict]:
    return ds.dataset(out).to_table().to_pylist()


def test_a_questions_file_is_joined_by_file_name_and_what_joins_nothing_is_counted(tmp_path):
    tar = write_tar(tmp_path / "scenes.tar", scenes())
    asked: dict[str, Question] = {}
    lines: list[dict[str, str]] = []
    for number, scene in enumerate(scenes()[:-2]):  # the last two images have no question
        for question in questions(scene):
            ident = f"q{len(lines)}"
            asked[ident] = question
            lines.append(
                {"question_id": ident, "image": f"{number:06}.png", "text": question.question}
            )
    lines.append({"question_id": "lost", "image": "999999.png", "text": "Where is it?"})
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    out = tmp_path / "out"
    summary = run(Job(input=(str(tar),), output=str(out), questions=str(path), quiet=True))
    rows = answers(out)
    assert {row["question_id"] for row in rows} == set(asked)
    right = [score_answer(asked[row["question_id"]], row["answer"]) for row in rows]
    assert sum(right) / len(right) >= 0.9
    assert summary.run["images_without_question"] == 2
    assert summary.run["questions_without_image"] == 1


def test_a_name_that_is_in_two_shards_is_refused_unless_it_is_meant_or_said_exactly(tmp_path):
    # Once it was asked in every shard, without a word.
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps({"question_id": 1, "image": "000001.png", "text": "Is it red?"}))
    job = Job(input=(str(tmp_path / "in"),), questions=str(path), quiet=True, max_new_tokens=4)
    night = job.but(output=str(tmp_path / "nightly"))
    write_tar(tmp_path / "in" / "first.tar", scenes()[:3])
    assert run(night).run["questions_with_several_images"] == 0
    write_tar(tmp_path / "in" / "second.tar", scenes()[:3])
    with pytest.raises(RunFailed, match="joins second/000001 and an image that an earlier run"):
        run(night)
    with pytest.raises(RunFailed, match=r"joins (first|second)/000001 and an image of unit"):
        run(job.but(output=str(tmp_path / "at once")))
    said = json.loads((tmp_path / "nightly" / "_run.json").read_text())
    assert (said["status"], said["run"]["questions_with_several_images"]) == ("stopped", 1)
    assert said["totals"]["units"] == 1
    both = run(night.but(join_anywhere=True))  # goes on: what was committed stands
    assert (both.run["units_done_before"], both.run["questions_with_several_images"]) == (1, 1)
    assert [row["id"] for row in answers(tmp_path / "nightly")] == [
        "first/000001#1",
        "second/000001#1",
    ]
    path.write_text(json.dumps({"question_id": 1, "image": "second/000001.png", "text": "Red?"}))
    exact = run(job.but(output=str(tmp_path / "exact")))
    assert exact.run["questions_with_several_images"] == 0
    assert [row["id"] for row in answers(tmp_path / "exact")] == ["second/000001#1"]


def test_a_dialogues_second_turn_is_answered_from_the_first_and_not_without_it(tmp_path):
    talks = [(s, t) for n in range(60) if (t := dialogue(s := make_scene(FIRST_SEED + n)))][:24]
    tar = write_tar(tmp_path / "scenes.tar", [scene for scene, _ in talks])
    lines = [
        {"question_id": f"{n}-{turn}", "image": f"{n:06}.png", "text": turns[turn].question}
        for n, (_, turns) in enumerate(talks)
        for turn in (0, 1)
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    job = Job(input=(str(tar),), questions=str(path), quiet=True)
    run(job.but(output=str(tmp_path / "together"), dialogue=True))
    run(job.but(output=str(tmp_path / "apart")))
    together = answers(tmp_path / "together")
    alone = {r["question_id"]: r["answer"] for r in answers(tmp_path / "apart")}
    good = [score_answer(t[1], r["answer"]) for (_, t), r in zip(talks, together, strict=True)]
    without = [score_answer(t[1], alone[f"{n}-1"]) for n, (_, t) in enumerate(talks)]
    assert sum(good) / len(good) >= 0.9
    assert sum(without) / len(without) <= sum(good) / len(good) - 0.2
    first = [row["turns"][0]["answer"] for row in together]
    assert first == [alone[f"{n}-0"] for n in range(len(talks))]


def test_four_questions_cost_one_encoding_and_one_prefill_of_the_image(tmp_path):
    tar = write_tar(tmp_path / "scenes.tar", scenes())
    four = (
        "How many objects are there?",
        "Is there a red circle?",
        "Is there a blue star?",
        "What is the color of the background?",
    )
    job = Job(input=(str(tar),), quiet=True, slots=4)
    one = run(job.but(output=str(tmp_path / "one"), question=four[:1]))
    all_four = run(job.but(output=str(tmp_path / "four"), question=four))
    cost = {s: r.throughput["stages"]["generate"] for s, r in (("one", one), ("four", all_four))}
    assert cost["one"]["images_encoded"] == cost["four"]["images_encoded"] == NUM_SCENES
    # 64 image tokens an image, once; the three further questions add their own few tokens.
    further = cost["four"]["tokens_prefilled"] - cost["one"]["tokens_prefilled"]
    assert 0 < further < 3 * NUM_SCENES * 32


def test_several_images_in_one_row_are_one_prompt(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    encoded = []
    for scene in scenes()[:2]:
        buffer = io.BytesIO()
        draw(scene).save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    rows = {
        "images": [encoded, encoded[:1]],
        "text": ["<image><image>Compare.", "<image><image>No."],
    }
    pq.write_table(pa.table(rows), tmp_path / "in.parquet")
    run(
        Job(
            input=(str(tmp_path / "in.parquet"),),
            output=str(tmp_path / "out"),
            question_column="text",
            max_new_tokens=4,
            quiet=True,
        )
    )
    two, mismatched = answers(tmp_path / "out")
    assert two["status"] == "ok" and two["num_images"] == 2
    assert two["prompt"].count("<image>") == 2 and two["prompt_tokens"] > 128
    assert mismatched["error_code"] == "bad_prompt"


def test_instruction_data_is_taken_by_trainers_and_said_where_it_is(tmp_path, capsys):
    import datasets
    import webdataset

    tar = write_tar(tmp_path / "scenes.tar", scenes())
    out = tmp_path / "out"
    job = Job(input=(str(tar),), output=str(out), recipe="conversation", max_new_tokens=16)
    run_instruct(job, ("llava", "webdataset", "huggingface"))
    kept = json.loads((out / "instructions" / "_counts.json").read_text())["counts"]["kept"]
    said = capsys.readouterr().err.splitlines()[-4:]
    assert said[0].startswith(f"{out}/instructions/**/*.parquet: {kept} conversations kept")
    assert [line.partition(":")[0] for line in said[1:]] == [
        f"{out}/llava.json",
        f"{out}/webdataset/**/*.tar",
        f"{out}/huggingface",
    ]
    for kind, column in (("answers", "answer"), ("instructions", "conversations")):
        pattern = f"{out}/{kind}/**/*.parquet"
        (found,) = duckdb.execute(f"select count({column}) from '{pattern}'").fetchall()
        assert found[0] > 0 and ds.dataset(out / kind).to_table().num_rows >= found[0]
    assert exit_status(app, ["report", str(out)], "llava-batch") == 0
    llava = json.loads((out / "llava.json").read_text())
    assert check_llava(llava) == kept > 0
    assert all((out / "images" / entry["image"]).is_file() for entry in llava)
    loaded = datasets.load_dataset(
        "parquet",
        data_files=f"{out}/huggingface/data/**/*.parquet",
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert loaded.num_rows == kept and isinstance(loaded[0]["image"], Image.Image)
    (tars,) = (out / "webdataset").glob("*.tar")
    samples = list(webdataset.WebDataset(str(tars), shardshuffle=False))
    assert {"png", "txt", "json"} <= set(samples[0])
    again = tmp_path / "again"
    run(Job(input=(str(tars),), output=str(again), max_new_tokens=4, quiet=True))
    assert len(answers(again)) == len(samples)
