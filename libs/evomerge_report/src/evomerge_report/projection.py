"""The event log as SQLite tables, for the page, the static report, the metrics and the API.

In a file it is a cache: rebuilt from the log when its schema is another version's or when the log is not the one that
it followed. Item scores lie in it as blobs of doubles: thousands of candidates take no memory of the process.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from array import array
from collections.abc import AsyncGenerator, Iterable
from pathlib import Path
from typing import Any

from evomerge_common.domain.history import Change, change_of, evaluations_of, population_of
from evomerge_common.domain.messages import CandidateProposed, RunStarted
from evomerge_common.domain.recipe import Recipe
from evomerge_common.errors import RecipeError
from evomerge_common.ports import EventLog, Recorded
from evomerge_report.genes import genes_of

SCHEMA_VERSION = 6
TABLES = ("meta", "runs", "models", "candidates", "scores", "items", "champions", "generations", "exports", "failures",
          "work", "notes", "genes", "answers")  # fmt: skip
_SCHEMA = """
CREATE TABLE meta (only INTEGER PRIMARY KEY CHECK (only = 0), sequence INTEGER, fingerprint TEXT);
INSERT INTO meta VALUES (0, 0, '');
CREATE TABLE runs (run_id TEXT PRIMARY KEY, status TEXT DEFAULT 'preparing', reason TEXT DEFAULT '',
    seed INTEGER DEFAULT 0, budget INTEGER DEFAULT 0,
    population INTEGER DEFAULT 1, suite_uri TEXT DEFAULT '', suite_digest TEXT DEFAULT '',
    version TEXT DEFAULT '', spec_json TEXT DEFAULT '{}', tasks_json TEXT DEFAULT '[]',
    champion TEXT DEFAULT '', generation INTEGER DEFAULT 0,
    started_at REAL DEFAULT 0, last_at REAL DEFAULT 0, sequence INTEGER DEFAULT 0,
    report_uri TEXT DEFAULT '', report_sequence INTEGER DEFAULT 0);
CREATE TABLE models (run_id TEXT, reference TEXT, digest TEXT, uri TEXT, commit_hash TEXT, architecture TEXT,
    num_layers INTEGER, parameters INTEGER, bytes INTEGER, licence TEXT, PRIMARY KEY (run_id, reference));
CREATE TABLE candidates (run_id TEXT, digest TEXT, place INTEGER, operator TEXT, method TEXT, source TEXT, parents TEXT,
    generation INTEGER, recipe_json TEXT, state TEXT DEFAULT 'proposed', fitness REAL, holdout REAL,
    estimate REAL, low REAL, high REAL, items INTEGER, changed INTEGER DEFAULT 0,
    PRIMARY KEY (run_id, digest));
CREATE INDEX by_fitness ON candidates (run_id, fitness DESC, place);
CREATE INDEX by_change ON candidates (run_id, changed);
CREATE TABLE scores (run_id TEXT, digest TEXT, split TEXT, place INTEGER, task TEXT, score REAL, metric TEXT,
    metric_value REAL, PRIMARY KEY (run_id, digest, split, task));
CREATE TABLE items (run_id TEXT, digest TEXT, split TEXT, rung INTEGER, place INTEGER, task TEXT, count INTEGER,
    total REAL, squares REAL, positions BLOB, scores BLOB, PRIMARY KEY (run_id, digest, split, rung, task));
CREATE TABLE champions (run_id TEXT, sequence INTEGER, digest TEXT, fitness REAL, place INTEGER,
    PRIMARY KEY (run_id, sequence));
CREATE TABLE generations (run_id TEXT, generation INTEGER, evaluated INTEGER, best REAL, mean REAL, diversity REAL,
    changed INTEGER, PRIMARY KEY (run_id, generation));
CREATE TABLE exports (run_id TEXT, sequence INTEGER, digest TEXT, format TEXT, uri TEXT, bytes INTEGER,
    PRIMARY KEY (run_id, sequence));
CREATE TABLE failures (run_id TEXT, sequence INTEGER, kind TEXT, digest TEXT, split TEXT, reference TEXT, type TEXT,
    message TEXT, PRIMARY KEY (run_id, sequence));
CREATE TABLE work (run_id TEXT, sequence INTEGER, kind TEXT, worker TEXT, device TEXT, seconds REAL, items INTEGER,
    cached INTEGER, began REAL, ended REAL, PRIMARY KEY (run_id, sequence));
CREATE TABLE answers (run_id TEXT, digest TEXT, split TEXT, task TEXT, position INTEGER, text TEXT,
    PRIMARY KEY (run_id, digest, split, task, position));
CREATE TABLE genes (run_id TEXT, gene TEXT, place INTEGER, value REAL, PRIMARY KEY (run_id, gene, place))
    WITHOUT ROWID;
CREATE TABLE notes (run_id TEXT, note TEXT, PRIMARY KEY (run_id, note));
"""

_STARTED = """UPDATE runs SET seed = ?, budget = ?, population = ?, suite_uri = ?, suite_digest = ?, version = ?,
    spec_json = ?, tasks_json = ?, started_at = ? WHERE run_id = ?"""
_PROPOSED = """INSERT OR IGNORE INTO candidates (run_id, digest, place, operator, method, source, parents, generation,
    recipe_json) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"""

Statement = tuple[str, tuple[Any, ...]]


def statements(recorded: Recorded) -> list[Statement]:
    """Tells what an event changes. Pure: the same event gives the same statements, which may be run twice."""
    event, sequence = recorded.event, recorded.sequence
    run, change = event.run_id, change_of(event.payload)
    found: list[Statement] = [
        ("INSERT OR IGNORE INTO runs (run_id, started_at) VALUES (?, ?)", (run, event.time)),
        ("UPDATE runs SET sequence = ?, last_at = max(last_at, ?) WHERE run_id = ?", (sequence, event.time, run)),
    ]
    if change.started is not None:
        found.append(_started(run, change.started, event.time))
    if change.continued is not None:
        spec_json = change.continued.spec_json
        sql = "UPDATE runs SET budget = ?, spec_json = ? WHERE run_id = ?"
        found.append((sql, (evaluations_of(spec_json), spec_json, run)))
    if change.status is not None:
        sql = "UPDATE runs SET status = ?, reason = ? WHERE run_id = ?"
        found.append((sql, (change.status.word, change.status.reason, run)))
    if change.champion:
        found.append(("UPDATE runs SET champion = ? WHERE run_id = ?", (change.champion, run)))
    of_candidate = _of_candidate(run, change) + _items(run, change)
    if (digest := change.digest) and of_candidate:
        sql = "UPDATE candidates SET changed = ? WHERE run_id = ? AND digest = ? AND changed < ?"
        of_candidate.append((sql, (sequence, run, digest, sequence)))
    return found + of_candidate + _of_log(run, sequence, change) + _work(recorded, change)


def _started(run: str, started: RunStarted, time: float) -> Statement:
    spec = json.loads(started.spec_json or "{}")
    budget = spec.get("search", {}).get("evaluations", 0)
    return _STARTED, (spec.get("seed", 0), budget, population_of(started.spec_json), started.suite_uri,
                      started.suite_digest, started.version, started.spec_json,
                      json.dumps([[one.task, one.weight, one.items] for one in started.tasks]), time, run)  # fmt: skip


def _of_candidate(run: str, change: Change) -> list[Statement]:
    """What a change says of one candidate. An estimate has columns of its own, so that it is in no ranking."""
    found: list[Statement] = []
    if change.proposed is not None:
        found.append(_proposed(run, change.proposed))
        found += [
            ("INSERT OR IGNORE INTO genes VALUES (?, ?, ?, ?)", (run, gene, change.proposed.index, value))
            for gene, value in genes_of(change.proposed.genome_json).items()
        ]
        found.append(("UPDATE runs SET status = 'running' WHERE run_id = ? AND status = 'preparing'", (run,)))
    if (scored := change.scored) is not None:
        column = "holdout" if scored.split == "holdout" else "fitness"
        first = f"UPDATE candidates SET {column} = ? WHERE run_id = ? AND digest = ? AND {column} IS NULL"  # noqa: S608
        found.append((first, (scored.fitness, run, scored.digest)))
        insert = "INSERT OR IGNORE INTO scores VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
        for place, one in enumerate(scored.scores):
            value = one.metric_value if change.raced is None else one.score  # a race tells no metric of all items
            row = (run, scored.digest, scored.split, place, one.task, one.score, one.metric, value)
            found.append((insert, row))
    if (raced := change.raced) is not None and raced.stopped:
        sql = "UPDATE candidates SET estimate = ?, low = ?, high = ?, items = ? WHERE run_id = ? AND digest = ?"
        found.append((sql, (raced.fitness, raced.low, raced.high, raced.items, run, raced.recipe_digest)))
    if change.state is not None:
        digest, state = change.state
        sql = "UPDATE candidates SET state = ? WHERE run_id = ? AND digest = ? AND state IN ('proposed', 'merged')"
        found.append((sql, (state, run, digest)))
    return found


def _items(run: str, change: Change) -> list[Statement]:
    """Item scores of an evaluation, all of a split or a rung of a race with the items' positions; some answers."""
    if (made := change.evaluation) is None:
        return []
    insert = "INSERT OR IGNORE INTO items VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
    written = "INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?, ?)"
    answers: list[Statement] = [
        (written, (run, made.recipe_digest, made.split, one.task, answer.position, answer.text))
        for one in made.scores
        for answer in one.answers
    ]
    return answers + [
        (insert, (run, made.recipe_digest, made.split, made.rung if made.partial else -1, place, one.task,
                  len(one.item_scores), sum(one.item_scores), sum(value * value for value in one.item_scores),
                  array("I", one.positions).tobytes(), array("d", one.item_scores).tobytes()))
        for place, one in enumerate(made.scores)
    ]  # fmt: skip


def _work(recorded: Recorded, change: Change) -> list[Statement]:
    """What a worker did for a result, and what a merge had to say."""
    event, run = recorded.event, recorded.event.run_id
    found: list[Statement] = []
    if (made := change.evaluation) is not None:
        items = 0 if made.cached else made.computed or sum(len(score.item_scores) for score in made.scores)
        work = ("evaluate", made.device, made.seconds, items, int(made.cached))
    elif change.merged is not None:
        work = ("merge", "", change.merged.seconds, 0, 0)
    elif change.model is not None:
        work = ("download", "", change.model.seconds, 0, 0)
    elif change.exported is not None:
        work = ("export", "", change.exported.seconds, 0, 0)
    else:
        return []
    kind, device, seconds, *rest = work
    values = (run, recorded.sequence, kind, event.worker, device, seconds, *rest, event.began, event.time)
    found.append(("INSERT OR IGNORE INTO work VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", values))
    product = change.merged or change.exported
    notes = product.notes if product is not None else ()
    return found + [("INSERT OR IGNORE INTO notes VALUES (?, ?)", (run, note)) for note in notes]


def _of_log(run: str, sequence: int, change: Change) -> list[Statement]:
    """What a change adds to the lists of a run."""
    found: list[Statement] = []
    if (done := change.generation) is not None:
        values: tuple[Any, ...] = (run, done.generation, done.evaluated, done.best_fitness, done.mean_fitness,
                                   done.diversity, sequence)  # fmt: skip
        found.append(("INSERT OR REPLACE INTO generations VALUES (?, ?, ?, ?, ?, ?, ?)", values))
        found.append(("UPDATE runs SET generation = ? WHERE run_id = ?", (done.generation, run)))
    if (best := change.improvement) is not None:
        values = (run, sequence, best.recipe_digest, best.fitness, best.index)
        found.append(("INSERT OR IGNORE INTO champions VALUES (?, ?, ?, ?, ?)", values))
    if change.model is not None:
        model = change.model.model
        values = (run, model.reference, model.digest, model.uri, model.commit, model.architecture, model.num_layers,
                  model.parameters, model.bytes, model.licence)  # fmt: skip
        found.append(("INSERT OR REPLACE INTO models VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", values))
    if (lost := change.failure) is not None:
        error = lost.error
        values = (run, sequence, lost.kind, lost.recipe_digest, lost.split, lost.reference, error.type, error.message)
        found.append(("INSERT OR IGNORE INTO failures VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values))
    if (made := change.exported) is not None:
        values = (run, sequence, made.recipe_digest, made.format, made.uri, made.bytes)
        found.append(("INSERT OR IGNORE INTO exports VALUES (?, ?, ?, ?, ?, ?)", values))
    return found


def _proposed(run: str, payload: CandidateProposed) -> Statement:
    method, source = "", ""
    with contextlib.suppress(RecipeError, ValueError, AttributeError):  # another version's recipe: shown without
        if payload.operator == "source":
            source = str(next(iter(Recipe.from_json(payload.recipe_json).sources()), ""))
        else:
            method = str(json.loads(payload.recipe_json).get("method", ""))  # far cheaper than the whole recipe
    values = (run, payload.recipe_digest, payload.index, payload.operator, method, source, json.dumps(payload.parents),
              payload.generation, payload.recipe_json)  # fmt: skip
    return _PROPOSED, values


class Projection:
    """The database and its place in the log. One thread; events go in by `apply`, which `flush` makes durable."""

    def __init__(self, path: Path | None = None) -> None:
        """Opens the database of a file, or an empty one in memory."""
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self.database = self._open()
        if self.database.execute("PRAGMA user_version").fetchone()[0] != SCHEMA_VERSION:
            self.rebuild()

    def _open(self) -> sqlite3.Connection:
        if self._path is None:
            database = sqlite3.connect(":memory:")
            database.row_factory = sqlite3.Row
            return database
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
        """Returns the sequence of the last event taken in."""
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
