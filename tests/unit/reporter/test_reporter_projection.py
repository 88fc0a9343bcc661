"""The projection says what the log says, however often and in whatever pieces it is told."""

import dataclasses
import re
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from evomerge_common.adapters.memory import MemoryClock, MemoryEventLog
from evomerge_common.domain import messages as m
from evomerge_common.errors import NotFound
from evomerge_common.ports import Recorded
from evomerge_report.history import history_of
from evomerge_report.projection import TABLES, Projection, statements
from evomerge_report.queries import Queries
from evomerge_report.result import hypervolume_curve
from evomerge_reporter.metrics import LINGER, SILENT, RunMetrics
from helpers import synthetic_log

LOG = synthetic_log.events()


@pytest.fixture
def projection(tmp_path: Path) -> Projection:
    return Projection(tmp_path / "state" / "reporter.db")


def dump(projection: Projection) -> dict[str, list[tuple[object, ...]]]:
    return {t: [tuple(row) for row in projection.database.execute(f"SELECT * FROM {t}")] for t in TABLES}


def test_says_what_the_history_says(projection: Projection) -> None:
    projection.apply_all(LOG)
    queries, history = Queries(projection.database), history_of(LOG)
    run = queries.run("run-1")
    assert (run.status, run.reason, run.champion, run.seed, run.budget) == (
        "finished",
        "budget",
        history.champion_digest,
        7,
        40,
    )
    assert (run.evaluated, run.failed, run.proposed) == (38, 2, 40)
    assert [row.digest for row in queries.leaderboard("run-1", limit=100)] == [c.digest for c in history.ranked]
    first = queries.leaderboard("run-1")[0]
    assert {s.task: s.score for s in first.scores} == history.ranked[0].scores("search")
    assert queries.estimates("run-1") == [(c.index, c.fitness) for c in history.scored]
    assert [row.name for row in queries.sources("run-1")] == ["expert-math", "expert-code", "expert-text"]
    assert all(row.holdout is not None for row in queries.sources("run-1"))
    assert queries.lineage("run-1")[0].digest == history.champion_digest
    assert len(queries.failures("run-1")) == 2


def test_twice_and_in_pieces_is_the_same(projection: Projection, tmp_path: Path) -> None:
    projection.apply_all(LOG)
    pieces = Projection(tmp_path / "other.db")
    pieces.apply_all(LOG[:50])
    pieces.close()
    again = Projection(tmp_path / "other.db")
    assert again.sequence == 50
    again.apply_all(LOG[20:])
    again.apply_all(LOG)
    assert dump(again) == dump(projection)
    for recorded in LOG:  # even without the guard by sequence
        for sql, values in statements(recorded):
            if not sql.startswith("UPDATE runs"):
                again.database.execute(sql, values)
    assert dump(again) == dump(projection)


def test_unknown_run_and_candidate(projection: Projection) -> None:
    queries = Queries(projection.database)
    with pytest.raises(NotFound, match="no run"):
        queries.run("none")
    projection.apply_all(LOG)
    with pytest.raises(NotFound, match="no candidate"):
        queries.lineage("run-1", "none")


def test_other_schema_or_damage_is_rebuilt(projection: Projection, tmp_path: Path) -> None:
    projection.apply_all(LOG)
    projection.close()
    path = tmp_path / "state" / "reporter.db"
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    fresh = Projection(path)
    assert fresh.sequence == 0
    fresh.close()
    path.write_bytes(b"this is no database " * 100)
    assert Projection(path).sequence == 0


async def log_of(events: list[Recorded]) -> MemoryEventLog:
    log, last = MemoryEventLog(MemoryClock()), 0
    for recorded in events:
        if recorded.event.is_result:
            await log.append_result(recorded.event, message_id=f"{recorded.sequence}")
        else:
            last = await log.append_decision(recorded.event, expected_last=last)
    return log


async def test_follows_the_same_log_and_no_other(projection: Projection) -> None:
    projection.apply_all(LOG)
    await projection.check(await log_of(LOG))
    assert projection.sequence == len(LOG)
    await projection.check(await log_of(LOG[:10]))
    assert projection.sequence == 0, "the log went back"
    projection.apply_all(LOG)
    moved = [dataclasses.replace(r, event=dataclasses.replace(r.event, time=r.event.time + 5)) for r in LOG]
    await projection.check(await log_of(moved))
    assert projection.sequence == 0, "another log of the same length"


def shown(registry: CollectorRegistry) -> str:
    return generate_latest(registry).decode()


def test_metrics_of_active_runs_alone(projection: Projection) -> None:
    registry = CollectorRegistry()
    metrics, queries = RunMetrics(registry), Queries(projection.database)
    end = next(i for i, r in enumerate(LOG) if isinstance(r.event.payload, m.SearchEnded))
    projection.apply_all(LOG[:end])
    now = LOG[end].event.time
    metrics.update(queries, now)
    text = shown(registry)
    assert 'evomerge_run_best_fitness{objective="fitness",run_id="run-1"} 0.880' in text
    assert 'evomerge_run_candidates{run_id="run-1",state="evaluated"} 38.0' in text
    assert 'evomerge_run_generation{run_id="run-1"} 4.0' in text
    assert 'evomerge_run_mean_fitness{run_id="run-1"}' in text
    history = history_of(LOG)
    place = history.ranked[0].index
    assert f'evomerge_run_champion_index{{run_id="run-1"}} {place}.0' in text
    assert "champion_interval{" not in text, "a log that does not say the tasks' weights"
    spread = [float(one) for one in re.findall(r"fitness_quantile{.*?} (\S+)", text)]
    assert spread == sorted(spread)
    assert len(spread) == 3
    made = re.findall(r'operator_candidates{operator="(\w+)",run_id="run-1"} (\S+)', text)
    assert sum(float(count) for _, count in made) == 40
    assert 'evomerge_run_diversity{run_id="run-1"}' in text
    assert 'evomerge_run_paused{run_id="run-1"} 0.0' in text
    last = registry.get_sample_value("evomerge_run_last_event_timestamp_seconds", {"run_id": "run-1"})
    assert last == LOG[end - 1].event.time
    projection.apply_all(LOG[end:])
    metrics.update(queries, now + LINGER - 1)
    assert "run-1" in shown(registry), "a scrape sees the end"
    metrics.update(queries, now + LINGER)
    assert "run-1" not in shown(registry)


def test_the_champions_interval_is_about_its_fitness(projection: Projection) -> None:
    first = LOG[0].event
    assert isinstance(first.payload, m.RunStarted)
    tasks = tuple(m.TaskShape(task=one, weight=1.0, items=40) for one in ("arithmetic", "python-code", "sentiment"))
    event = replace(first, payload=replace(first.payload, tasks=tasks))
    end = next(i for i, r in enumerate(LOG) if isinstance(r.event.payload, m.SearchEnded))
    projection.apply_all([replace(LOG[0], event=event), *LOG[1:end]])
    registry = CollectorRegistry()
    RunMetrics(registry).update(Queries(projection.database), LOG[-1].event.time)
    bounds = [registry.get_sample_value("evomerge_run_champion_interval", {"run_id": "run-1", "bound": bound})
              for bound in ("low", "high")]  # fmt: skip
    low, high = [one or 0.0 for one in bounds]
    best = registry.get_sample_value("evomerge_run_best_fitness", {"run_id": "run-1", "objective": "fitness"})
    assert low + high == pytest.approx(2 * (best or 0.0))
    assert 0.02 < high - low < 0.3


def test_the_hypervolume_grows_and_ends_as_the_report_has_it(projection: Projection) -> None:
    """Read bit by bit as events come in, it equals the volume of the whole front."""
    registry, seen = CollectorRegistry(), []
    metrics, queries = RunMetrics(registry), Queries(projection.database)
    for start in range(0, len(LOG), 9):
        projection.apply_all(LOG[start : start + 9])
        metrics.update(queries, LOG[-1].event.time)
        volume = registry.get_sample_value("evomerge_run_hypervolume", {"run_id": "run-1"})
        if volume is not None:
            seen.append(volume)
    assert seen == sorted(seen)
    assert seen[-1] > seen[0] > 0.0
    assert seen[-1] == pytest.approx(hypervolume_curve(history_of(LOG))[-1]["hypervolume"])
    metrics.update(queries, LOG[-1].event.time + LINGER)
    assert registry.get_sample_value("evomerge_run_hypervolume", {"run_id": "run-1"}) is None


def test_metrics_leave_out_what_went_silent(projection: Projection) -> None:
    registry = CollectorRegistry()
    projection.apply_all(synthetic_log.events(end="running"))
    RunMetrics(registry).update(Queries(projection.database), LOG[-1].event.time + SILENT + 60)
    assert "run-1" not in shown(registry)
