"""What a report says task by task: the best source of each task, item by item, and a warning where it was lost."""

import dataclasses
import io
from pathlib import Path
from typing import Any

import pytest

from evomerge_cli.console import Console
from evomerge_cli.finish import print_table
from evomerge_common.domain import messages as m
from evomerge_report.history import History, history_of, short_name
from evomerge_report.report import model_card, report_page, write_report
from evomerge_report.result import result_of
from helpers import synthetic_log

SUITE = synthetic_log.suite()


def with_champion(history: History, **scores: tuple[float, ...]) -> History:
    """The same run with other answers of its champion on the holdout."""
    assert history.champion is not None
    held = history.champion.results["holdout"]
    changed = tuple(
        dataclasses.replace(one, item_scores=scores[name], score=sum(scores[name]) / len(scores[name]))
        if (name := one.task.replace("-", "_")) in scores
        else one
        for one in held.scores
    )
    fitness = SUITE.fitness({one.task: one.score for one in changed})
    history.champion.results["holdout"] = dataclasses.replace(held, scores=changed, fitness=fitness)
    return history


def expert(history: History, name: str, task: str) -> m.TaskScore:
    source = next(one for one in history.sources if short_name(history.model_of(one).reference) == name)
    return next(score for score in source.results["holdout"].scores if score.task == task)


@pytest.fixture(scope="module")
def lost_to_the_specialist() -> tuple[History, dict[str, Any]]:
    """The champion fails 9 of the items that expert-math solves, and solves one that it fails."""
    history = history_of(synthetic_log.events())
    answers = list(expert(history, "expert-math", "arithmetic").item_scores)
    right = [place for place, score in enumerate(answers) if score][:9]
    wrong = answers.index(0.0)
    changed = tuple(0.0 if i in right else 1.0 if i == wrong else score for i, score in enumerate(answers))
    history = with_champion(history, arithmetic=changed)
    return history, result_of(history, SUITE)


def test_each_task_is_compared_with_the_source_that_is_best_on_it() -> None:
    """The fault: every task was compared with the best source overall, so a lost specialist looked like a gain."""
    history = history_of(synthetic_log.events())
    result = result_of(history, SUITE)
    for task, found in result["improvement"]["tasks"].items():
        scores = {s["reference"]: s["holdout"]["tasks"][task]["score"] for s in result["sources"]}
        assert scores[found["against"]] == max(scores.values()) == found["source"]
        ours = result["champion"]["holdout"]["tasks"][task]["score"]
        assert found["champion"] == ours
        assert found["difference"] == pytest.approx(ours - max(scores.values()))
        assert found["interval95"][0] <= found["difference"] <= found["interval95"][1]
    names = {short_name(one["against"]) for one in result["improvement"]["tasks"].values()}
    assert names == {"expert-math", "expert-code", "expert-text"}


def test_wins_and_losses_are_counted_item_by_item(lost_to_the_specialist: tuple[History, dict[str, Any]]) -> None:
    history, result = lost_to_the_specialist
    found = result["improvement"]["tasks"]["arithmetic"]
    held = SUITE.items(SUITE.tasks[0], "holdout")
    answers = expert(history, "expert-math", "arithmetic").item_scores
    assert (found["wins"], found["losses"], found["ties"]) == (1, 9, len(held) - 10)
    assert found["lost"] == [item.id for item, score in zip(held, answers, strict=True) if score][:9]
    assert found["won"] == [next(item.id for item, score in zip(held, answers, strict=True) if not score)]


def test_graded_items_are_better_worse_or_alike() -> None:
    history = history_of(synthetic_log.events())
    answers = expert(history, "expert-math", "arithmetic").item_scores
    changed = tuple(0.25 if score == 0 else 0.75 if place % 2 else 1.0 for place, score in enumerate(answers))
    found = result_of(with_champion(history, arithmetic=changed), SUITE)["improvement"]["tasks"]["arithmetic"]
    pairs = list(zip(changed, answers, strict=True))
    assert found["wins"] == sum(a > b for a, b in pairs) > 0
    assert found["losses"] == sum(a < b for a, b in pairs) > 0
    assert found["wins"] + found["losses"] + found["ties"] == len(pairs)


def test_a_lost_specialist_is_warned_of_everywhere(lost_to_the_specialist: tuple[History, dict[str, Any]]) -> None:
    history, result = lost_to_the_specialist
    gain = result["improvement"]
    assert gain["tasks"]["arithmetic"]["worse"]
    (warning,) = gain["specialists"]
    assert warning.startswith("On arithmetic the champion")
    assert "worse than expert-math" in warning
    assert "of the items 9 are answered worse, 1 better" in warning
    page = report_page(history, result)
    assert page.index(warning) < page.index("candidates scored"), "in the first screen"
    card = model_card(result)
    assert f"* {warning}.\n" in card
    assert "to expert-math; items: 1 better, 9 worse" in card
    shown = io.StringIO()
    print_table(result, Console(stdout=shown))
    assert f"warning: {warning}" in shown.getvalue()
    assert "expert-code" in shown.getvalue().split("Champion against")[1]


def test_the_main_table_of_a_report_is_the_one_against_specialists(
    lost_to_the_specialist: tuple[History, dict[str, Any]],
) -> None:
    history, result = lost_to_the_specialist
    page = report_page(history, result)
    first = page[: page.index("candidates scored")]
    table = first[first.index("<table>") : first.index("</table>")]
    for task, one in result["improvement"]["tasks"].items():
        row = table[table.index(f'<th scope="row">{task}</th>') :]
        row = row[: row.index("</tr>")]
        assert f"{short_name(one['against'])} " in row
        assert f"{one['difference']:+.3f}" in row
        assert [f'<td class="n">{one[key]}</td>' in row for key in ("wins", "losses", "ties")] == [True] * 3


def test_no_warning_within_the_interval() -> None:
    history = history_of(synthetic_log.events())
    answers = list(expert(history, "expert-math", "arithmetic").item_scores)
    answers[answers.index(1.0)] = 0.0
    found = result_of(with_champion(history, arithmetic=tuple(answers)), SUITE)["improvement"]
    assert found["tasks"]["arithmetic"]["losses"] == 1
    assert not found["tasks"]["arithmetic"]["worse"]
    assert not [text for text in found["specialists"] if "arithmetic" in text]


def test_without_item_scores_nothing_is_said(tmp_path: Path) -> None:
    history = with_champion(history_of(synthetic_log.events()), arithmetic=(1.0,))
    assert "arithmetic" not in (result_of(history, SUITE)["improvement"] or {"tasks": {}})["tasks"]
    suite = synthetic_log.suite(holdout=0.0)
    assert write_report(synthetic_log.events(tests=suite), suite, tmp_path)["improvement"] is None
