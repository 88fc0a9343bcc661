"""How far a run is, folded from its events."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from evomerge_cli.coming import Coming
from evomerge_common.domain import messages as m
from evomerge_common.domain.history import Change, change_of, evaluations_of, mean_fitness, mean_name, population_of
from evomerge_common.domain.racing import cost

PHASES = {"running": "searching", "finishing": "proving on holdout", "cancelled": "stopped", "failed": "stopped"}
"""What a status is called here, where not by its own name."""
STAGES = ("start", "download", "sources", "search", "holdout", "export", "report")
"""What a run goes through; the last is the command's own."""
RATED = 32
"""Results that the rate of candidates is taken of."""


@dataclass
class RunView:
    """How far a run is: the fold of its changes.

    Attributes:
        lack: why the run is paused, when a machine lacks something.
        scored: recipe digests of candidates that were scored, or stopped by a race.
        best: fitness of the champion so far; `best_source`: of the best of the models it is made from.
        curve: the best fitness after each improvement, with the index of its candidate.
        in_flight: candidates that are worked on at once.
        exported: by format.
        coming: the download that the run waits for; whoever watches sets it, no event tells.

    """

    budget: int = 0
    phase: str = "preparing"
    lack: str = ""
    scored: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    champion: str = ""
    best: float | None = None
    best_source: float | None = None
    curve: list[tuple[int, float]] = field(default_factory=list)
    in_flight: int = 1
    end: m.RunFinished | m.RunCancelled | m.RunFailed | None = None
    exported: dict[str, m.ArtifactExported] = field(default_factory=dict)
    export_failures: list[m.CandidateFailed] = field(default_factory=list)
    coming: Coming | None = None
    _population: int = 1
    _proposed: dict[str, m.CandidateProposed] = field(default_factory=dict)
    _controls: set[str] = field(default_factory=set)
    _fitness: dict[int, float] = field(default_factory=dict)
    _last: int = -1
    _size: int = 1
    _stopped: dict[str, int] = field(default_factory=dict)
    _started: bool = False
    _to_prove: int = 0
    _proven: set[str] = field(default_factory=set)
    _times: deque[float] = field(default_factory=lambda: deque(maxlen=RATED))

    @property
    def done(self) -> int:
        """Counts the candidates with a result, good or bad."""
        return len(self.scored | self.failed)

    @property
    def spent(self) -> int:
        """Counts what `done` took from the budget, in evaluations: of one that was stopped early a part of one."""
        parts = sum(cost(items, self._size) for items in self._stopped.values())
        return self.done - len(self._stopped) + parts // self._size

    @property
    def is_active(self) -> bool:
        """Tells whether candidates are scored, or the champion is proven."""
        return self.phase in (PHASES["running"], PHASES["finishing"])

    @property
    def unproven(self) -> int:
        """Counts the models that are still to be scored on the held-out items: champion and sources."""
        return max(0, self._to_prove - len(self._proven))

    @property
    def stage(self) -> str:
        """Names where the run is: one of STAGES, or what has become of it."""
        if self.phase == PHASES["running"]:
            return "sources" if self._sources_wait else "search"
        if self.phase == PHASES["finishing"]:
            return "holdout" if self.unproven else "export"
        if self.phase == "preparing":
            return "download" if self._started else "start"
        return self.phase

    @property
    def rate(self) -> float | None:
        """Computes candidates an hour, of the last results; None before there are enough."""
        since = self._times[-1] - self._times[0] if self._times else 0.0
        return 3600.0 * (len(self._times) - 1) / since if since > 0 and len(self._times) > self.in_flight else None

    @property
    def mean(self) -> float | None:
        """Returns the mean fitness, see `mean_fitness`."""
        places = range(max(0, self._last + 1 - self._population), self._last + 1)
        recent = ((place, self._fitness[place]) for place in places if place in self._fitness)
        return mean_fitness(recent, last=self._last, population=self._population)

    @property
    def mean_name(self) -> str:
        """Names it, as the page and the charts do."""
        return mean_name(self._population)

    @property
    def fitness(self) -> Mapping[int, float]:
        """Returns the fitness by index of candidate; of one that was stopped its estimate."""
        return self._fitness

    @property
    def last(self) -> int:
        """Returns the index of the last candidate with a result; -1 before the first."""
        return self._last

    @property
    def method(self) -> str:
        """Returns the champion's merge method; "source" when it is a source as it was."""
        proposed = self._proposed.get(self.champion)
        return "" if proposed is None else self.method_of(proposed)

    def method_of(self, proposed: m.CandidateProposed) -> str:
        """Returns a candidate's merge method; "source" of a source as it was."""
        return "source" if proposed.operator == "source" else _method(proposed.recipe_json)

    @property
    def ranking(self) -> list[tuple[float, m.CandidateProposed]]:
        """Returns the candidates with a score, estimates of stopped ones left out, best first."""
        known = {one.index: one for one in self._proposed.values() if one.recipe_digest not in self._stopped}
        scored = [(fitness, known[index]) for index, fitness in self._fitness.items() if index in known]
        return sorted(scored, key=lambda pair: (-pair[0], pair[1].index))

    @property
    def _sources_wait(self) -> bool:
        done = self.scored | self.failed
        return any(one.operator == "source" and digest not in done for digest, one in self._proposed.items())

    def apply(self, event: m.Event) -> None:
        """Folds one event in."""
        change = change_of(event.payload)
        if change.started is not None:
            self._start(change.started)
        if change.continued is not None:
            self.budget, self.end = evaluations_of(change.continued.spec_json), None
        if change.status is not None:
            self.phase = PHASES.get(change.status.word, change.status.word)
            self.lack = change.status.reason if self.phase == "paused" and change.status.error else ""
        if change.proposed is not None:
            self._proposed[change.proposed.recipe_digest] = change.proposed
            self.phase = "searching" if self.phase == "preparing" else self.phase
        self._controls |= {one.recipe_digest for one in change.controls if one.recipe_digest not in self._proposed}
        if change.improvement is not None:
            self.champion, self.best = change.improvement.recipe_digest, change.improvement.fitness
            self.curve.append(
                (self._proposed[self.champion].index if self.champion in self._proposed else 0, self.best)
            )
        if change.exported is not None:
            self.exported[change.exported.format] = change.exported
        if change.failure is not None and change.failure.kind == m.JOB_KINDS[m.ExportJob]:
            self.export_failures.append(change.failure)
        if isinstance(event.payload, m.TERMINAL):
            self.end = event.payload
        self._count(change, event.time)

    def _start(self, started: m.RunStarted) -> None:
        self._started = True
        self.budget = evaluations_of(started.spec_json)
        self._population = population_of(started.spec_json)
        self._size = max(1, sum(one.items for one in started.tasks))
        try:
            spec = json.loads(started.spec_json)
            generational = spec["search"]["schedule"] == "generational"
            self.in_flight = max(1, int(spec["search"]["population" if generational else "in_flight"]))
            sources = {*spec["models"], *filter(None, [spec.get("base")])}
        except (ValueError, KeyError, TypeError):
            sources = set()
        self._to_prove = len(sources) + 1 if started.has_holdout else 0

    def _count(self, change: Change, time: float) -> None:
        if change.scored is not None and change.scored.split == "holdout":
            self._proven.add(change.scored.digest)
        if change.state is None or change.merged is not None:
            return
        digest, state = change.state
        if digest in self._controls:  # no part of the budget
            return
        (self.failed if state == "failed" else self.scored).add(digest)
        if change.raced is not None and change.raced.stopped:
            self._stopped.setdefault(digest, change.raced.items)
        if (proposed := self._proposed.get(digest)) is not None:
            self._last = max(self._last, proposed.index)
            if proposed.operator != "source":  # which need no merge, and wait for the first start of everything
                self._times.append(time)
            if (result := change.scored or change.raced) is not None:  # of one that was stopped: its estimate
                self._fitness.setdefault(proposed.index, result.fitness)
                if proposed.operator == "source":
                    self.best_source = max(result.fitness, self.best_source or result.fitness)


def _method(recipe_json: str) -> str:
    try:
        return str(json.loads(recipe_json)["method"])
    except (ValueError, KeyError, TypeError):
        return ""
