"""Time left, stages and the line of a run, over logs of real runs (`recorded/`, without items)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from evomerge_cli.eta import TimeLeft
from evomerge_cli.progress import describe
from evomerge_cli.run_view import STAGES, RunView
from evomerge_cli.text_chart import BLOCKS, chart, sparkline
from evomerge_common.adapters.codec import from_json_line
from evomerge_common.ports import Recorded

LOGS = sorted((Path(__file__).parent / "recorded").glob("*.jsonl"))


def events(log: Path) -> list[Recorded]:
    return [Recorded(*from_json_line(line)) for line in log.read_text().splitlines()]


def watched(log: Path, began: float | None = None) -> Iterator[tuple[RunView, float, float | None, float]]:
    """The view, the time, the time left as told and as it was, after each event."""
    recorded = events(log)
    now = recorded[0].event.time if began is None else began
    view, left = RunView(), TimeLeft(lambda: now)
    for one in recorded:
        now = max(now, one.event.time)
        view.apply(one.event)
        yield view, now, left.remaining(view, one), recorded[-1].event.time - now


@pytest.mark.parametrize("log", LOGS, ids=lambda log: log.stem)
def test_time_left_is_right_within_a_third_after_a_tenth_of_the_run(log: Path) -> None:
    told = [
        (left, truth)
        for view, _, left, truth in watched(log)
        if left is not None and view.budget <= 10 * view.spent <= 2 * view.budget
    ]
    assert told
    assert all(left == pytest.approx(truth, rel=0.3) for left, truth in told)


def test_time_left_runs_down_between_events() -> None:
    recorded = events(LOGS[0])
    now = recorded[0].event.time
    view, left = RunView(), TimeLeft(lambda: now)
    before = None
    for one in recorded[: len(recorded) // 2]:
        now = one.event.time
        view.apply(one.event)
        before = left.remaining(view, one)
    assert before is not None
    now += 5.0
    assert left.remaining(view, None) == pytest.approx(before - 5.0)
    now += 1e6
    assert left.remaining(view, None) == 0.0


def test_what_is_replayed_tells_nothing_of_this_machine_now() -> None:
    recorded = events(LOGS[0])
    told = [left for _, _, left, _ in watched(LOGS[0], began=recorded[-1].event.time + 60.0)]
    assert set(told) == {None}


def test_stages_come_in_their_order() -> None:
    seen = ["start"]
    for view, *_ in watched(LOGS[0]):
        if view.stage != seen[-1]:
            seen.append(view.stage)
    assert seen[-1] == "finished"
    assert [STAGES.index(one) for one in seen[:-1]] == sorted(STAGES.index(one) for one in seen[:-1])
    assert {"sources", "search", "holdout"} <= set(seen)


def test_the_line_says_how_the_best_stands_against_the_best_source() -> None:
    view = next(view for view, *_ in watched(LOGS[0]) if view.spent == 30)
    assert view.best is not None
    assert view.best_source is not None
    line = describe(view, 83.0)
    assert line.startswith(f"search: {view.spent}/{view.budget}  best {view.best:.4f} ({view.method}, ")
    assert f"{view.best - view.best_source:+.4f} on the best source {view.best_source:.4f})" in line
    assert line.endswith("/h  1 min 23 s left")


@pytest.mark.parametrize(
    ("curve", "last", "drawn"),
    [
        ([], -1, ""),
        ([(0, 0.5)], 0, "▁"),
        ([(0, 0.0), (2, 1.0)], 3, "▁▁██"),
        ([(0, 0.0), (6, 0.5), (12, 1.0)], 17, "▁▁▁▁▅▅▅▅████"),
    ],
)
def test_sparklines(curve: list[tuple[int, float]], last: int, drawn: str) -> None:
    assert sparkline(curve, last) == drawn
    assert set(drawn) <= set(BLOCKS)


def test_a_chart_has_the_best_as_a_line_and_candidates_as_dots() -> None:
    drawn = chart([(0, 0.0), (2, 1.0)], {0: 0.0, 1: 0.5, 2: 1.0, 3: 0.5}, 3, width=12, height=6).split("\n")
    assert drawn == ["1.0000 │  ──", "       │", "       │ · ·", "       │", "0.0000 │──", "       0   3"]
    assert len(chart([], {0: 0.5}, 0, width=30, height=5).split("\n")) == 5
