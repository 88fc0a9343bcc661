"""Races and traces in report, projection and picture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from matplotlib.figure import Figure

from evomerge_common.domain import messages as m
from evomerge_common.ports import Recorded
from evomerge_report import charts
from evomerge_report.history import history_of
from evomerge_report.lineage import lineage_svg
from evomerge_report.projection import Projection
from evomerge_report.queries import Queries
from evomerge_report.report import prepare_report, report_page, write_report
from evomerge_report.result import result_of
from evomerge_report.timeline import timeline_svg
from evomerge_report.trace import summary, trace_of
from helpers import synthetic_log

SUITE = synthetic_log.suite()


def raced(*, stop_every: int = 3) -> list[Recorded]:
    """The synthetic log as a run with a race writes it: two rungs, and each third candidate stopped after the first."""
    found: list[m.Event] = []
    places: dict[str, int] = {}
    sources: set[str] = set()
    champions: set[str] = set()
    for recorded in synthetic_log.events():
        if isinstance(recorded.event.payload, m.ChampionChanged):
            champions.add(recorded.event.payload.recipe_digest)
    for recorded in synthetic_log.events():
        event, payload = recorded.event, recorded.event.payload
        if isinstance(payload, m.CandidateProposed):
            places[payload.recipe_digest] = payload.index
            if payload.operator == "source":
                sources.add(payload.recipe_digest)
        if not isinstance(payload, m.CandidateEvaluated) or payload.split != "search":
            found.append(event)
            continue
        digest = payload.recipe_digest
        if digest in sources:
            found.append(event)
            continue
        index = places[digest]
        stopped = index % stop_every == 0 and digest not in champions
        items = 0
        for rung in (0, 1):
            parts = tuple(
                replace(
                    one, positions=tuple(range(len(one.item_scores)))[rung::2], item_scores=one.item_scores[rung::2]
                )
                for one in payload.scores
            )
            if rung == 1 and stopped:
                break
            items += sum(len(one.item_scores) for one in parts)
            found.append(replace(event, payload=replace(payload, partial=True, rung=rung, scores=parts, fitness=0.99)))
        told = m.CandidateRaced(
            recipe_digest=digest, index=index, stopped=stopped, rung=0 if stopped else 1, items=items,
            fitness=0.3 if stopped else payload.fitness, low=0.25 if stopped else payload.fitness,
            high=0.35 if stopped else payload.fitness, against=next(iter(sources)), chance=0.01 if stopped else 0.0,
            scores=tuple(replace(one, item_scores=(), metric="", metric_value=0.0) for one in payload.scores),
            estimates=(m.RungEstimate(fitness=payload.fitness + 0.02, low=0.0, high=1.0),),
        )  # fmt: skip
        found.append(m.Event(run_id=event.run_id, payload=told, time=event.time))
    return [Recorded(i, event) for i, event in enumerate(found, start=1)]


def test_a_race_tells_what_the_whole_run_told() -> None:
    plain, found = (history_of(log) for log in (synthetic_log.events(), raced()))
    before, after = (result_of(history, SUITE) for history in (plain, found))
    assert after["champion"] == before["champion"], "rungs are put together to the very same result"
    assert after["improvement"] == before["improvement"]
    assert after["evaluations"] == before["evaluations"]
    stopped = {one.digest for one in found.stopped}
    assert len(stopped) == after["stopped"] == after["racing"]["stopped"] > 5
    assert not stopped & {one.digest for one in found.ranked}
    assert not stopped & {one["recipe_digest"] for one in after["pareto_front"]}
    race = after["racing"]
    assert {one["recipe_digest"] for one in race["candidates"]} == stopped
    assert race["candidates"][0]["interval95"] == [0.25, 0.35]
    assert race["items"] < race["items_without_racing"]
    assert race["share"] == pytest.approx(race["items"] / race["items_without_racing"])
    errors = race["estimate_error"]
    assert errors["whole_candidates"] == {
        "0": {
            "candidates": race["whole"] - 3,
            "mean_absolute_error": pytest.approx(0.02),
            "bias": pytest.approx(0.02),
            "inside_interval95": 1.0,
        }
    }
    assert result_of(plain, SUITE)["racing"] is None


def test_the_report_shows_who_was_stopped(tmp_path: Path) -> None:
    log = raced()
    history = history_of(log)
    page = report_page(history, result_of(history, SUITE))
    assert "were stopped early" in page
    assert page.count("[0.250, 0.350]") == len(history.stopped)
    svg = lineage_svg(history, history.stopped[-1].digest)
    assert "stopped, ~0.30 [0.25, 0.35]" in svg
    write_report(log, SUITE, tmp_path)
    assert (tmp_path / "report" / "fitness_plot.png").stat().st_size > 0


def test_the_projection_keeps_estimates_out_of_the_ranking(tmp_path: Path) -> None:
    log = raced()
    history = history_of(log)
    projection = Projection(tmp_path / "p.db")
    projection.apply_all(log)
    queries = Queries(projection.database)
    run = queries.run("run-1")
    assert (run.stopped, run.evaluated) == (len(history.stopped), len(history.scored))
    board = queries.leaderboard("run-1", limit=100)
    assert [(row.digest, row.fitness) for row in board] == [(c.digest, c.fitness) for c in history.ranked]
    assert [score.task for score in board[0].scores] == list(synthetic_log.TASKS)
    row = queries.stopped("run-1")[0]
    assert (row.fitness, row.estimate, row.low, row.high) == (None, 0.3, 0.25, 0.35)
    assert len(queries.estimates("run-1")) == len(history.scored) + len(history.stopped)
    projection.close()


def timed(*spans: tuple[float, float, float, str], search_ended: float, end: float) -> list[Recorded]:
    """A log of evaluations (began, ended, seconds, worker); the first is a source's."""
    log = [m.Event(run_id="r", payload=m.RunStarted(), time=100.0)]
    for number, (began, ended, seconds, worker) in enumerate(spans):
        digest, operator = f"c{number}", "source" if number == 0 else "random"
        proposed = m.CandidateProposed(recipe_digest=digest, operator=operator)
        log.append(m.Event(run_id="r", payload=proposed, time=100.0))
        result = m.CandidateEvaluated(recipe_digest=digest, split="search", seconds=seconds)
        log.append(m.Event(run_id="r", payload=result, time=100.0 + ended, began=100.0 + began, worker=worker))
    log.append(m.Event(run_id="r", payload=m.SearchEnded(), time=100.0 + search_ended))
    log.append(m.Event(run_id="r", payload=m.RunFinished(), time=100.0 + end))
    return [Recorded(i, event) for i, event in enumerate(log, start=1)]


def test_a_trace_adds_up() -> None:
    log = timed((0.25, 2, 1, "a"), (2, 5, 3, "a"), (4, 8, 4, "b"), (6, 10, 3, "a"), search_ended=10, end=12)
    told = summary(trace_of(log))
    assert (told["wall_seconds"], told["primed_at"], told["search_ended_at"]) == (12, 2, 10)
    assert told["evaluator_busy"] == pytest.approx((3 + 4 + 4) / 16)
    assert told["evaluator_scoring"] == pytest.approx((3 + 4 + 3) / 16)
    assert told["orchestration"] == pytest.approx(3 / 12), "0–1 before the first is computed, and 10–12"
    started = (0.75 / 12, 2.25 / 12)
    assert (told["start"], told["orchestration_after_start"]) == pytest.approx(started), "0–0.25 nobody had a job"
    workers = [(one["worker"], one["jobs"], one["busy_seconds"]) for one in told["workers"]]
    assert workers == [("a", 3, 8.75), ("b", 1, 4)]
    assert told["mean_wait_seconds"]["evaluate"] == pytest.approx(0.25)


def test_a_trace_counts_the_whole_command() -> None:
    log = timed((0.25, 2, 1, "a"), (2, 5, 3, "a"), (6, 10, 3, "a"), search_ended=10, end=12)
    told = summary(trace_of(log, (97.0, 115.0)))["command"]
    assert (told["seconds"], told["start_seconds"]) == (18, 4), "from the command to 1, where the first is computed"
    assert (told["search_seconds"], told["end_seconds"]) == (2, 5), "5–7 nobody computes, and none after 10"
    assert told["orchestration"] == pytest.approx(11 / 18)
    assert "command" not in summary(trace_of(log))  # result.json is written before the command ends


def test_a_picture_is_drawn_once_while_it_shows_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    draw = charts._png

    def count(figure: Figure) -> bytes:
        drawn.append(figure)
        return draw(figure)

    monkeypatch.setattr(charts, "_png", count)
    monkeypatch.setattr(charts, "_drawn", {})
    log = synthetic_log.events()
    payloads = [one.event.payload for one in log]
    first = next(
        i for i, one in enumerate(payloads) if isinstance(one, m.CandidateEvaluated) and one.split == "holdout"
    )
    prepare_report(log[:first], SUITE)
    assert len(drawn) == 5
    write_report(log, SUITE, tmp_path)
    assert len(drawn) == 6, "held-out scores change the comparison alone"
    assert {path.name for path in (tmp_path / "report").glob("*.png")} == {
        "fitness_plot.png", "diversity_plot.png", "pareto_front.png", "hypervolume.png", "benchmark_comparison.png",
    }  # fmt: skip


def test_a_trace_of_an_older_log_uses_what_was_measured() -> None:
    told = summary(trace_of(synthetic_log.events()))
    assert {one["worker"] for one in told["workers"]} == {"download", "merge", "evaluate", "export"}
    assert 0 < told["orchestration"] < 1


def test_the_picture_is_svg_with_a_bar_for_each_job() -> None:
    log = raced()
    root = ET.fromstring(timeline_svg(trace_of(log)))
    bars = [one for one in root.iter() if one.tag.endswith("rect") and one.find("{*}title") is not None]
    jobs = [e for e in log if e.event.is_result and not isinstance(e.event.payload, m.CandidateFailed)]
    assert len(bars) == len(jobs)
    assert timeline_svg(trace_of(log[:1])).startswith("<svg")
