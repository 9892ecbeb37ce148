"""The report: what it counts, what it draws, what it never lets into the page."""

import json
import random
import re
from html import unescape
from importlib.resources import files
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_batch.errors import RowError, UsageError
from llava_batch.job import Job
from llava_batch.report import write_report
from llava_batch.report.sample import Smallest
from tests.answer_folder import bad, good, write_folder

RUN = {
    "status": "complete",
    "started_at": "2026-11-22T09:12:44+00:00",
    "wall_s": 61.5,
    "model": "demo",
    "settings": Job(input=("photos",), max_new_tokens=32).settings(),
    "throughput": {
        "images_per_s": 3.25,
        "bottleneck": "generate",
        "stages": {
            "read": {"busy_share": 0.1, "workers": 1},
            "generate": {"busy_share": 0.9, "workers": 2},
        },
        "over_time": [[10, 20], [20, 50]],
    },
}


def page(*outs: str) -> str:
    return Path(write_report(outs)).read_text(encoding="utf-8")


def data(html: str) -> dict[str, Any]:
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', html, re.S)
    assert found
    return json.loads(found[1])


def test_the_page_counts_what_the_tables_hold_without_run_json(tmp_path: Path) -> None:
    rows = [good("a", "A cat."), good("b", "A dog on a mat."), bad("c", "image_missing", "gone")]
    html = page(write_folder(tmp_path, rows))
    assert re.search(r"<dt>Images</dt><dd>3</dd>", html)
    assert re.search(r"<dt>Answers</dt><dd>2</dd>", html)
    assert re.search(r"<dt>In error</dt><dd>1 <small>33 %</small>", html)
    assert "no finished <code>_run.json</code>" in html
    assert [item["id"] for item in data(html)["items"]] == ["00000/a", "00000/b", "00000/c"]


def test_arrow_tables_give_the_same_rows_as_parquet(tmp_path: Path) -> None:
    rows = [good(str(i), f"answer {i}") for i in range(9)]
    one = page(write_folder(tmp_path / "one", rows))
    two = page(write_folder(tmp_path / "two", rows, format="arrow"))
    assert data(one)["items"] == data(two)["items"]


def test_an_image_asked_several_questions_is_one_image(tmp_path: Path) -> None:
    rows = [good(k, "yes", f"Q{q}?", question_id=str(q)) for k in "ab" for q in range(3)]
    html = page(write_folder(tmp_path, rows))
    assert "<dt>Images</dt><dd>2</dd>" in html
    assert "<dt>Answers</dt><dd>6</dd>" in html


def dialogue(key: str, *turns: tuple[str, str, int, float, str]) -> dict[str, Any]:
    """A row with these turns: question, answer, tokens, log-probability, finish reason."""
    names = ("question", "answer", "answer_tokens", "mean_logprob", "finish_reason")
    made: list[dict[str, Any]] = [dict(zip(names, turn, strict=True)) for turn in turns]
    last = {name: value for name, value in made[-1].items() if name != "question"}
    return good(key, **last) | {"turns": made}


def test_every_turn_of_a_dialogue_is_counted_and_every_question_named(tmp_path: Path) -> None:
    # Once only the last turn was, and its question stood there as the one that was asked.
    rows = [
        dialogue(
            key, ("Which <b>?", "A star.", 30, -2.0, "length"), ("Why?", "So.", 2, -0.1, "stop")
        )
        for key in "ab"
    ]
    html = page(write_folder(tmp_path, [*rows, bad("c", "bad_prompt", "no question")]))
    for figure in (
        "<dt>Dialogues</dt><dd>2</dd>",
        "<dt>Answers</dt><dd>4</dd>",
        "<dt>Tokens an answer</dt><dd>16</dd>",
        "<dt>Cut at the limit</dt><dd>50 %</dd>",
    ):
        assert figure in html
    found = data(html)
    assert sum(found["lengths"]["series"][0]["bars"]) == 4
    assert found["logprobs"]["start"] <= -2.0
    assert found["asked"] == ["Which <b>?", "Why?"]
    said = " ".join(html.split())
    assert (
        'Each image was asked: <q dir="auto" lang="">Which &lt;b&gt;?</q>, then '
        '<q dir="auto" lang="">Why?</q> </p>' in said
    )


def test_a_question_is_named_as_asked_of_all_only_where_it_was(tmp_path: Path) -> None:
    same = write_folder(tmp_path / "same", [good("a", "x"), good("b", "y")])
    assert data(page(same))["asked"] == ["Describe the image."]
    several = write_folder(tmp_path / "several", [good("a", "x"), good("b", "y", "Why?")])
    html = page(several)
    assert data(html)["asked"] == [] and "Each image was asked" not in html
    assert "<dt>Dialogues</dt>" not in html


def test_where_choices_were_given_it_says_how_often_each_was_the_answer(tmp_path: Path) -> None:
    run = {"settings": Job(question=("A dog?", "Indoors?"), choices=("yes", "no")).settings()}
    said = [("yes", "no"), ("no", "no"), ("no", "yes"), ("no", "no")]
    rows = [
        good(str(i), answer, question, question_id=str(number))
        for i, pair in enumerate(said)
        for number, (answer, question) in enumerate(zip(pair, ("A dog?", "Indoors?"), strict=True))
    ]
    html = page(write_folder(tmp_path, [*rows, bad("x", "image_missing", "gone")], run=run))
    table = html[
        html.index("How often each choice") : html.index("</table>", html.index("How often"))
    ]
    cells = re.findall(r"<t[hd] [^>]*>(.*?)</t[hd]>", table)
    assert [re.sub("<.*?>", "", cell) for cell in cells] == [
        "Question", "yes", "no",
        "A dog?", "1 25 %", "3 75 %",
        "Indoors?", "1 25 %", "3 75 %",
    ]  # fmt: skip


def test_choices_of_a_file_of_questions_are_counted_together(tmp_path: Path) -> None:
    run = {"settings": Job(questions="q.jsonl", choices=("a", "b", "c")).settings()}
    rows = [good(str(i), "ab"[i % 2], f"Q{i}?", question_id=str(i)) for i in range(9)]
    html = page(write_folder(tmp_path / "file", rows, run=run))
    assert re.search(r"All questions</th><td[^>]*>5 .*?<td[^>]*>4 .*?<td[^>]*>0 ", html)
    plain = write_folder(tmp_path / "plain", rows, run=RUN)
    assert "How often each choice" not in page(plain)
    assert "How often each choice" in page(plain, str(tmp_path / "file"))


def test_a_log_probability_on_a_card_says_what_it_is() -> None:
    # Once a bare -0.01; the script is not run here.
    script = files("llava_batch.report").joinpath("assets/gallery.js").read_text(encoding="utf-8")
    shown = '`log-prob. ${row.mean_logprob.toFixed(2).replace("-0.00", "0.00")}`'
    assert f"facts.push({shown})" in script


def test_each_error_code_comes_with_its_sentence_and_examples(tmp_path: Path) -> None:
    rows = [bad(f"{code}{i}", code, f"why {code} {i}") for code in RowError for i in range(20)]
    html = page(write_folder(tmp_path, rows))
    for code in RowError:
        assert code.sentence.split("`")[0].split("'")[0] in html
        assert html.count(f"why {code} ") >= 3
    items = data(html)["items"]
    assert {sum(i["sides"][0]["error_code"] == c for i in items) for c in RowError} == {12}


def test_run_json_is_told_in_figures_stages_and_settings(tmp_path: Path) -> None:
    html = page(write_folder(tmp_path, [good("a", "A cat.")], run=RUN))
    assert "<dt>Images/s</dt><dd>3.25</dd>" in html
    assert "1 min 2 s" in html
    assert re.search(r"generate <small>bottleneck</small>", html)
    shown, defaults = html.split("as they are by default")
    assert "--max-new-tokens" in shown and "--max-new-tokens" not in defaults
    assert "--temperature" in defaults
    assert data(html)["rates"] == [[[5, 2.0], [10, 2.0], [15, 3.0], [20, 3.0]]]


@pytest.mark.parametrize("key", [*RUN, "nothing"])
@pytest.mark.parametrize("value", [None, "missing", [], {}, 3, float("nan")])
def test_any_part_of_run_json_may_be_missing_or_odd(tmp_path: Path, key: str, value: Any) -> None:
    run = {name: part for name, part in RUN.items() if name != key}
    if value != "missing":
        run[key] = value
    assert data(page(write_folder(tmp_path, [good("a", "A cat.")], run=run)))["items"]


def test_throughput_without_its_parts_is_left_out(tmp_path: Path) -> None:
    run = {"throughput": {"stages": {"read": None, "write": {"busy_share": "x"}}, "over_time": [[1], None, [5, 9]]}}  # fmt: skip
    html = page(write_folder(tmp_path, [good("a", "A cat.")], run=run))
    assert "Times per stage were not recorded" in html
    assert data(html)["rates"] == [[[5, 1.8]]]


def test_a_burst_of_answers_is_spread_over_its_span(tmp_path: Path) -> None:
    run = {"throughput": {"over_time": [[19.9, 0], [20, 96]]}}
    html = page(write_folder(tmp_path, [good("a", "A cat.")], run=run))
    assert data(html)["rates"] == [[[5, 0.0], [10, 0.0], [15, 0.0], [20, 19.2]]]


def test_credentials_in_the_settings_are_not_printed(tmp_path: Path) -> None:
    run = {"settings": {"input": ["s3://KEY:SECRET@lake/x?endpoint_override=h"], "output": "out"}}
    html = page(write_folder(tmp_path, [good("a", "A cat.")], run=run))
    assert "SECRET" not in html and "KEY" not in html
    assert "s3://lake/x" in html


TEXTS = st.text(max_size=30) | st.sampled_from(
    [
        "</script><script>alert(1)</script>",
        "<!--<script>",
        "]]>",
        "\u2028",
        "{{ 7*7 }}",
        "&lt;b&gt;",
    ]
)


@settings(max_examples=40, deadline=None)
@given(answer=TEXTS, key=TEXTS, message=TEXTS)
def test_no_text_gets_out_of_its_place(
    tmp_path_factory: pytest.TempPathFactory, answer: str, key: str, message: str
) -> None:
    out = tmp_path_factory.mktemp("out")
    plain = page(write_folder(out, [good("k", "A"), bad("b", "bad_prompt", "m")]))
    rows = [good(f"k{key}", answer, answer), bad(f"b{key}", "bad_prompt", message)]
    html = page(write_folder(out, rows))
    by_key = {item["id"]: item["sides"][0] for item in data(html)["items"]}
    assert by_key[f"00000/k{key}"]["turns"] == [{"question": answer, "answer": answer}]
    assert by_key[f"00000/b{key}"]["error_message"] == message
    for mark in ("<script", "</script", "<style", "<!--"):
        assert html.lower().count(mark) == plain.lower().count(mark)


def test_nothing_in_the_page_is_fetched(tmp_path: Path) -> None:
    html = page(write_folder(tmp_path, [good("a", "A cat.")], run=RUN, thumbnails=["00000/a"]))
    assert "default-src 'none'" in unescape(html)
    assert not re.search(r"(src|href)=\"(?!#|data:)", html)
    assert "@import" not in html and "url(" not in html


def test_a_row_without_a_log_probability_or_with_an_infinite_one_is_shown(tmp_path: Path) -> None:
    rows = [good("a", "A", mean_logprob=float("-inf")), good("b", "B", mean_logprob=None),
            good("c", "C", mean_logprob=float("nan")), good("d", "D", mean_logprob=-0.5)]  # fmt: skip
    found = data(page(write_folder(tmp_path, rows)))
    assert [i["sides"][0]["mean_logprob"] for i in found["items"]] == [None, None, None, -0.5]
    assert sum(found["logprobs"]["series"][0]["bars"]) == 2


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3000), st.floats(-30, 0)), min_size=1, max_size=60))
def test_the_histograms_hold_every_answer_once(
    tmp_path_factory: pytest.TempPathFactory, values: list[tuple[int, float]]
) -> None:
    rows = [good(str(i), "x", answer_tokens=n, mean_logprob=v) for i, (n, v) in enumerate(values)]
    found = data(page(write_folder(tmp_path_factory.mktemp("out"), rows)))
    for name in ("lengths", "logprobs"):
        bars = found[name]["series"][0]["bars"]
        assert sum(bars) == len(values)
        assert len(bars) <= 41


def test_the_sample_is_bounded_and_the_same_in_any_order(tmp_path: Path) -> None:
    rows = [good(str(i), f"answer {i}") for i in range(3000)]
    one = data(page(write_folder(tmp_path / "one", rows)))["items"]
    random.Random(1).shuffle(rows)
    two = data(page(write_folder(tmp_path / "two", rows)))["items"]
    assert len(one) == 400
    assert one == two


def test_images_with_a_thumbnail_are_drawn_first(tmp_path: Path) -> None:
    rows = [good(f"{i:04d}", "x", question_id="q") for i in range(2000)]
    names = [f"00000/{i:04d}" for i in range(0, 2000, 40)]
    found = data(page(write_folder(tmp_path, rows, thumbnails=names)))
    with_thumb = [item for item in found["items"] if item["thumb"] >= 0]
    assert len(with_thumb) == len(found["thumbs"]) == len(names)


def test_a_thumbnail_that_is_no_jpeg_is_left_out(tmp_path: Path) -> None:
    import pyarrow as pa

    out = write_folder(tmp_path, [good("a", "A cat.")])
    pq.write_table(pa.table({"image": ["00000/a"], "jpeg": [b"<svg onload=alert(1)>"]}),
                   tmp_path / "_thumbnails.bin")  # fmt: skip
    assert data(page(out))["thumbs"] == []


def test_two_folders_are_joined_by_id_with_what_differs_first(tmp_path: Path) -> None:
    one = [good(str(i), f"answer {i}") for i in range(50)] + [good("only", "here")]
    two = [good(str(i), f"answer {i}" + "!" * (i % 10 == 0)) for i in reversed(range(50))]
    two[0] = bad("49", "bad_prompt", "why")
    outs = write_folder(tmp_path / "one", one), write_folder(tmp_path / "two", two)
    html = page(*outs)
    items = data(html)["items"]
    assert [item["same"] for item in items] == [False] * 6 + [True] * 44
    assert {item["id"] for item in items[:6]} == {f"00000/{i}" for i in (0, 10, 20, 30, 40, 49)}
    assert all(len(item["sides"]) == 2 for item in items)
    assert (tmp_path / "one" / "_compare-two.html").exists()
    assert "50 rows stand in both folders" in " ".join(html.split())
    assert "<small>and</small>" in html


def test_dialogues_that_differ_in_an_earlier_turn_differ(tmp_path: Path) -> None:
    def dialogue(first: str) -> dict[str, Any]:
        row = good("a", "yes")
        return row | {"turns": [row["turns"][0] | {"answer": first}, row["turns"][0]]}

    outs = [write_folder(tmp_path / w, [dialogue(w)]) for w in ("red", "blue")]
    assert [item["same"] for item in data(page(*outs))["items"]] == [False]


def test_a_hundred_thousand_rows_stay_a_small_page(tmp_path: Path) -> None:
    base = good("x", "A long and winding answer. " * 12)
    rows = [base | {"id": f"00000/{i}", "key": str(i)} for i in range(100_000)]
    out = write_folder(tmp_path, rows, thumbnails=[f"00000/{i}" for i in range(500)])
    assert len(page(out).encode()) < 20_000_000


def test_an_empty_table_gives_a_page(tmp_path: Path) -> None:
    found = data(page(write_folder(tmp_path, [])))
    assert found["items"] == [] and found["lengths"] is None and found["logprobs"] is None


def test_what_is_no_output_folder_is_refused_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no answers"):
        write_report([str(tmp_path)])
    out = write_folder(tmp_path / "out", [good("a", "A cat.")])
    with pytest.raises(UsageError, match="3 folders were given"):
        write_report([out, out, out])
    (tmp_path / "out" / "_run.json").write_text("{")
    with pytest.raises(UsageError, match=r"_run.json: is no JSON"):
        write_report([out])


def test_a_target_that_cannot_be_written_is_refused_in_a_line(tmp_path: Path) -> None:
    out = write_folder(tmp_path / "out", [good("a", "A cat.")])
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        write_report([out], str(tmp_path / "file" / "page.html"))


@given(st.lists(st.integers(0, 2**64 - 1), unique=True), st.integers(1, 20))
def test_smallest_keeps_the_smallest(ranks: list[int], most: int) -> None:
    keeper: Smallest[int] = Smallest(most)
    for rank in ranks:
        keeper.offer(rank, rank)
    assert keeper.values() == sorted(ranks)[:most]
