"""Runs side by side: champions are compared where they answered the same items, and not otherwise."""

import io
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from evomerge_cli.arguments import parse
from evomerge_cli.commands import compare
from evomerge_cli.console import Console
from evomerge_cli.run_folder import RunFolder
from evomerge_common.errors import InvalidInput
from evomerge_report.compare import Run, comparison_of, comparison_page
from evomerge_report.history import history_of
from helpers import synthetic_log

SUITE = synthetic_log.suite()


def a_run(label: str, *, gain: float = 0.25, items: int = 60, end: str = "finished") -> Run:
    suite = synthetic_log.suite(items)
    return Run(label, history_of(synthetic_log.events(label, gain=gain, tests=suite, end=end)), suite)


def a_folder(path: Path, *, gain: float, items: int = 60) -> str:
    suite = synthetic_log.suite(items)
    path.mkdir()
    folder = RunFolder(path)
    folder.hidden.mkdir()
    folder.keep_suite(suite)
    folder.write_events(synthetic_log.events(f"run-{path.name}", gain=gain, tests=suite))
    return str(path)


def test_champions_of_one_suite_are_compared_item_by_item() -> None:
    strong, weak = a_run("strong"), a_run("weak", gain=-0.3)
    found = comparison_of([strong, weak])
    assert found["reason"] == ""
    (pair,) = found["pairs"]
    champions = [run.history.champion for run in (strong, weak)]
    held = [one.results["holdout"] for one in champions if one is not None]
    assert pair["difference"] == pytest.approx(held[0].fitness - held[1].fitness)
    assert 0 < pair["interval95"][0] <= pair["difference"]
    assert pair["statement"].startswith("the champion of strong is better than that of weak")
    for task, ours, theirs in zip(SUITE.tasks, held[0].scores, held[1].scores, strict=True):
        entry = pair["tasks"][task.name]
        items = list(zip(ours.item_scores, theirs.item_scores, strict=True))
        assert (entry["wins"], entry["losses"]) == (sum(a > b for a, b in items), sum(a < b for a, b in items))
    for one in found["tasks"]:
        assert one["best"] == max((0, 1), key=lambda place: (one["scores"][place]["score"], -place))
    assert [row["budget"] for row in found["runs"]] == [40, 40]


def test_the_order_of_runs_turns_the_sign_and_nothing_else() -> None:
    one, other = a_run("one"), a_run("other", gain=-0.3)
    there, back = comparison_of([one, other])["pairs"][0], comparison_of([other, one])["pairs"][0]
    assert back["difference"] == pytest.approx(-there["difference"])
    assert "the champion of one is better" in back["statement"]


def test_other_items_are_not_compared() -> None:
    found = comparison_of([a_run("one"), a_run("other", items=50)])
    assert "different suites" in found["reason"]
    assert found["pairs"] == []
    assert [one["best"] for one in found["tasks"]] == [None] * 3, "nobody is best on other questions"


def test_a_run_under_way_has_nothing_to_compare() -> None:
    found = comparison_of([a_run("one"), a_run("early", end="running")])
    assert found["reason"] == ("the champion of early has no scores on held-out items, so there is nothing to compare")
    with pytest.raises(InvalidInput, match="two runs"):
        comparison_of([a_run("one")])


def test_the_command_shows_tables_data_and_a_page(tmp_path: Path) -> None:
    runs = [a_folder(tmp_path / "a", gain=0.25), a_folder(tmp_path / "b", gain=-0.3)]
    page = tmp_path / "out" / "page.html"
    shown = io.StringIO()
    assert compare.run(parse(["compare", *runs, "--out", str(page)]), Console(stdout=shown)) == 0
    text = shown.getvalue()
    assert "Champions on held-out items" in text
    assert f"the champion of {runs[0]} is better than that of {runs[1]}" in text
    assert "<main>" in page.read_text()
    data = io.StringIO()
    assert compare.run(parse(["compare", *runs, "--json"]), Console(stdout=data, json_output=True)) == 0
    assert json.loads(data.getvalue())["pairs"][0]["tasks"].keys() == set(synthetic_log.TASKS)
    with pytest.raises(InvalidInput, match="each once"):
        compare.run(parse(["compare", runs[0], runs[0]]), Console())


def test_names_on_the_page_are_text() -> None:
    evil = "</style><script>alert(1)</script>\"'"
    tags: list[str] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: tags.append(tag)  # type: ignore[method-assign]
    parser.feed(comparison_page(comparison_of([a_run(evil), a_run("b")])))
    assert "script" not in tags
    assert tags.count("style") == 1
