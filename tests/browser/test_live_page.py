"""The live page in a real browser, over a log that grows: what people see, keep and can use."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from evomerge_common.domain import messages as m
from helpers import long_log
from helpers.page_server import PageServer

pytestmark = pytest.mark.browser
EVIL = "<img src=x onerror=alert(1)>"
NOTE = "</script><script>alert(2)</script> &amp; *"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageServer]:
    runs: list[dict[str, Any]] = [
        {"run_id": "first", "candidates": 60, "items": 60, "seed": 3, "note": NOTE, "source": EVIL},
        {"run_id": "a b&c=<i>d", "candidates": 50, "items": 60, "seed": 4},
        {"run_id": "growing", "candidates": 400, "items": 60, "seed": 5},
    ]
    with PageServer(tmp_path_factory.mktemp("page"), *runs, selector="127.0.0.1:1") as server:
        server.tell(sum(len(list(long_log.events(**run))) for run in runs[:2]) + 420)
        yield server


class Opened:
    """A page with what went wrong on it."""

    def __init__(self, page: Any) -> None:
        self.page, self.wrong = page, list[str]()
        page.on("console", lambda one: self.wrong.extend([one.text] if one.type in {"error", "warning"} else []))
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.on("dialog", self._dialog)
        page.on("response", lambda one: self.wrong.extend([f"{one.status} {one.url}"] if one.status >= 400 else []))

    def _dialog(self, dialog: Any) -> None:
        self.wrong.append("a dialog")
        dialog.dismiss()


@pytest.fixture
def opened(chromium: Any, request: pytest.FixtureRequest) -> Iterator[Opened]:
    width, scheme = getattr(request, "param", (1280, "light"))
    context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    context.set_default_timeout(15_000)
    found = Opened(context.new_page())
    yield found
    context.close()
    assert found.wrong == []


PATHS = {"runs": "/", "run": "/runs/growing", "compare": "/compare?run=first&run=growing"}
SETTLED = """document.querySelector('#live').textContent === 'live' &&
    !document.querySelector('main').textContent.includes('Loading')"""
RULES = """axe.run(document).then((found) =>
    found.violations.map((one) => one.id + ': ' + one.nodes.map((node) => node.target).join(' ')))"""


def until(check: Callable[[], bool], seconds: float = 15.0) -> None:
    """Asks again and again; a page with this policy lets no driver wait inside it."""
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end
        time.sleep(0.02)


def settle(page: Any) -> None:
    until(lambda: page.evaluate(SETTLED))


@pytest.mark.parametrize("opened", list(itertools.product((1280, 390), ("light", "dark"))), indirect=True)
def test_anybody_can_use_each_view(server: PageServer, opened: Opened, axe: str) -> None:
    page = opened.page
    for path in PATHS.values():
        page.goto(server.url + path)
        settle(page)
        page.evaluate(axe)
        assert page.evaluate(RULES) == [], path


@pytest.mark.parametrize("opened", [(360, "light"), (1280, "light")], indirect=True)
def test_nothing_stands_out_sideways(server: PageServer, opened: Opened) -> None:
    page = opened.page
    for path in PATHS.values():
        page.goto(server.url + path)
        settle(page)
        assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0, path


def test_focus_scroll_and_choices_are_kept_through_twenty_updates(server: PageServer, opened: Opened) -> None:
    page = opened.page
    page.goto(server.url + "/runs/growing")
    settle(page)
    page.evaluate("window.mark = document.querySelector('main h1')")  # gone, if the page were loaded again
    page.select_option("#pareto select >> nth=0", "sentiment")
    board = page.locator("#leaderboard")
    board.get_by_role("button", name="arithmetic").click()
    board.get_by_role("button", name="Show 50 more").click()
    chart = page.locator("#fitness .chart")
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    page.mouse.move(box["x"] + 200, box["y"] + 80)
    page.mouse.down()
    page.mouse.move(box["x"] + 500, box["y"] + 90, steps=4)
    page.mouse.up()
    page.get_by_role("button", name="Show all").wait_for()
    tree = page.locator("#lineage .scroll")
    tree.evaluate("node => { node.scrollLeft = 37; }")
    link = board.locator("tbody tr a").nth(30)
    name = link.inner_text()
    link.focus()
    place = "[document.activeElement.textContent, document.activeElement.getBoundingClientRect().y]"
    before = page.evaluate(place)
    assert before[0] == name
    zoom = chart.evaluate("node => ({...node.evoChart.plot.scales.x}.max)")
    scored = page.locator(".tile b").first
    seen = {scored.inner_text()}
    for _ in range(20):
        was = scored.inner_text()
        server.tell(12)
        until(lambda was=was: scored.inner_text() != was)  # type: ignore[misc]
        seen.add(scored.inner_text())
    assert len(seen) == 21
    after = page.evaluate(place)
    assert after[0] == name
    assert abs(after[1] - before[1]) < 2, "better ones came in above it, and it stays where it is read"
    assert page.evaluate("window.mark === document.querySelector('main h1')")
    assert tree.evaluate("node => node.scrollLeft") == 37
    assert board.locator("th[aria-sort=descending]").inner_text().strip("▼ \n") == "arithmetic"
    assert board.locator("tbody tr").count() >= 70
    assert page.eval_on_selector("#pareto select", "node => node.value") == "sentiment"
    assert chart.evaluate("node => ({...node.evoChart.plot.scales.x}.max)") == zoom
    page.get_by_role("button", name="Show all").click()
    assert chart.evaluate("node => ({...node.evoChart.plot.scales.x}.max)") > zoom


def test_what_a_run_shows_is_what_its_log_says(server: PageServer, opened: Opened) -> None:
    page = opened.page
    page.goto(server.url + "/runs/first")
    settle(page)
    events = list(long_log.events("first", candidates=60, items=60, seed=3))
    payloads = [one.payload for one in events]
    fitness = {p.recipe_digest: p.fitness for p in payloads if isinstance(p, m.CandidateEvaluated) and not p.partial}
    board = page.locator("#leaderboard")
    shown = [text.split()[0] for text in board.locator("tbody td:nth-child(3)").all_inner_texts()]
    assert [float(one) for one in shown] == pytest.approx(sorted(fitness.values(), reverse=True)[:20], abs=0.00051)
    for column in board.locator("thead button").all():  # each column sorts, by the keyboard too
        column.focus()
        page.keyboard.press("Enter")
        head = column.locator("xpath=ancestor::th")
        expect(head).to_have_attribute("aria-sort", re.compile("^(a|de)scending$"))
    chart = page.locator("#fitness .chart")
    chart.focus()
    page.keyboard.press("ArrowRight")
    assert "candidate 0" in chart.locator(".tip").inner_text()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("+")
    page.get_by_role("button", name="Show all").wait_for()
    page.keyboard.press("0")
    page.locator("#fitness").get_by_role("button", name="crossover").click()
    assert "crossover" in page.locator("#fitness button[aria-pressed=false]").inner_text()
    stairs = chart.page.locator("#pareto .chart").evaluate("node => node.evoChart.spec.stairs")
    assert stairs == sorted(stairs)
    assert [y for _, y in stairs] == sorted((y for _, y in stairs), reverse=True), "a front of two objectives"
    assert page.locator("#lineage .node.champion").count() == 1
    assert page.locator("#lineage .node.own").count() > 1
    for title in ("Diversity", "Operators", "Methods", "Weights", "Other parameters"):
        figure = page.locator("figure", has_text=title)
        figure.scroll_into_view_if_needed()  # charts are drawn when they come into sight
        until(lambda figure=figure: figure.locator("canvas").count() == 1)  # type: ignore[misc]
    work = page.locator("#work").inner_text()
    assert all(word in work for word in ("merger-1", "evaluator-2", "cpu: test processor", "queue"))
    assert "mean of the last 16" in page.locator("main").inner_text()


def test_what_users_write_is_text(server: PageServer, opened: Opened) -> None:
    page = opened.page
    page.goto(server.url + "/runs/first")
    settle(page)
    assert NOTE in page.locator("#notes").inner_text()
    assert EVIL in page.locator("main > p").nth(1).inner_text()
    assert page.locator("main img").count() == 0
    page.goto(server.url)
    settle(page)
    page.get_by_role("link", name="a b&c=<i>d").click()
    settle(page)
    assert page.locator("h1").inner_text().startswith("a b&c=<i>d")
    assert page.locator("h1 i").count() == 0


def test_two_runs_are_found_and_compared(server: PageServer, opened: Opened) -> None:
    page = opened.page
    page.goto(server.url)
    settle(page)
    page.get_by_role("searchbox").fill("grow")
    until(lambda: page.locator("tbody tr").count() == 1)
    page.get_by_role("searchbox").fill("")
    page.get_by_role("checkbox", name="compare first").check()
    page.get_by_role("checkbox", name="compare growing").check()
    until(page.get_by_role("checkbox", name="compare a b").is_disabled)
    page.get_by_role("link", name="Compare the two").click()
    settle(page)
    assert page.locator("thead").first.inner_text().split() == ["first", "growing"]
    assert page.locator("#curves canvas").count() == 1
    assert page.locator("#tasks tbody tr").count() == 3


def test_charts_follow_the_scheme_while_the_page_is_open(server: PageServer, opened: Opened) -> None:
    page = opened.page
    page.goto(server.url + "/runs/first")
    settle(page)
    pixel = """() => { const canvas = document.querySelector('#fitness canvas'), seen = {};
        const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
        let sum = 0, count = 0;
        for (let i = 0; i < data.length; i += 4)
            if (data[i + 3] > 200) { sum += data[i] + data[i + 1] + data[i + 2]; count++; }
        return sum / count; }"""
    light = page.evaluate(pixel)
    page.emulate_media(color_scheme="dark")
    page.wait_for_timeout(200)
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 22, 26)"
    assert page.evaluate(pixel) < light - 60, "grid and rims are dark on dark ground"


def test_the_page_comes_back_when_the_reporter_does_not_know_its_log(chromium: Any, tmp_path: Path) -> None:
    """A sequence of another log counts for nothing: all is sent again."""
    with PageServer(tmp_path, {"run_id": "r", "candidates": 30, "items": 30}) as server:
        server.tell(60)
        context = chromium.new_context()
        page = context.new_page()
        page.goto(server.url + "/runs/r")
        settle(page)
        found = page.evaluate("fetch('/api/runs/r?since=999999').then(one => one.json())")
        assert (found["since"], len(found["candidates"]["rows"]) > 10) == (0, True)
        context.close()


def test_a_token_is_asked_for_once(chromium: Any, tmp_path: Path, axe: str) -> None:
    with PageServer(tmp_path, {"run_id": "r", "candidates": 30, "items": 30}, token="secret") as server:
        server.tell(60)
        context = chromium.new_context()
        page = context.new_page()
        page.goto(server.url + "/runs/r")
        assert page.url.endswith("/login")
        page.evaluate(axe)
        assert page.evaluate(RULES) == []
        page.get_by_label("Token").fill("wrong")
        page.get_by_role("button", name="Log in").click()
        assert "not the token" in page.get_by_role("alert").inner_text()
        page.get_by_label("Token").fill("secret")
        page.get_by_role("button", name="Log in").click()
        settle(page)
        cookie = context.cookies()[0]
        assert (cookie["httpOnly"], cookie["sameSite"], "secret" in cookie["value"]) == (True, "Strict", False)
        assert page.evaluate("document.cookie") == ""
        page.goto(server.url + "/runs/none")
        assert "no run 'none'" in page.locator("main").inner_text()
        page.evaluate(axe)
        assert page.evaluate(RULES) == []
        page.goto(server.url)
        settle(page)
        page.get_by_role("button", name="Log out").click()
        assert page.url.endswith("/login")
        context.close()
