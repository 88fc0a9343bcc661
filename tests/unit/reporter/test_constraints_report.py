"""What a report says of constraints: each of them, on the items that decided and on held-out ones."""

import dataclasses
import json
from typing import Any

import pytest

from evomerge_common.domain import messages as m
from evomerge_common.domain.statistics import share_at_least
from evomerge_common.ports import Recorded
from evomerge_report.history import History, history_of
from evomerge_report.report import model_card, report_page
from evomerge_report.result import result_of
from helpers import synthetic_log

SUITE = synthetic_log.suite()


def constrained(constraints: dict[str, Any]) -> tuple[History, dict[str, Any]]:
    log = synthetic_log.events()
    start = log[0].event.payload
    assert isinstance(start, m.RunStarted)
    spec = json.dumps({**json.loads(start.spec_json), "constraints": constraints})
    first = dataclasses.replace(log[0].event, payload=dataclasses.replace(start, spec_json=spec))
    history = history_of([Recorded(log[0].sequence, first), *log[1:]])
    return history, result_of(history, SUITE)


@pytest.fixture(scope="module")
def checked() -> tuple[History, dict[str, Any]]:
    return constrained(
        {"arithmetic": {"not_below": "best - 0.1"}, "sentiment": {"not_below": "expert-text - 0.3"},
         "python-code": {"not_below": 0.5}}
    )  # fmt: skip


def test_each_constraint_is_told_with_its_confidence(checked: tuple[History, dict[str, Any]]) -> None:
    _, result = checked
    math, text, code = result["constraints"]
    held = {s["reference"]: s["holdout"]["tasks"] for s in result["sources"]}
    ours = result["champion"]["holdout"]["tasks"]
    assert (math["against"], text["against"], code["against"]) == ("/models/expert-math", "/models/expert-text", "")
    for one, offset in ((math, -0.1), (text, -0.3), (code, 0.5)):
        task, found = one["task"], one["holdout"]
        bound = offset + (held[one["against"]][task]["score"] if one["against"] else 0.0)
        assert found["bound"] == pytest.approx(bound)
        assert found["margin"] == pytest.approx(ours[task]["score"] - bound)
        assert found["interval95"][0] <= found["margin"] <= found["interval95"][1]
        assert found["holds"] == one["holds"] == (ours[task]["score"] >= bound)
        assert 0 <= found["confidence"] <= 1
    assert not math["holds"]
    assert math["holdout"]["confidence"] < 0.5 < text["holdout"]["confidence"]
    assert "arithmetic not below best - 0.1 (expert-math): does not hold on held-out items" in math["statement"]
    assert math["violations"] > 0


def test_page_and_card_tell_it(checked: tuple[History, dict[str, Any]]) -> None:
    history, result = checked
    page, card = report_page(history, result), model_card(result)
    for one in result["constraints"]:
        assert one["statement"] in page
        assert f"* Constraint: {one['statement']}." in card
    assert "/models/" not in card


def test_a_source_by_its_folder_is_shortened(checked: tuple[History, dict[str, Any]]) -> None:
    _, result = constrained({"sentiment": {"not_below": "/models/expert-text - 0.3"}})
    (one,) = result["constraints"]
    assert one["statement"].startswith("sentiment not below expert-text - 0.3: holds")


def test_confidence_is_the_share_of_samples() -> None:
    assert share_at_least([1.0] * 10, 1.0, seed=1) == 1.0
    assert share_at_least([1.0] * 10, 1.1, seed=1) == 0.0
    assert 0.4 < share_at_least([0.0, 1.0] * 50, 0.5, seed=1) < 0.6
