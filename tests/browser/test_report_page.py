"""The static report in a real browser: its views draw without a server, and a candidate is looked into."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evomerge_report.report import write_report
from helpers import synthetic_log

pytestmark = pytest.mark.browser
SIZES = ((1280, "light"), (1280, "dark"), (390, "light"), (390, "dark"), (360, "light"))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    write_report(synthetic_log.events("run-<b>" + "a" * 64), synthetic_log.suite(), out)
    return out / "report" / "index.html"


def opened(chromium: Any, address: str, *, width: int = 1280, scheme: str = "light", **options: Any) -> Any:
    """A page and what it complained of."""
    page = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **options).new_page()
    page.wrong = []
    page.on("console", lambda said: page.wrong.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.goto(address)
    page.wait_for_selector("#main section")
    return page


@pytest.mark.parametrize(("width", "scheme"), SIZES)
def test_anybody_can_use_it_at_any_size(chromium: Any, axe: str, report: Path, width: int, scheme: str) -> None:
    champion = opened(chromium, report.as_uri()).locator("#leaderboard tr.first a").get_attribute("href")
    for address in (report.as_uri(), report.as_uri() + champion):
        page = opened(chromium, address, width=width, scheme=scheme, bypass_csp=True)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.evaluate(axe)
        found = page.evaluate("axe.run(document)")["violations"]
        assert [(one["id"], one["nodes"][0]["html"]) for one in found] == []
        assert page.wrong == []
        page.context.close()


def test_a_candidate_is_looked_into(chromium: Any, report: Path) -> None:
    page = opened(chromium, report.as_uri(), bypass_csp=True)  # for what the test waits by
    page.locator("#fitness").scroll_into_view_if_needed()
    page.wait_for_selector("#fitness canvas")
    assert page.locator("h1 b").count() == page.locator("main b script").count() == 0, "a run's id is text"
    page.locator("#leaderboard tr.first a").click()
    page.wait_for_selector("#recipe table.map")
    rows = page.locator("#items tbody tr")
    everything = page.locator("#items [role=status]").inner_text()
    page.locator("#items select").nth(2).select_option("lost")
    page.wait_for_function(f"document.querySelector('#items [role=status]').innerText !== '{everything}'")
    assert set(page.locator("#items tbody td:last-child").all_inner_texts()) <= {"lost"}
    page.locator("#items select").nth(2).select_option("")
    page.locator("#items input[type=search]").fill("sentiment question 1")
    page.wait_for_function("document.querySelectorAll('#items tbody tr').length < 15")
    assert rows.count() > 0
    page.locator(".crumbs a").click()
    page.wait_for_selector("#fitness")
    assert page.wrong == []
