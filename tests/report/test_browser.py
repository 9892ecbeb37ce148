"""The report in a real browser: Debian's Chromium, driven by Playwright, with no network of its own."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llava_batch.report import write_report
from tests.answer_folder import bad, good, write_folder

CHROMIUM = shutil.which("chromium")
playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
SCRIPT = "<script>document.title = 'taken'</script><img src=x onerror=alert(1)>"
ARABIC = "قطة بيضاء تجلس على طاولة"
QUESTIONS = ("What is it?", "How many?")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


@pytest.fixture
def opened(browser: Any) -> Iterator[Any]:
    """Opens a page by its path; afterwards fails if it complained or asked for anything else."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page, said, asked = context.new_page(), [], []
    page.set_default_timeout(20_000)
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))

    def visit(path: str) -> Any:
        page.goto(Path(path).resolve().as_uri())
        page.wait_for_selector("#found:not(:empty)")
        return page

    yield visit
    context.close()
    assert said == []
    assert asked, "the page itself was asked for"
    assert {url for url in asked if not url.startswith("data:")} == {asked[0]}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """40 images asked two questions each, one answer that holds a script, one Arabic, five in error."""
    rows = [
        good(f"{i:03d}", f"Answer {i} to {q}", text, question_id=str(q), mean_logprob=-i / 100)
        for i in range(40)
        for q, text in enumerate(QUESTIONS)
    ]
    rows[0] |= {"answer": SCRIPT, "turns": [rows[0]["turns"][0] | {"answer": SCRIPT}]}
    rows[1] |= {"answer": ARABIC, "turns": [rows[1]["turns"][0] | {"answer": ARABIC}]}
    rows += [bad(f"torn{i}", "image_truncated", f"cut {SCRIPT}") for i in range(5)]
    run = {"throughput": {"over_time": [[1, 2], [2, 5]]}}
    out = tmp_path_factory.mktemp("report")
    names = [f"00000/{i:03d}" for i in range(20)]
    return write_report([write_folder(out, rows, run=run, thumbnails=names)])


def found(page: Any) -> str:
    return page.inner_text("#found")


def test_the_gallery_shows_pictures_questions_and_answers(opened: Any, report: str) -> None:
    page = opened(report)
    assert found(page) == "85 rows"
    assert page.locator(".card").count() == 24
    first = page.locator(".card").nth(2)
    assert first.locator(".question").inner_text() == QUESTIONS[0]
    assert first.locator(".answer").inner_text() == "Answer 1 to 0"
    assert "log-prob. -0.01" in first.locator(".foot").inner_text()
    picture = first.locator("img")
    picture.scroll_into_view_if_needed()
    page.wait_for_function("e => e.complete && e.naturalWidth === 64", arg=picture.element_handle())


def test_a_caption_that_holds_a_script_is_text(opened: Any, report: str) -> None:
    page = opened(report)
    assert page.locator(".card .answer").first.inner_text() == SCRIPT
    assert page.locator("main img[src='x']").count() == 0
    assert page.title() != "taken"


def test_search_finds_words_in_any_order_and_marks_them(opened: Any, report: str) -> None:
    page = opened(report)
    page.keyboard.press("/")
    page.keyboard.type("MANY? 17")
    assert found(page) == "1 of 85 rows"
    assert page.locator(".answer").inner_text() == "Answer 17 to 1"
    assert "17" in page.locator(".card mark").all_inner_texts()
    page.fill("#search", "nowhere to be found")
    assert page.locator(".card").count() == 0
    assert "No row fits" in page.inner_text("#cards")


def test_rows_are_filtered_by_status_and_by_question(opened: Any, report: str) -> None:
    page = opened(report)
    page.select_option("#status", "error")
    assert found(page) == "5 of 85 rows"
    assert SCRIPT in page.locator(".failed").first.inner_text()
    page.select_option("#status", "code:image_truncated")
    assert found(page) == "5 of 85 rows"
    page.select_option("#status", "ok")
    page.select_option("#question", "id:1")
    assert found(page) == "40 of 85 rows"
    assert set(page.locator(".card .question").all_inner_texts()) == {QUESTIONS[1]}


def test_an_error_code_leads_to_its_rows(opened: Any, report: str) -> None:
    page = opened(report)
    page.click("[data-code=image_truncated]")
    assert found(page) == "5 of 85 rows"


def test_pages_are_turned_by_button_and_key(opened: Any, report: str) -> None:
    page = opened(report)
    page.click("#next")
    assert page.inner_text("#page-label") == "Page 2 of 4"
    page.locator("h1").click()
    page.keyboard.press("n")
    page.keyboard.press("n")
    page.keyboard.press("n")
    assert page.inner_text("#page-label") == "Page 4 of 4"
    assert page.locator("#next").is_disabled()
    page.keyboard.press("p")
    assert page.inner_text("#page-label") == "Page 3 of 4"
    page.select_option("#page-size", "96")
    assert page.locator(".card").count() == 85


def test_the_least_confident_answer_comes_first_when_asked(opened: Any, report: str) -> None:
    page = opened(report)
    page.select_option("#order", "unsure")
    assert page.locator(".card .answer").first.inner_text().startswith("Answer 39")


def test_a_row_opens_and_is_walked_through_by_keys_alone(opened: Any, report: str) -> None:
    page = opened(report)
    page.locator(".open").nth(4).focus()
    page.keyboard.press("Enter")
    assert page.inner_text("#detail-title") == "00000/002#0"
    assert "600 in the prompt" in page.inner_text("#detail")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#detail-title") == "00000/002#1"
    page.keyboard.press("Escape")
    assert not page.locator("#detail").is_visible()
    # A dialog's `close` event comes as a task of its own, after the browser has put the focus
    # back where it was: the page is asked until the row that was last seen has it.
    page.wait_for_function("() => document.activeElement.title === '00000/002#1'")


def test_right_to_left_answers_run_from_right_to_left(opened: Any, report: str) -> None:
    page = opened(report)
    answer = page.locator(".answer", has_text=ARABIC)
    assert answer.evaluate("e => getComputedStyle(e).direction") == "rtl"
    assert page.locator(".answer").nth(2).evaluate("e => getComputedStyle(e).direction") == "ltr"


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_nothing_is_wider_than_the_screen(opened: Any, report: str, width: int) -> None:
    page = opened(report)
    page.set_viewport_size({"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_dark_mode_follows_the_system_until_it_is_chosen(opened: Any, report: str) -> None:
    page = opened(report)

    def ground() -> int:
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return int(re.findall(r"\d+", colour)[0])

    assert ground() > 200
    page.emulate_media(color_scheme="dark")
    assert ground() < 60
    page.click("#theme")
    assert ground() > 200
    page.reload()
    assert ground() > 200, "the choice is remembered"


def test_the_charts_are_drawn_to_the_width_they_have(opened: Any, report: str) -> None:
    page = opened(report)
    page.wait_for_selector("#lengths svg .bar")
    for chart in ("lengths", "logprobs", "rates"):
        assert page.get_attribute(f"#{chart} svg", "aria-label")
    wide = page.get_attribute("#lengths svg", "viewBox")
    page.set_viewport_size({"width": 390, "height": 800})
    page.wait_for_function(
        "was => document.querySelector('#lengths svg').getAttribute('viewBox') !== was", arg=wide
    )


def test_two_folders_show_what_differs_first_and_mark_it(opened: Any, tmp_path: Path) -> None:
    one = [good(f"{i:02d}", f"A red ball number {i} on a mat") for i in range(30)]
    two = [good(f"{i:02d}", f"A {'blue' if i == 7 else 'red'} ball number {i} on a mat")
           for i in range(30)]  # fmt: skip
    outs = [write_folder(tmp_path / n, rows) for n, rows in (("first", one), ("second", two))]
    page = opened(write_report(outs))
    assert page.locator(".card").first.locator("mark").all_inner_texts() == ["red", "blue"]
    page.select_option("#status", "differ")
    assert found(page) == "1 of 30 rows"
    page.select_option("#status", "same")
    assert found(page) == "29 of 30 rows"
    assert page.locator(".card mark").count() == 0
