"""The event log as SQLite tables, for the page, the metrics and the API.

A cache: rebuilt from the log when its schema is another version's or when the log is not the one that it followed.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import AsyncGenerator, Iterable
from pathlib import Path
from typing import Any

from evomerge_common.domain import messages as m
from evomerge_common.domain.recipe import Recipe
from evomerge_common.errors import RecipeError
from evomerge_common.ports import EventLog, Recorded

SCHEMA_VERSION = 2
TABLES = ("meta", "runs", "models", "candidates", "scores", "champions", "generations", "exports", "failures")
_SCHEMA = """
CREATE TABLE meta (only INTEGER PRIMARY KEY CHECK (only = 0), sequence INTEGER, fingerprint TEXT);
INSERT INTO meta VALUES (0, 0, '');
CREATE TABLE runs (run_id TEXT PRIMARY KEY, status TEXT DEFAULT 'preparing', reason TEXT DEFAULT '',
    seed INTEGER DEFAULT 0, budget INTEGER DEFAULT 0, suite_uri TEXT DEFAULT '', suite_digest TEXT DEFAULT '',
    version TEXT DEFAULT '', spec_json TEXT DEFAULT '{}', champion TEXT DEFAULT '', generation INTEGER DEFAULT 0,
    mean_fitness REAL, started_at REAL DEFAULT 0, last_at REAL DEFAULT 0, sequence INTEGER DEFAULT 0,
    report_uri TEXT DEFAULT '', report_sequence INTEGER DEFAULT 0);
CREATE TABLE models (run_id TEXT, reference TEXT, digest TEXT, uri TEXT, commit_hash TEXT, architecture TEXT,
    num_layers INTEGER, parameters INTEGER, bytes INTEGER, PRIMARY KEY (run_id, reference));
CREATE TABLE candidates (run_id TEXT, digest TEXT, place INTEGER, operator TEXT, method TEXT, source TEXT, parents TEXT,
    generation INTEGER, recipe_json TEXT, state TEXT DEFAULT 'proposed', fitness REAL, holdout REAL,
    estimate REAL, low REAL, high REAL, items INTEGER,
    PRIMARY KEY (run_id, digest));
CREATE INDEX by_fitness ON candidates (run_id, fitness DESC, place);
CREATE TABLE scores (run_id TEXT, digest TEXT, split TEXT, place INTEGER, task TEXT, score REAL, metric TEXT,
    metric_value REAL, PRIMARY KEY (run_id, digest, split, task));
CREATE TABLE champions (run_id TEXT, sequence INTEGER, digest TEXT, fitness REAL, place INTEGER,
    PRIMARY KEY (run_id, sequence));
CREATE TABLE generations (run_id TEXT, generation INTEGER, evaluated INTEGER, best REAL, mean REAL, diversity REAL,
    PRIMARY KEY (run_id, generation));
CREATE TABLE exports (run_id TEXT, sequence INTEGER, digest TEXT, format TEXT, uri TEXT, bytes INTEGER,
    PRIMARY KEY (run_id, sequence));
CREATE TABLE failures (run_id TEXT, sequence INTEGER, kind TEXT, digest TEXT, split TEXT, reference TEXT, type TEXT,
    message TEXT, PRIMARY KEY (run_id, sequence));
"""

_STARTED = """UPDATE runs SET seed = ?, budget = ?, suite_uri = ?, suite_digest = ?, version = ?, spec_json = ?,
    started_at = ? WHERE run_id = ?"""
_PROPOSED = """INSERT OR IGNORE INTO candidates (run_id, digest, place, operator, method, source, parents, generation,
    recipe_json) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"""

Statement = tuple[str, tuple[Any, ...]]


def statements(recorded: Recorded) -> list[Statement]:
    """What an event changes. Pure: the same event gives the same statements, which may be run twice."""
    event, sequence = recorded.event, recorded.sequence
    run, payload = event.run_id, event.payload
    seen: list[Statement] = [
        ("INSERT OR IGNORE INTO runs (run_id, started_at) VALUES (?, ?)", (run, event.time)),
        ("UPDATE runs SET sequence = ?, last_at = max(last_at, ?) WHERE run_id = ?", (sequence, event.time, run)),
    ]
    return seen + _decision(run, sequence, payload, event.time) + _result(run, sequence, payload)


def _status(run: str, status: str, reason: str = "", champion: str = "") -> list[Statement]:
    return [
        (
            "UPDATE runs SET status = ?, reason = ?, champion = coalesce(nullif(?, ''), champion) WHERE run_id = ?",
            (status, reason, champion, run),
        )
    ]


def _decision(run: str, sequence: int, payload: object, time: float) -> list[Statement]:
    match payload:
        case m.RunStarted():
            spec = json.loads(payload.spec_json or "{}")
            budget = spec.get("search", {}).get("evaluations", 0)
            values = (spec.get("seed", 0), budget, payload.suite_uri, payload.suite_digest, payload.version,
                      payload.spec_json, time, run)  # fmt: skip
            return [(_STARTED, values)]
        case m.CandidateProposed():
            return [_proposed(run, payload), *_running(run)]
        case m.GenerationCompleted():
            return [
                (
                    "INSERT OR REPLACE INTO generations VALUES (?, ?, ?, ?, ?, ?)",
                    (run, payload.generation, payload.evaluated, payload.best_fitness, payload.mean_fitness,
                     payload.diversity),
                ),
                (
                    "UPDATE runs SET generation = ?, mean_fitness = ? WHERE run_id = ?",
                    (payload.generation, payload.mean_fitness, run),
                ),
            ]  # fmt: skip
        case m.ChampionChanged():
            row = (run, sequence, payload.recipe_digest, payload.fitness, payload.index)
            return [
                ("INSERT OR IGNORE INTO champions VALUES (?, ?, ?, ?, ?)", row),
                ("UPDATE runs SET champion = ? WHERE run_id = ?", (payload.recipe_digest, run)),
            ]
        case m.CandidateRaced():
            return _raced(run, payload)
        case m.RunPaused(reason=reason):
            return _status(run, "paused", reason)
        case m.RunResumed():
            return _status(run, "running")
        case m.SearchEnded():
            return _status(run, "finishing", payload.reason, payload.champion_digest)
        case m.RunFinished():
            return _status(run, "finished", payload.reason, payload.champion_digest)
        case m.RunCancelled(reason=reason):
            return _status(run, "cancelled", reason)
        case m.RunFailed(error=error):
            return _status(run, "failed", error.message)
        case _:
            return []


def _raced(run: str, payload: m.CandidateRaced) -> list[Statement]:
    """All items: the fitness; stopped: an estimate in a column of its own, so that it never stands in a ranking."""
    digest = payload.recipe_digest
    if payload.stopped:
        sql = "UPDATE candidates SET estimate = ?, low = ?, high = ?, items = ? WHERE run_id = ? AND digest = ?"
        values = (payload.fitness, payload.low, payload.high, payload.items, run, digest)
        return [(sql, values), _state(run, digest, "stopped", "proposed", "merged")]
    found: list[Statement] = [
        ("UPDATE candidates SET fitness = ? WHERE run_id = ? AND digest = ?", (payload.fitness, run, digest)),
        _state(run, digest, "evaluated", "proposed", "merged"),
    ]
    insert = "INSERT OR IGNORE INTO scores VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
    for place, score in enumerate(payload.scores):
        found.append((insert, (run, digest, "search", place, score.task, score.score, score.metric, score.score)))
    return found


def _running(run: str) -> list[Statement]:
    return [("UPDATE runs SET status = 'running' WHERE run_id = ? AND status = 'preparing'", (run,))]


def _proposed(run: str, payload: m.CandidateProposed) -> Statement:
    method, source = "", ""
    with contextlib.suppress(RecipeError, ValueError, AttributeError):  # another version's recipe: shown without
        if payload.operator == "source":
            source = str(next(iter(Recipe.from_json(payload.recipe_json).sources()), ""))
        else:
            method = str(json.loads(payload.recipe_json).get("method", ""))  # far cheaper than the whole recipe
    values = (run, payload.recipe_digest, payload.index, payload.operator, method, source, json.dumps(payload.parents),
              payload.generation, payload.recipe_json)  # fmt: skip
    return _PROPOSED, values


def _result(run: str, sequence: int, payload: object) -> list[Statement]:
    match payload:
        case m.ModelReady(model=model):
            return [
                (
                    "INSERT OR REPLACE INTO models VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (run, model.reference, model.digest, model.uri, model.commit, model.architecture, model.num_layers,
                     model.parameters, model.bytes),
                )
            ]  # fmt: skip
        case m.CandidateMerged():
            return [_state(run, payload.recipe_digest, "merged", "proposed")]
        case m.CandidateEvaluated(partial=True):
            return []  # CandidateRaced tells what the rungs come to
        case m.CandidateEvaluated():
            column = "holdout" if payload.split == "holdout" else "fitness"
            first = f"UPDATE candidates SET {column} = ? WHERE run_id = ? AND digest = ? AND {column} IS NULL"  # noqa: S608
            found: list[Statement] = [(first, (payload.fitness, run, payload.recipe_digest))]
            if column == "fitness":
                found.append(_state(run, payload.recipe_digest, "evaluated", "proposed", "merged"))
            insert = "INSERT OR IGNORE INTO scores VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
            for place, score in enumerate(payload.scores):
                found.append(
                    (insert, (run, payload.recipe_digest, payload.split, place, score.task, score.score, score.metric,
                              score.metric_value))
                )  # fmt: skip
            return found
        case m.CandidateFailed(error=error):
            row = (run, sequence, payload.kind, payload.recipe_digest, payload.split, payload.reference, error.type,
                   error.message)  # fmt: skip
            failure: Statement = ("INSERT OR IGNORE INTO failures VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
            ended = payload.split == "holdout" or payload.kind == m.JOB_KINDS[m.ExportJob]
            return [failure] if ended else [failure, _state(run, payload.recipe_digest, "failed", "proposed", "merged")]
        case m.ArtifactExported():
            exported = (run, sequence, payload.recipe_digest, payload.format, payload.uri, payload.bytes)
            return [("INSERT OR IGNORE INTO exports VALUES (?, ?, ?, ?, ?, ?)", exported)]
        case _:
            return []


def _state(run: str, digest: str, state: str, *before: str) -> Statement:
    marks = ", ".join("?" * len(before))
    sql = f"UPDATE candidates SET state = ? WHERE run_id = ? AND digest = ? AND state IN ({marks})"  # noqa: S608
    return sql, (state, run, digest, *before)


class Projection:
    """The database and its place in the log. One thread; events go in by `apply`, which `flush` makes durable."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self.database = self._open()
        if self.database.execute("PRAGMA user_version").fetchone()[0] != SCHEMA_VERSION:
            self.rebuild()

    def _open(self) -> sqlite3.Connection:
        try:
            database = sqlite3.connect(self._path)
            database.execute("PRAGMA user_version")
        except sqlite3.DatabaseError:  # not a database, or damaged: the log has everything
            database.close()
            self._path.unlink()
            database = sqlite3.connect(self._path)
        database.row_factory = sqlite3.Row
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        return database

    def rebuild(self) -> None:
        """Starts again with empty tables."""
        self.database.commit()
        names = [row[0] for row in self.database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for name in names:
            self.database.execute(f'DROP TABLE "{name}"')
        self.database.executescript(_SCHEMA)
        self.database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        self.database.commit()

    @property
    def sequence(self) -> int:
        """The last event taken in."""
        return int(self.database.execute("SELECT sequence FROM meta").fetchone()[0])

    def apply(self, recorded: Recorded) -> bool:
        """Takes in one event; False for one that was taken in before."""
        if recorded.sequence <= self.sequence:
            return False
        for sql, values in statements(recorded):
            self.database.execute(sql, values)
        self.database.execute(
            "UPDATE meta SET sequence = ?, fingerprint = ?", (recorded.sequence, _fingerprint(recorded))
        )
        return True

    def apply_all(self, events: Iterable[Recorded]) -> None:
        """Takes in many and flushes."""
        for recorded in events:
            self.apply(recorded)
        self.flush()

    def flush(self) -> None:
        """Makes what was applied durable."""
        self.database.commit()

    async def check(self, log: EventLog) -> None:
        """Rebuilds when the log ends before this projection's place, or holds another event there."""
        last = self.sequence
        if not last:
            return
        if await log.last_sequence() < last:
            self.rebuild()
            return
        known = self.database.execute("SELECT fingerprint FROM meta").fetchone()[0]
        stream = log.read("*", from_sequence=last)
        recorded = await anext(stream, None)
        if isinstance(stream, AsyncGenerator):
            await stream.aclose()  # its consumer would stay behind
        if recorded is not None and recorded.sequence == last and _fingerprint(recorded) != known:
            self.rebuild()

    def close(self) -> None:
        """Flushes and closes."""
        self.flush()
        self.database.close()


def _fingerprint(recorded: Recorded) -> str:
    event = recorded.event
    return f"{recorded.sequence} {event.run_id} {event.type} {event.time!r}"
