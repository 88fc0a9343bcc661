"""What the page, the metrics and the API read from the projection."""

from __future__ import annotations

import json
import sqlite3
from array import array
from collections.abc import Sequence
from typing import Any

from evomerge_common.domain.history import mean_fitness
from evomerge_common.domain.messages import TaskScore
from evomerge_common.errors import NotFound
from evomerge_report.rows import ENDED, CandidateRow, RunRow


class Queries:
    """Reads from a projection's connection."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def runs(self, *, limit: int = 200) -> list[RunRow]:
        """Returns the latest runs, newest first."""
        rows = self._database.execute("SELECT * FROM runs ORDER BY started_at DESC, run_id LIMIT ?", (limit,))
        return [self._run(row) for row in rows.fetchall()]

    def active_runs(self, *, since: float) -> list[RunRow]:
        """Runs that have not ended and said something since then."""
        marks = ", ".join("?" * len(ENDED))
        sql = f"SELECT * FROM runs WHERE status NOT IN ({marks}) AND last_at >= ?"  # noqa: S608 - only question marks
        return [self._run(row) for row in self._database.execute(sql, (*ENDED, since)).fetchall()]

    def sequence(self, run_id: str = "") -> int:
        """Returns the sequence of a run's latest event; without a run, of the latest of all.

        Raises:
            NotFound: the log has no such run.

        """
        if not run_id:
            return int(self._database.execute("SELECT sequence FROM meta").fetchone()[0])
        row = self._database.execute("SELECT sequence FROM runs WHERE run_id = ?", (run_id,)).fetchone()
        if row is None:
            raise NotFound(f"no run {run_id!r} in the event log; `evomerge runs list` shows them")
        return int(row[0])

    def run(self, run_id: str) -> RunRow:
        """Returns one run.

        Raises:
            NotFound: the log has no such run.

        """
        row = self._database.execute("SELECT * FROM runs WHERE run_id = ?", (run_id,)).fetchone()
        if row is None:
            raise NotFound(f"no run {run_id!r} in the event log; `evomerge runs list` shows them")
        return self._run(row)

    def _run(self, row: sqlite3.Row) -> RunRow:
        run_id = row["run_id"]
        states = self._database.execute(
            "SELECT state, count(*), max(fitness), max(place) FROM candidates WHERE run_id = ? GROUP BY state",
            (run_id,),
        ).fetchall()
        best = [state[2] for state in states if state[2] is not None]
        last = max((state[3] for state in states if state[0] not in ("proposed", "merged")), default=-1)
        recent = self.estimates(run_id, after=last - row["population"])
        fields = {key: row[key] for key in RunRow.__dataclass_fields__ if key in row.keys()}  # noqa: SIM118 - a Row
        return RunRow(
            **fields,
            best=max(best) if best else None,
            mean=mean_fitness(recent, last=last, population=row["population"]),
            states={state[0]: state[1] for state in states},
        )

    def leaderboard(self, run_id: str, *, limit: int = 20) -> list[CandidateRow]:
        """Returns the best candidates on search items, best first; of equals the earlier."""
        return self._candidates("fitness IS NOT NULL ORDER BY fitness DESC, place LIMIT ?", run_id, limit)

    def stopped(self, run_id: str, *, limit: int = 20) -> list[CandidateRow]:
        """Returns the candidates that a race has stopped, the latest first."""
        return self._candidates("state = 'stopped' ORDER BY place DESC LIMIT ?", run_id, limit)

    def sources(self, run_id: str) -> list[CandidateRow]:
        """Returns the models that the run was given."""
        return self._candidates("operator = 'source' ORDER BY place LIMIT ?", run_id, 100)

    def candidate(self, run_id: str, digest: str) -> CandidateRow | None:
        """Returns one candidate."""
        found = self._candidates("digest = ? LIMIT ?", run_id, digest, 1)
        return found[0] if found else None

    def _candidates(self, rest: str, run_id: str, *values: Any) -> list[CandidateRow]:
        sql = f"SELECT * FROM candidates WHERE run_id = ? AND {rest}"  # noqa: S608 - `rest` is ours, see above
        return [
            CandidateRow(
                digest=row["digest"], index=row["place"], operator=row["operator"], method=row["method"],
                source=row["source"], parents=tuple(json.loads(row["parents"])), generation=row["generation"],
                fitness=row["fitness"], holdout=row["holdout"], scores=self._scores(run_id, row["digest"]),
                state=row["state"], estimate=row["estimate"], low=row["low"], high=row["high"], items=row["items"],
            )
            for row in self._database.execute(sql, (run_id, *values)).fetchall()
        ]  # fmt: skip

    def _scores(self, run_id: str, digest: str) -> tuple[TaskScore, ...]:
        rows = self._database.execute(
            "SELECT task, score, metric, metric_value FROM scores "
            "WHERE run_id = ? AND digest = ? AND split != 'holdout' ORDER BY place", (run_id, digest),
        )  # fmt: skip
        return tuple(TaskScore(**dict(row)) for row in rows)

    def table(self, run_id: str, *, since: int = 0) -> list[sqlite3.Row]:
        """Returns the candidates that an event after `since` was about, in order of proposal, without recipes."""
        sql = (
            "SELECT digest, place, operator, method, source, parents, generation, round(fitness, 6) AS fitness, "
            "round(holdout, 6) AS holdout, state, round(estimate, 6) AS estimate, round(low, 6) AS low, "
            "round(high, 6) AS high, items FROM candidates WHERE run_id = ? AND changed > ? ORDER BY place"
        )
        return self._database.execute(sql, (run_id, since)).fetchall()

    def operators(self, run_id: str) -> list[str]:
        """Returns the operators in order of their first candidate."""
        sql = "SELECT operator FROM candidates WHERE run_id = ? GROUP BY operator ORDER BY min(place)"
        return [row[0] for row in self._database.execute(sql, (run_id,))]

    def yields(self, run_id: str) -> list[tuple[str, int, float | None]]:
        """Returns each operator with the number of its candidates and their best fitness."""
        sql = "SELECT operator, count(*), max(fitness) FROM candidates WHERE run_id = ? GROUP BY operator"
        return [(row[0], row[1], row[2]) for row in self._database.execute(sql, (run_id,))]

    def champions(self, run_id: str) -> list[tuple[int, float]]:
        """Returns place in the order of proposal and fitness of each champion, the last one last."""
        sql = "SELECT place, fitness FROM champions WHERE run_id = ? ORDER BY sequence"
        return [(row[0], row[1]) for row in self._database.execute(sql, (run_id,))]

    def places(self, run_id: str) -> dict[str, int]:
        """Returns digest → place in the order of proposal."""
        return dict(self._database.execute("SELECT digest, place FROM candidates WHERE run_id = ?", (run_id,)))

    def task_scores(self, run_id: str, *, since: int = 0) -> dict[str, dict[str, float]]:
        """Returns digest → task → score on search items, of the same candidates; of one that was stopped estimates."""
        sql = (
            "SELECT digest, task, round(score, 6) FROM scores JOIN candidates USING (run_id, digest) "
            "WHERE run_id = ? AND changed > ? AND split != 'holdout' ORDER BY scores.place"
        )
        return self._by_task(sql, run_id, since)

    def variances(self, run_id: str, *, since: int = 0) -> dict[str, dict[str, float | None]]:
        """Returns digest → task → variance of the mean of its search items, all rungs together; None of one item."""
        sql = (
            "SELECT digest, task, max(0.0, sum(squares) - sum(total) * sum(total) / sum(count)) "
            "/ nullif((sum(count) - 1) * sum(count), 0) FROM items JOIN candidates USING (run_id, digest) "
            "WHERE run_id = ? AND changed > ? AND split != 'holdout' GROUP BY digest, task"
        )
        return self._by_task(sql, run_id, since)

    def _by_task(self, sql: str, run_id: str, since: int) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for digest, task, value in self._database.execute(sql, (run_id, since)):
            found.setdefault(digest, {})[task] = value
        return found

    def items(self, run_id: str, digest: str, split: str) -> dict[str, array[float]]:
        """Returns task → score of each item of a split, in the suite's order; of rungs as far as they have come.

        Args:
            run_id: the run.
            digest: recipe digest of a candidate or control.
            split: search (or all, where nothing is held out), or holdout.

        """
        splits = ("holdout", "holdout") if split == "holdout" else ("search", "all")
        sql = (
            "SELECT task, rung, positions, scores FROM items WHERE run_id = ? AND digest = ? AND split IN (?, ?) "
            "ORDER BY rung, place"
        )
        whole: dict[str, array[float]] = {}
        parts: dict[str, dict[int, float]] = {}
        for task, rung, positions, scores in self._database.execute(sql, (run_id, digest, *splits)):
            values = array("d", scores)
            if rung < 0:
                whole[task] = values
            else:
                parts.setdefault(task, {}).update(zip(array("I", positions), values, strict=True))
        return whole or {task: array("d", (one[1] for one in sorted(found.items()))) for task, found in parts.items()}

    def placed_items(self, run_id: str, digest: str, split: str) -> dict[str, dict[int, float]]:
        """Returns task → place in the split's order → score, as `items` does; of rungs as far as they have come."""
        splits = ("holdout", "holdout") if split == "holdout" else ("search", "all")
        sql = (
            "SELECT task, rung, positions, scores FROM items WHERE run_id = ? AND digest = ? AND split IN (?, ?) "
            "ORDER BY rung DESC, place"
        )
        found: dict[str, dict[int, float]] = {}
        for task, rung, positions, scores in self._database.execute(sql, (run_id, digest, *splits)):
            values = array("d", scores)
            places = array("I", positions) if rung >= 0 and positions else range(len(values))
            found.setdefault(task, {}).update(zip(places, values, strict=True))
        return found

    def answers(self, run_id: str, digests: Sequence[str]) -> dict[tuple[str, str, str, int], str]:
        """Returns (digest, split, task, place) → what these candidates wrote, as far as it was recorded."""
        marks = ", ".join("?" * len(digests))
        sql = f"SELECT digest, split, task, position, text FROM answers WHERE run_id = ? AND digest IN ({marks})"  # noqa: S608 - only question marks
        rows = self._database.execute(sql, (run_id, *digests))
        return {(row[0], "holdout" if row[1] == "holdout" else "search", row[2], row[3]): row[4] for row in rows}

    def children(self, run_id: str, digest: str, *, limit: int) -> list[CandidateRow]:
        """Returns the candidates that came from one, the best first."""
        return self._candidates("instr(parents, ?) > 0 ORDER BY fitness DESC, place LIMIT ?", run_id, digest, limit)

    def rank(self, run_id: str, one: CandidateRow) -> int | None:
        """Returns a candidate's place on the leaderboard, from 1; None without a fitness."""
        if one.fitness is None:
            return None
        sql = "SELECT count(*) FROM candidates WHERE run_id = ? AND (fitness > ? OR (fitness = ? AND place < ?))"
        row = self._database.execute(sql, (run_id, one.fitness, one.fitness, one.index)).fetchone()
        return 1 + int(row[0])

    def shares(self, run_id: str, column: str, width: int) -> list[tuple[int, str, int]]:
        """Returns (stretch of `width` places, value, count) of a column, operator or method; sources aside."""
        sql = (
            f"SELECT place / ?, {column}, count(*) FROM candidates "  # noqa: S608 - one of two names, see below
            "WHERE run_id = ? AND operator != 'source' GROUP BY 1, 2 ORDER BY 1, 2"
        )
        assert column in {"operator", "method"}
        return [(row[0], row[1], row[2]) for row in self._database.execute(sql, (width, run_id))]

    def genes(self, run_id: str, width: int) -> list[tuple[str, int, float]]:
        """Returns (gene, stretch of `width` places, mean); see `genes_of`."""
        sql = "SELECT gene, place / ?, avg(value) FROM genes WHERE run_id = ? GROUP BY 1, 2 ORDER BY 1, 2"
        return [(row[0], row[1], row[2]) for row in self._database.execute(sql, (width, run_id))]

    def generations(self, run_id: str, *, since: int = 0) -> list[dict[str, Any]]:
        """Returns generation, evaluated, best, mean and diversity of those completed after `since`, in order."""
        sql = (
            "SELECT generation, evaluated, best, mean, diversity FROM generations "
            "WHERE run_id = ? AND changed > ? ORDER BY generation"
        )
        return [dict(row) for row in self._database.execute(sql, (run_id, since))]

    def work(self, run_id: str) -> list[dict[str, Any]]:
        """Returns what each worker did of each kind: jobs, seconds (computing), items, cached, devices, last_at."""
        sql = (
            "SELECT kind, worker, count(*) AS jobs, sum(seconds) AS seconds, sum(items) AS items, "
            "sum(cached) AS cached, group_concat(DISTINCT nullif(device, '')) AS devices, max(ended) AS last_at "
            "FROM work WHERE run_id = ? GROUP BY kind, worker ORDER BY kind, worker"
        )
        return [dict(row) for row in self._database.execute(sql, (run_id,))]

    def latest_work(self, run_id: str, kind: str, *, limit: int = 20) -> list[tuple[float, float]]:
        """Returns (seconds, when it ended) of the latest jobs of a kind that were computed, newest first."""
        sql = (
            "SELECT seconds, ended FROM work WHERE run_id = ? AND kind = ? AND NOT cached "
            "ORDER BY sequence DESC LIMIT ?"
        )
        return [(row[0], row[1]) for row in self._database.execute(sql, (run_id, kind, limit))]

    def notes(self, run_id: str) -> list[str]:
        """Returns what merges and exports had to say."""
        sql = "SELECT note FROM notes WHERE run_id = ? ORDER BY rowid"
        return [row[0] for row in self._database.execute(sql, (run_id,))]

    def exports(self, run_id: str) -> list[dict[str, Any]]:
        """Returns digest, format, uri and bytes of what was exported, in order."""
        sql = "SELECT digest, format, uri, bytes FROM exports WHERE run_id = ? ORDER BY sequence"
        return [dict(row) for row in self._database.execute(sql, (run_id,))]

    def lineage(self, run_id: str, digest: str = "", *, limit: int = 200) -> list[CandidateRow]:
        """Returns a candidate (default: the champion) and its ancestors, nearest first.

        Raises:
            NotFound: no such run or candidate.

        """
        wanted, order = [digest or self.run(run_id).champion], dict[str, CandidateRow]()
        while wanted and len(order) < limit:
            key = wanted.pop(0)
            row = None if key in order else self.candidate(run_id, key)
            if row is not None:
                order[key] = row
                wanted.extend(row.parents)
        if digest and not order:
            raise NotFound(f"run {run_id} has no candidate {digest}; GetLeaderboard lists them")
        return list(order.values())

    def points(self, run_id: str, *, after: int = 0) -> tuple[list[tuple[float, ...]], int]:
        """Returns the task scores on search items that came in after a mark, one tuple a candidate, and the next mark.

        A mark that is higher than any tells that the projection was made anew: all are new then.
        """
        last = self._database.execute("SELECT coalesce(max(rowid), 0) FROM scores").fetchone()[0]
        # The plus keeps the planner to the row numbers: only what is new is read, however long the run.
        sql = (
            "SELECT digest, score FROM scores WHERE +run_id = ? AND rowid > ? AND split != 'holdout' "
            "ORDER BY rowid"
        )  # fmt: skip
        found: dict[str, list[float]] = {}
        for row in self._database.execute(sql, (run_id, after if after <= last else 0)):
            found.setdefault(row["digest"], []).append(row["score"])
        return [tuple(scores) for scores in found.values()], last

    def estimates(self, run_id: str, *, after: int = -1) -> list[tuple[int, float]]:
        """Returns (index, fitness, or the estimate of one that a race has stopped) after a place, in order."""
        sql = (
            "SELECT place, coalesce(fitness, estimate) AS known FROM candidates "
            "WHERE run_id = ? AND place > ? AND known IS NOT NULL ORDER BY place"
        )
        return [(row[0], row[1]) for row in self._database.execute(sql, (run_id, after))]

    def models(self, run_id: str) -> dict[str, dict[str, Any]]:
        """Returns, by reference, what the downloader reported of it."""
        rows = self._database.execute("SELECT * FROM models WHERE run_id = ?", (run_id,))
        return {row["reference"]: dict(row) for row in rows}

    def failures(self, run_id: str, *, since: int = 0, limit: int = 200) -> list[dict[str, Any]]:
        """Returns the latest failures after a sequence number, newest first."""
        sql = "SELECT * FROM failures WHERE run_id = ? AND sequence > ? ORDER BY sequence DESC LIMIT ?"
        return [dict(row) for row in self._database.execute(sql, (run_id, since, limit))]

    def recipe(self, run_id: str, digest: str) -> str:
        """Returns a candidate's recipe as indented JSON, or ""."""
        sql = "SELECT recipe_json FROM candidates WHERE run_id = ? AND digest = ?"
        row = self._database.execute(sql, (run_id, digest)).fetchone()
        try:
            return json.dumps(json.loads(row[0]), indent=2, ensure_ascii=False) if row else ""
        except ValueError:
            return str(row[0])

    def remember_report(self, run_id: str, uri: str, sequence: int) -> None:
        """Notes the report that was drawn when the run's log had come to `sequence`."""
        self._database.execute(
            "UPDATE runs SET report_uri = ?, report_sequence = ? WHERE run_id = ?", (uri, sequence, run_id)
        )
