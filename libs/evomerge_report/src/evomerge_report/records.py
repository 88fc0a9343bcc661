"""A run's log as records that any tracker takes: one of the run, one a candidate with a result, one of its end.

A pure fold. The same log gives the same records, and a longer log of the same run the same ones and more: whoever has
written the first n of them goes on with the next, so nothing is written twice.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from evomerge_common.domain import messages as m
from evomerge_common.domain.history import Change, change_of, evaluations_of, mean_fitness
from evomerge_common.domain.reference import ModelReference, without_folders
from evomerge_common.errors import RecipeError
from evomerge_common.ports import Recorded
from evomerge_report.history import Candidate, History, apply, short_name

RUN, CANDIDATE, END, RESULT = "run", "candidate", "end", "result"
ENDS = ("finishing", "finished", "cancelled", "failed")
"""Statuses after which the search proposes and ranks no more."""
LONGEST = 500
"""Characters of a parameter: what every tracker takes."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a tracker is given at once: at most one point of each metric at each step.

    Attributes:
        kind: `RUN` (its parameters), `CANDIDATE`, `END` (its status), or `RESULT` (what is proven).
        run_id: of the run.
        step: candidates with a result so far, this one included; of an end and a result the next one.
        time: Unix seconds of what it tells.
        metrics: by name; see docs/trackers.md.
        words: texts by name, parameters among them.

    """

    kind: str
    run_id: str
    step: int
    time: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    words: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """Writes one line of canonical JSON."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Record:
        """Reads what `to_json` wrote."""
        return cls(**json.loads(text))


class Records:
    """The fold. A candidate's record is whole, and handed out, when the next result is there or the search has ended:
    what the selector makes of it (a champion, a generation) stands behind it in the log.
    """

    def __init__(self) -> None:
        self._history = History()
        self._done: set[str] = set()
        self._fitness: deque[tuple[int, float]] = deque()
        self._last = -1
        self._failed = self._stopped = 0
        self._metrics: dict[str, float] = {}
        self._words: dict[str, str] = {}
        self._time = 0.0
        self._pending = False

    def take(self, recorded: Recorded) -> list[Record]:
        """Takes in one event, and hands out what is whole by it; one seen already (by sequence) changes nothing."""
        if recorded.sequence and recorded.sequence <= self._history.sequence:
            return []
        apply(self._history, recorded)
        change = change_of(recorded.event.payload)
        found: list[Record] = []
        result = self._result(change)
        if result is not None or (change.status is not None and change.status.word in ENDS):
            found += self._whole()
        if change.started is not None:
            words = parameters(self._history)
            found.append(self._record(RUN, recorded.event.time, words=words))
        if (budget := change.continued or change.started) is not None:
            self._metrics["run/budget"] = evaluations_of(budget.spec_json)
        if result is not None:
            self._count(*result, change)
            self._time, self._pending = recorded.event.time, True
        if change.generation is not None:
            self._metrics |= {
                "generation": change.generation.generation,
                "diversity": change.generation.diversity,
            }
        if change.improvement is not None:
            best = change.improvement
            self._metrics |= {"best": best.fitness, "best/index": best.index}
            self._words["champion"] = best.recipe_digest
        if isinstance(recorded.event.payload, m.TERMINAL):
            words = {"status": self._history.status, "reason": self._public(self._history.reason)}
            found.append(self._record(END, recorded.event.time, words=words))
        return found

    def result(self, result: Mapping[str, Any]) -> Record | None:
        """Writes what the run has proven, from its result.json (see `result_of`); None where it has no champion."""
        champion = result.get("champion")
        if champion is None:
            return None
        metrics: dict[str, float] = {}
        for split in ("search", "holdout"):
            metrics |= _measured(f"champion/{split}", champion.get(split))
        for source in result.get("sources") or ():
            metrics |= _measured(f"source/{short_name(source['reference'])}/holdout", source.get("holdout"))
        gain = result.get("improvement")
        if gain is not None:
            low, high = gain["interval95"]
            metrics |= {"improvement": gain["holdout_difference"], "improvement/low": low, "improvement/high": high}
        words = {
            "champion": champion["recipe_digest"],
            "method": champion["method"] or "source",
            "operator": champion["operator"],
            "verdict": gain["statement"] if gain else "Nothing is proven: the suite holds no items out.",
        }
        return self._record(RESULT, self._history.last_at, metrics, words)

    def _result(self, change: Change) -> tuple[Candidate, str] | None:
        """The candidate that has its first result by this change, and its state; a control is none."""
        if change.state is None or change.state[1] == "merged" or change.state[0] in self._done:
            return None
        digest, state = change.state
        candidate = self._history.candidates.get(digest)
        return None if candidate is None else (candidate, state)

    def _count(self, candidate: Candidate, state: str, change: Change) -> None:
        self._done.add(candidate.digest)
        self._last = max(self._last, candidate.index)
        metrics: dict[str, float] = {"candidate/index": candidate.index}
        if (scored := change.scored) is not None:
            metrics["candidate/fitness"] = scored.fitness
            metrics |= {f"score/{one.task}": one.score for one in scored.scores}
        elif (raced := change.raced) is not None:
            metrics |= {"candidate/estimate": raced.fitness, "candidate/low": raced.low, "candidate/high": raced.high,
                        "candidate/items": raced.items}  # fmt: skip
        if (result := change.scored or change.raced) is not None:  # of one that was stopped its estimate counts
            self._fitness.append((candidate.index, result.fitness))
        self._failed += state == "failed"
        self._stopped += state == "stopped"
        population = self._history.population
        while self._fitness and self._fitness[0][0] <= self._last - population:
            self._fitness.popleft()
        mean = mean_fitness(self._fitness, last=self._last, population=population)
        metrics |= {} if mean is None else {"mean": mean}
        metrics |= {"run/failed": self._failed, "run/stopped": self._stopped}
        self._metrics |= metrics
        self._words |= {
            "state": state, "operator": candidate.operator, "method": method_of(candidate), "digest": candidate.digest,
            "parents": ",".join(candidate.proposal.parents),
        }  # fmt: skip

    def _whole(self) -> list[Record]:
        if not self._pending:
            return []
        record = self._record(CANDIDATE, self._time, self._metrics, self._words)
        best = {key: self._metrics[key] for key in ("best",) if key in self._metrics}
        self._metrics, self._words, self._pending = best, {}, False  # the best so far stands in every record
        return [record]

    def _record(
        self, kind: str, time: float, metrics: Mapping[str, float] | None = None, words: Mapping[str, str] | None = None
    ) -> Record:
        step = len(self._done) + (kind in {END, RESULT})
        return Record(
            kind=kind, run_id=self._history.run_id, step=step, time=time, metrics=metrics or {}, words=words or {}
        )

    def _public(self, text: str) -> str:
        return without_folders(text, folders_of(self._history.spec))[:LONGEST]


def records_of(events: Iterable[Recorded]) -> Iterator[Record]:
    """Yields the records of a log, as far as they are whole."""
    fold = Records()
    for recorded in events:
        yield from fold.take(recorded)


def method_of(candidate: Candidate) -> str:
    """Returns the merge method, without reading the whole recipe; "source" of a source."""
    if candidate.is_source:
        return "source"
    try:
        return str(json.loads(candidate.proposal.recipe_json)["method"])
    except (ValueError, KeyError, TypeError):
        return ""


def folders_of(spec: Mapping[str, Any]) -> set[str]:
    """Names the folders of this machine that a spec holds."""
    names = set()
    for text in (*(spec.get("models") or ()), spec.get("base") or ""):
        try:
            reference = ModelReference.parse(text)
        except RecipeError:
            continue
        names |= {one for one in (reference.name, reference.adapter) if one}
    return names


def parameters(history: History) -> dict[str, str]:
    """Writes a run's spec as flat parameters, its folders by their last names alone."""
    spec = history.spec
    folders = folders_of(spec)
    flat = {
        "version": history.start.version,
        "suite": history.start.suite_digest,
        **{f"task.{one.task}": f"{one.items} items, weight {one.weight:g}" for one in history.start.tasks},
        **dict(_flat("", spec)),
    }
    return {key: without_folders(value, folders)[:LONGEST] for key, value in flat.items() if value}


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(f"{prefix}.{key}" if prefix else str(key), inner)
    elif isinstance(value, list):
        yield prefix, ", ".join(one if isinstance(one, str) else json.dumps(one) for one in value)
    else:
        yield prefix, value if isinstance(value, str) else json.dumps(value)


def _measured(prefix: str, entry: Mapping[str, Any] | None) -> dict[str, float]:
    if not entry:
        return {}
    found = {f"{prefix}/fitness": entry["fitness"]}
    if bounds := entry.get("interval95"):
        found |= {f"{prefix}/fitness/low": bounds[0], f"{prefix}/fitness/high": bounds[1]}
    return found | {f"{prefix}/{task}": one["score"] for task, one in entry["tasks"].items()}
