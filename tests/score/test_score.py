"""The score job: answers matched to annotations, figures by hand, forms of the evaluators."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llava_batch.cli.jobs import exit_status
from llava_batch.cli.score import app
from llava_batch.errors import UsageError
from llava_batch.score.score import score
from llava_batch.tables import load_schema

SUFFIX = "\nAnswer the question using a single word or phrase."


def row(
    key: str, question_id: str | None, question: str, answer: str | None, **more: Any
) -> dict[str, Any]:
    """An answer row; a null answer makes it one in error."""
    ok = answer is not None
    turn = {"question": question, "answer": answer, "finish_reason": "stop"}
    return {
        "id": f"00000/{key}#{question_id}",
        "unit": "00000",
        "key": key,
        "question_id": question_id,
        "num_images": 1,
        "turns": [turn],
        "answer": answer,
        "status": "ok" if ok else "error",
        "error_code": None if ok else "image_missing",
    } | more


def write_answers(folder: Path, *rows: dict[str, Any], format: str = "parquet") -> str:
    out = folder / "answers"
    (out / "_manifest").mkdir(parents=True)
    (out / "_run.json").write_text("{}")
    schema = load_schema("answers").with_metadata({"llava_batch.model": "demo"})
    half = (len(rows) + 1) // 2
    for number, part in enumerate((rows[:half], rows[half:])):
        table = pa.Table.from_pylist(list(part), schema=schema)
        if format == "parquet":
            pq.write_table(table, out / f"{number:05}.parquet")
        else:
            with pa.ipc.new_file(out / f"{number:05}.arrow", schema) as writer:
                writer.write_table(table)
    return str(out)


def save(folder: Path, name: str, value: Any) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return str(path)


def ten(*counted: tuple[str, int]) -> list[dict[str, str]]:
    return [{"answer": text} for text, count in counted for _ in range(count)]


def vqav2(folder: Path) -> str:
    entries = [
        {"question_id": 1, "answer_type": "yes/no", "answers": ten(("yes", 10))},
        {"question_id": 2, "answer_type": "number", "answers": ten(("2", 2), ("3", 8))},
        {"question_id": 3, "answer_type": "other", "answers": ten(("red", 9), ("rose", 1))},
        {"question_id": 4, "answer_type": "other", "answers": ten(("cat", 10))},
    ]
    return save(folder, "vqa.json", {"annotations": entries})


def vqav2_answers(folder: Path, **more: Any) -> str:
    return write_answers(
        folder,
        row("1", "1", "Q?" + SUFFIX, "Yes."),
        row("1", "2", "Q?" + SUFFIX, "Two"),
        row("2", "3", "Q?" + SUFFIX, None),
        row("2", "77", "Q?" + SUFFIX, "unused"),
        **more,
    )


@pytest.mark.parametrize("format", ["parquet", "arrow"])
def test_vqav2_counts_errors_and_missing_questions_as_wrong(tmp_path: Path, format: str) -> None:
    answers = vqav2_answers(tmp_path, format=format)
    result = score(answers=answers, benchmark="vqav2", annotations=vqav2(tmp_path))
    assert result["accuracy"] == pytest.approx(0.6 / 4)  # `Yes.` is no `yes` where all agree
    assert result["accuracy_as_submitted"] == pytest.approx(1.6 / 4)
    assert result["groups"]["number"] == pytest.approx(0.6)
    counts = {
        name: result[f"num_{name}"] for name in ("questions", "answered", "errors", "missing")
    }
    assert counts == {"questions": 4, "answered": 2, "errors": 1, "missing": 1}
    assert result["num_answers_unused"] == 1
    assert json.loads((tmp_path / "answers" / "_score_vqav2.json").read_text()) == result


def test_only_answered_leaves_missing_questions_out(tmp_path: Path) -> None:
    result = score(
        answers=vqav2_answers(tmp_path),
        benchmark="vqav2",
        annotations=vqav2(tmp_path),
        only_answered=True,
    )
    assert result["num_questions"] == 3
    assert result["accuracy"] == pytest.approx(0.6 / 3)


def test_vqav2_is_submitted_normalised_and_whole(tmp_path: Path) -> None:
    export = str(tmp_path / "submit.json")
    score(
        answers=vqav2_answers(tmp_path),
        benchmark="vqav2",
        annotations=vqav2(tmp_path),
        export=export,
    )
    assert json.loads(Path(export).read_text()) == [
        {"question_id": 1, "answer": "yes"},
        {"question_id": 2, "answer": "2"},
        {"question_id": 3, "answer": ""},
        {"question_id": 4, "answer": ""},
    ]


def test_a_test_split_without_answers_is_exported_and_not_scored(tmp_path: Path) -> None:
    questions = save(tmp_path, "q.json", {"questions": [{"question_id": 1, "image_id": 1}]})
    arguments: dict[str, Any] = {
        "answers": vqav2_answers(tmp_path),
        "benchmark": "vqav2",
        "annotations": questions,
    }
    with pytest.raises(UsageError, match="no right answers; give --export"):
        score(**arguments)
    result = score(**arguments, export=str(tmp_path / "submit.json"))
    assert "accuracy" not in result
    assert json.loads((tmp_path / "submit.json").read_text()) == [
        {"question_id": 1, "answer": "yes"}
    ]


def test_textvqa_joins_by_image_and_question_where_ids_are_the_image_s(tmp_path: Path) -> None:
    data = [
        {"question_id": 100, "image_id": "ab1", "question": "What Brand?", "answers": ["x"] * 10},
        {"question_id": 101, "image_id": "ab1", "question": "what size?", "answers": ["xl"] * 10},
    ]
    ocr = "\nReference OCR token: X, XL" + SUFFIX
    answers = write_answers(
        tmp_path,
        row("ab1", "ab1", "what brand?" + ocr, "X."),
        row("ab1", "ab1:2", ocr.strip().replace(SUFFIX, "\nwhat size?" + SUFFIX), "The XL!"),
    )
    result = score(
        answers=answers,
        benchmark="textvqa",
        annotations=save(tmp_path, "t.json", {"data": data}),
        export=str(tmp_path / "textvqa.jsonl"),
    )
    assert result["accuracy"] == 1.0
    lines = (tmp_path / "textvqa.jsonl").read_text().splitlines()
    assert json.loads(lines[0]) == {
        "question_id": 100,
        "prompt": "what brand?" + ocr,
        "text": "X.",
        "answer_id": "0",
        "model_id": "demo",
        "metadata": {},
    }


def test_vizwiz_joins_by_image(tmp_path: Path) -> None:
    entries = [
        {
            "image": "VizWiz_val_00000000.jpg",
            "question": "What is it?",
            "answer_type": "other",
            "answers": ten(("soup", 4), ("unanswerable", 6)),
        }
    ]
    answers = write_answers(
        tmp_path, row("VizWiz_val_00000000.jpg", "1", "What is it?" + SUFFIX, "The soup")
    )
    result = score(
        answers=answers,
        benchmark="vizwiz",
        annotations=save(tmp_path, "v.json", entries),
        export=str(tmp_path / "v_out.json"),
    )
    assert result["accuracy"] == 1.0
    assert json.loads((tmp_path / "v_out.json").read_text()) == [
        {"image": "VizWiz_val_00000000.jpg", "answer": "soup"}
    ]


def test_gqa_is_scored_over_balanced_questions(tmp_path: Path) -> None:
    def entry(answer: str, structural: str, balanced: bool = True) -> dict[str, Any]:
        return {
            "imageId": "1",
            "question": "Q?",
            "answer": answer,
            "isBalanced": balanced,
            "types": {"structural": structural},
        }

    annotations = save(
        tmp_path,
        "g.json",
        {
            "0101": entry("yes", "verify"),
            "0102": entry("dog", "query"),
            "0103": entry("cat", "query", balanced=False),
        },
    )
    answers = write_answers(
        tmp_path, row("1", "0101", "Q?", "Yes."), row("1", "0102", "Q?", "A dog")
    )
    export = tmp_path / "gqa.json"
    result = score(answers=answers, benchmark="gqa", annotations=annotations, export=str(export))
    assert result["accuracy"] == 0.5
    assert result["groups"] == {"binary": 1.0, "open": 0.0}
    assert json.loads(export.read_text()) == [
        {"questionId": "0101", "prediction": "yes"},
        {"questionId": "0102", "prediction": "a dog"},
    ]


def test_pope_joins_each_category_though_its_ids_begin_anew(tmp_path: Path) -> None:
    def label(number: int, image: int, thing: str, label: str) -> str:
        name = f"COCO_val2014_{image:012d}.jpg"
        text = f"Is there a {thing} in the image?"
        entry = {"question_id": number, "image": name, "text": text, "label": label}
        return json.dumps(entry) + "\n"

    folder = tmp_path / "coco"
    save(folder, "coco_pope_popular.json", label(1, 5, "car", "no") + label(2, 5, "dog", "yes"))
    save(folder, "coco_pope_random.json", label(1, 6, "car", "yes") + label(2, 6, "cat", "no"))
    answers = write_answers(
        tmp_path,
        row("COCO_val2014_000000000005", "1", "Is there a car in the image?" + SUFFIX, "No"),
        row("COCO_val2014_000000000005", "2", "Is there a dog in the image?" + SUFFIX, "Yes"),
        row("COCO_val2014_000000000006", "3", "Is there a car in the image?" + SUFFIX, "Yes"),
        row("COCO_val2014_000000000006", "4", "Is there a cat in the image?" + SUFFIX, "NO"),
    )
    export = tmp_path / "pope.jsonl"
    result = score(answers=answers, benchmark="pope", annotations=str(folder), export=str(export))
    assert result["groups"]["popular"]["f1"] == 1.0
    assert result["groups"]["random"]["accuracy"] == 0.5  # `NO` is read as yes
    assert result["groups"]["random"]["f1"] == pytest.approx(2 / 3)
    assert result["f1"] == pytest.approx((1 + 2 / 3) / 2)
    assert [json.loads(line)["text"] for line in export.read_text().splitlines()] == [
        "No", "Yes", "Yes", "NO",
    ]  # fmt: skip


def test_scienceqa_s_figure_is_over_questions_with_an_image(tmp_path: Path) -> None:
    problems = {
        "4": {"choices": ["x", "y"], "answer": 1, "image": "image.png"},
        "5": {"choices": ["x", "y"], "answer": 0, "image": None},
        "6": {"choices": ["x", "y"], "answer": 0, "image": "image.png"},
    }
    save(tmp_path, "sqa/problems.json", problems)
    save(tmp_path, "sqa/pid_splits.json", {"test": ["4", "5", "6"], "train": []})
    answers = write_answers(
        tmp_path, row("4/image.png", "4", "Q", "B"), row("6/image.png", "6", "Q", "B. y")
    )
    result = score(answers=answers, benchmark="scienceqa", annotations=str(tmp_path / "sqa"))
    assert result["accuracy"] == 0.5
    assert result["accuracy_all"] == pytest.approx(1 / 3)


def test_seed_is_exported_as_lines_and_scored_by_the_letter(tmp_path: Path) -> None:
    document = {
        "question_type": {"Scene Understanding": 1},
        "questions": [
            {"question_id": "1_0", "answer": "A", "question_type_id": 1, "data_type": "image"},
            {"question_id": "1_1", "answer": "B", "question_type_id": 1, "data_type": "video"},
        ],
    }
    answers = write_answers(tmp_path, row("a", "1_0", "Q", "A"), row("b", "1_1", "Q", "C"))
    export = tmp_path / "seed.jsonl"
    result = score(
        answers=answers,
        benchmark="seed",
        annotations=save(tmp_path, "seed.json", document),
        export=str(export),
    )
    assert result["groups"] == {"Scene Understanding": 0.5, "image": 1.0, "video": 0.0}
    assert [json.loads(line) for line in export.read_text().splitlines()] == [
        {"question_id": "1_0", "prediction": "A"},
        {"question_id": "1_1", "prediction": "C"},
    ]


def test_mme_is_written_for_each_category_with_the_right_answers(tmp_path: Path) -> None:
    release = tmp_path / "MME"
    save(
        release,
        "count/questions_answers_YN/0001.txt",
        "Are there two dogs? Please answer yes or no.\tYes\n"
        "Are there three dogs?  Please answer yes or no.\tNo\n",
    )
    save(release, "code_reasoning/0001.txt", "Is it 1? Please answer yes or no.\tNo\n")
    save(release, "eval_tool/Your_Results/count.txt", "not\ta\tquestion\n")
    answers = write_answers(
        tmp_path,
        row("0001", "count/0001.png", "Are there two dogs?" + SUFFIX, "Yes"),
        row("0001", "count/0001.png:2", "Are there three dogs?" + SUFFIX, "Yes"),
        row("code_reasoning/0001.png", "1", "Is it 1? Please answer yes or no.", "No, it is\t2"),
    )
    export = tmp_path / "mme"
    result = score(answers=answers, benchmark="mme", annotations=str(release), export=str(export))
    assert result["perception"] == 50 + 0
    assert result["cognition"] == 200
    assert (export / "count.txt").read_text() == (
        "0001.txt\tAre there two dogs? Please answer yes or no.\tYes\tYes\n"
        "0001.txt\tAre there three dogs?  Please answer yes or no.\tNo\tYes\n"
    )
    assert (export / "code_reasoning.txt").read_text() == (
        "0001.txt\tIs it 1? Please answer yes or no.\tNo\tNo, it is 2\n"
    )


def test_mmbench_is_written_as_xlsx_with_the_prediction_after_the_options(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    head = "index\tquestion\thint\tA\tB\tC\tD\tcategory\tsource\timage\tcomment\tl2-category\tsplit"
    body = "241\tWhich?\tnan\tone\ttwo\t\t\tk\ts\t/9j/\tc\tl\tdev\n9\tWho?\t\ta\tb\tc\td\tk\ts\t/9j/\tc\tl\tdev"
    annotations = save(tmp_path, "mmbench.tsv", f"{head}\n{body}\n")
    answers = write_answers(tmp_path, row("241", "241", "Which?", "B"))
    export = tmp_path / "mmbench.xlsx"
    score(answers=answers, benchmark="mmbench", annotations=annotations, export=str(export))
    sheet = openpyxl.load_workbook(io.BytesIO(export.read_bytes())).active
    assert [list(cells) for cells in sheet.iter_rows(values_only=True)] == [
        ["index", "question", "A", "B", "C", "D", "prediction", "split"],
        [241, "Which?", "one", "two", None, None, "B", "dev"],
        [9, "Who?", "a", "b", "c", "d", None, "dev"],
    ]


def test_mm_vet_and_llava_bench_need_no_annotations(tmp_path: Path) -> None:
    answers = write_answers(tmp_path, row("v1_0.png", "0", "What is x?", "It is 5."))
    export = tmp_path / "vet.json"
    score(answers=answers, benchmark="mm_vet", export=str(export))
    assert json.loads(export.read_text()) == {"v1_0": "It is 5."}
    score(answers=answers, benchmark="llava_bench", export=str(export))
    assert json.loads(export.read_text())["prompt"] == "What is x?"


def test_llava_s_own_answers_file_is_scored_alike(tmp_path: Path) -> None:
    lines = [{"question_id": 1, "prompt": "Q?", "text": "yes"}, {"question_id": 2, "text": "3"}]
    answers = save(tmp_path, "merge.jsonl", "".join(json.dumps(x) + "\n" for x in lines))
    result = score(answers=answers, benchmark="vqav2", annotations=vqav2(tmp_path))
    assert result["accuracy"] == pytest.approx(2 / 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--benchmark", "vqa"], "--benchmark vqa: give one of vqav2"),
        (["--benchmark", "vqav2"], "needs --annotations FILE"),
        (["--benchmark", "vqav2", "--annotations", "none.json"], "no such file or folder"),
        (["--benchmark", "gqa", "--annotations", "{vqa}"], "not in the form of gqa's annotations"),
        (["--benchmark", "mm_vet"], "its own server or judge scores it; give --export FILE"),
        (["--benchmark", "mmbench", "--annotations", "{vqa}"], "holds no questions"),
        (["--no-such-flag"], "No such option"),
        (["--benchmark"], "requires an argument"),
    ],
)
def test_what_cannot_be_scored_is_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    annotations = vqav2(tmp_path)
    arguments = [a.replace("{vqa}", annotations) for a in arguments]
    arguments = ["--answers", vqav2_answers(tmp_path), *arguments]
    assert exit_status(app, arguments, "jobs/score.py") == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("jobs/score.py: ")
    assert error.count("\n") == 1


def test_answers_of_another_split_are_refused(tmp_path: Path) -> None:
    answers = write_answers(tmp_path, row("1", "999", "Q?", "yes"))
    with pytest.raises(UsageError, match="none of its 1 answers is to a question of"):
        score(answers=answers, benchmark="vqav2", annotations=vqav2(tmp_path))


def test_an_id_of_two_questions_is_no_answer_to_either(tmp_path: Path) -> None:
    answers = write_answers(
        tmp_path, row("1", "1", "Q?", "yes"), row("2", "1", "P?", "no"), row("2", "3", "R?", "red")
    )
    result = score(answers=answers, benchmark="vqav2", annotations=vqav2(tmp_path))
    assert (result["num_answered"], result["num_missing"]) == (1, 3)


def test_answers_are_stripped_as_the_original_evaluation_stores_them(tmp_path: Path) -> None:
    entry = {"question_id": 1, "image": "5.jpg", "text": "A car?", "label": "no"}
    annotations = save(tmp_path, "coco_pope_random.json", json.dumps(entry))
    answers = write_answers(tmp_path, row("5.jpg", "1", "A car?" + SUFFIX, " No\n"))
    result = score(answers=answers, benchmark="pope", annotations=annotations)
    assert result["accuracy"] == 1.0  # `No` before a line break would be read as yes


def test_several_samples_of_one_question_are_refused(tmp_path: Path) -> None:
    answers = write_answers(tmp_path, row("1", "1", "Q?", "yes", id="00000/1#1~0"))
    with pytest.raises(UsageError, match="one of several samples"):
        score(answers=answers, benchmark="vqav2", annotations=vqav2(tmp_path))


@pytest.mark.parametrize("name", ["empty", "other.parquet"])
def test_a_folder_without_answers_is_refused(tmp_path: Path, name: str) -> None:
    if name == "empty":
        (tmp_path / name).mkdir()
    else:
        pq.write_table(pa.table({"x": [1]}), tmp_path / name)
    with pytest.raises(UsageError, match=r"holds no answers|is no table of answers"):
        score(answers=str(tmp_path / name), benchmark="vqav2", annotations=vqav2(tmp_path))


def test_the_job_prints_json_and_runs_as_a_script(tmp_path: Path) -> None:
    job = Path(__file__).parents[2] / "jobs" / "score.py"
    assert os.access(job, os.X_OK)
    arguments = ["--answers", vqav2_answers(tmp_path), "--annotations", vqav2(tmp_path)]
    done = subprocess.run(
        [sys.executable, str(job), *arguments, "--benchmark", "vqav2"],
        capture_output=True,
        text=True,
        cwd=job.parent.parent,
        env=os.environ | {"PYTHONPATH": str(job.parent.parent)},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["num_questions"] == 4
