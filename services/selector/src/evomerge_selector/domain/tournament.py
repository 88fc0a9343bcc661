"""The run as a state machine: `apply` folds an event in, `next_decision` and `jobs` say what follows.

Nothing here reads a clock, a file or a network, and no decision depends on the order in which results arrive:
candidate k is proposed from the results of candidates 0 … needed(k)−1, taken in proposal order. So the same spec gives
the same proposals and the same champion with one worker or eight, with or without crashes.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from enum import Enum
from typing import Any

from evomerge_common.domain.messages import (
    ArtifactExported,
    CandidateEvaluated,
    CandidateFailed,
    CandidateMerged,
    CandidateProposed,
    CandidateRaced,
    CandidateSelected,
    ChampionChanged,
    Decision,
    ErrorInfo,
    EvaluateJob,
    Event,
    ExportJob,
    GenerationCompleted,
    Job,
    Model,
    ModelReady,
    RunCancelled,
    RunFailed,
    RunFinished,
    RunPaused,
    RunResumed,
    RunStarted,
    SearchEnded,
    TaskItems,
)
from evomerge_common.domain.pareto import knee
from evomerge_common.domain.recipe import Recipe
from evomerge_common.domain.spec import RunSpec
from evomerge_common.domain.suite import Suite
from evomerge_common.errors import SpecError
from evomerge_selector.domain import jobs
from evomerge_selector.domain.candidate import FAILED, Candidate
from evomerge_selector.domain.proposer import Proposer
from evomerge_selector.domain.race import Race
from evomerge_selector.domain.standing import Standing, mean_fitness


def _format(job: Job) -> str:
    return job.payload.format if isinstance(job.payload, ExportJob) else ""


def _export_of(kind: str) -> str:
    """An export as a part of the proof."""
    return "export gguf" if kind == "gguf" else "export"


class Phase(Enum):
    """Where a run stands."""

    NEW = "new"
    PREPARING = "preparing"
    RUNNING = "running"
    FINISHING = "finishing"
    FINISHED = "finished"
    CANCELLED = "cancelled"
    FAILED = "failed"

    @property
    def is_terminal(self) -> bool:
        return self in (Phase.FINISHED, Phase.CANCELLED, Phase.FAILED)


class EvolutionaryTournament:
    """One run. Events go in by `apply`; the shell appends what `next_decision` answers and queues what `jobs` lists."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self.phase = Phase.NEW
        self.paused = False
        self.spec: RunSpec | None = None
        self.started = RunStarted()
        self.started_at = 0.0
        self.models: dict[str, Model] = {}
        self.candidates: list[Candidate] = []
        self.failed = 0
        self.error: ErrorInfo | None = None
        self.ended: SearchEnded | None = None
        self.discarded: list[str] = []  # artifacts that nobody needs any more; the shell takes them
        self._index: dict[str, int] = {}
        self._outstanding: dict[str, Job] = {}
        self._pending: deque[Decision] = deque()
        self._standing = Standing()
        self._proof_missing: set[str] = set()
        self._adapters = False  # all models are adapters of one base
        self._race: Race | None = None
        self._proposer: Proposer | None = None

    # ---- what the shell asks ----

    def jobs(self) -> list[Job]:
        """Every job without a result, oldest first; queuing one twice is harmless, its first result wins."""
        return [] if self.paused else list(self._outstanding.values())

    def next_decision(self) -> Decision | None:
        """The decision that follows from what is known, or None when results are missing."""
        if self._pending:
            return self._pending[0]
        if self.phase is Phase.RUNNING and not self.paused:
            return self._propose()
        return None

    def _propose(self) -> Decision | None:
        assert self.spec is not None
        assert self._proposer is not None
        index, seen = len(self.candidates), self._standing.seen
        if index >= self.spec.search.evaluations or self._proposer.needed(index) > seen:
            return None
        proposed = self._proposer.propose(self.candidates, self._index)
        if proposed is None and seen == index:
            return self.end_search("exhausted")
        return proposed

    def end_search(self, reason: str) -> Decision:
        """Ends the search with what has been counted so far: by hand, or because time is up."""
        if not self.has_champion:
            return RunCancelled(reason=f"{reason}; no candidate had been scored yet")
        digest = self.final_champion.proposed.recipe_digest
        return SearchEnded(champion_digest=digest, reason=reason, evaluated=self._standing.seen)

    @property
    def final_champion(self) -> Candidate:
        """The one that the search would end with now: the fittest, or of several objectives the knee of the front."""
        scored = [one for one in self.candidates[: self._standing.seen] if one.scores and one.is_whole]
        if self.spec and self.spec.search.strategy == "nsga2" and scored:
            return scored[knee([one.scores for one in scored])]
        return self.champion

    @property
    def champion(self) -> Candidate:
        """The best candidate counted so far."""
        return self.candidates[self._standing.champion]

    @property
    def has_champion(self) -> bool:
        """Whether any candidate has a score."""
        return self._standing.champion >= 0

    @property
    def evaluated(self) -> int:
        """Candidates with a score or a failure, in whatever order."""
        return sum(1 for one in self.candidates if one.fitness is not None)

    @property
    def generation(self) -> int:
        """Generations completed."""
        return self._standing.generations

    def mean_fitness(self) -> float:
        """Mean over the scored ones of the last candidates, as many as a generation has."""
        seen, count = self._standing.seen, self.spec.search.population if self.spec else 1
        return mean_fitness(self.candidates[max(0, seen - count) : seen])

    # ---- folding ----

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes over the attributes of another one's state (`snapshot`), and makes anew what follows from them."""
        vars(self).update(state)
        if self.started.spec_json:
            self.spec = RunSpec.from_json(self.started.spec_json, Suite(()))
        if self.spec and self.phase is Phase.RUNNING:
            self._proposer = Proposer(self.spec, self.models)

    def apply(self, event: Event) -> None:
        """Folds one event in; what is already known changes nothing."""
        payload = event.payload
        if self.phase.is_terminal:
            if isinstance(payload, CandidateMerged):
                self.discarded.append(payload.uri)
            return
        match payload:
            case RunStarted():
                self._start(payload, event.time)
            case ModelReady():
                self._model_ready(payload)
            case CandidateProposed():
                self._proposed(payload)
            case CandidateMerged():
                self._merged(payload)
            case CandidateEvaluated():
                self._evaluated(payload)
            case CandidateFailed():
                self._failed(payload)
            case ArtifactExported():
                self._outstanding.pop(payload.job_id, None)
                self._prove(_export_of(payload.format))
            case SearchEnded():
                self._end(payload)
            case RunPaused():
                self.paused = True
            case RunResumed():
                self.paused = False
            case RunCancelled():
                self._close(Phase.CANCELLED, ErrorInfo(type="RunCancelled", message=payload.reason))
            case RunFailed():
                self._close(Phase.FAILED, payload.error)
            case RunFinished():
                self._close(Phase.FINISHED, None)
            case ChampionChanged() | GenerationCompleted() | CandidateSelected() | CandidateRaced():
                pass
        if self._pending and self._pending[0] == payload:
            self._pending.popleft()

    def _start(self, event: RunStarted, time: float) -> None:
        self.started, self.started_at = event, time
        self.spec = RunSpec.from_json(event.spec_json, Suite(()))
        self.phase = Phase.PREPARING
        if self.spec.search.racing.rungs and event.tasks:
            self._race = Race(self.spec.search.racing, event.tasks, seed=self.spec.seed)
        self._queue(*jobs.downloads(self.run_id, self.spec))

    def _model_ready(self, event: ModelReady) -> None:
        assert self.spec is not None
        self._outstanding.pop(event.job_id, None)
        self.models.setdefault(event.model.reference, event.model)
        if self.phase is not Phase.PREPARING or not all(name in self.models for name in self.spec.sources):
            return
        try:
            self._proposer = Proposer(self.spec, self.models)
        except SpecError as error:
            self._fail("SpecError", str(error))
            return
        bases = {self.models[name].base for name in self.spec.models}
        whole = {self.models[self.spec.base].digest} if self.spec.base else bases
        self._adapters = "" not in bases and len(bases) == 1 and whole == bases
        self.phase = Phase.RUNNING

    def _proposed(self, event: CandidateProposed) -> None:
        self._index[event.recipe_digest] = len(self.candidates)
        self.candidates.append(Candidate(event))
        if event.operator == "source":
            self._queue_evaluation(event.recipe_digest, "search", self._source_uri(event))
        elif self._adapters and jobs.is_linear(Recipe.from_json(event.recipe_json)):
            # A few low-rank updates of one base: the evaluator makes them faster than it could read a model.
            self._score(event.recipe_digest, "")
        else:
            self._queue(jobs.merge(self.run_id, event, self.models))

    def _merged(self, event: CandidateMerged) -> None:
        known = self._outstanding.pop(event.job_id, None)
        if known is None or self.phase is not Phase.RUNNING:
            if not self._is_used(event.recipe_digest, event.uri):
                self.discarded.append(event.uri)
            return
        self._score(event.recipe_digest, event.uri)

    def _score(self, digest: str, uri: str) -> None:
        """Sends a candidate that is no source to be scored; in a race, once the order of the items is known."""
        if self._race is None:
            self._queue_evaluation(digest, "search", uri)
        elif self._race.is_open:
            self._run(digest, uri)
        else:
            self._race.waiting[digest] = uri

    def _is_used(self, digest: str, uri: str) -> bool:
        """Whether weights are still to be scored."""
        if self._race is not None and self._race.waiting.get(digest) == uri:
            return True
        wanted = [job.payload for job in self._outstanding.values()]
        return any(isinstance(p, EvaluateJob) and (p.recipe_digest, p.artifact_uri) == (digest, uri) for p in wanted)

    def _evaluated(self, event: CandidateEvaluated) -> None:
        job = self._outstanding.pop(event.job_id, None)
        if event.split == "holdout":
            self._prove(event.recipe_digest)
            return
        index = self._index.get(event.recipe_digest)
        candidate = self.candidates[index] if index is not None else None
        if index is None or candidate is None or candidate.fitness is not None:
            return
        if event.partial:
            self._rung_scored(event, index, job)
            return
        self._release(job)
        fitness = event.fitness if math.isfinite(event.fitness) else FAILED
        scores = tuple(one.score for one in event.scores) if fitness > FAILED else ()
        self.candidates[index] = replace(candidate, fitness=fitness, scores=scores)
        if self._race is not None and fitness > FAILED:
            self._race.whole(index, event.scores)
        self._count()

    # ---- racing ----

    def _run(self, digest: str, uri: str) -> None:
        """Sends a candidate into the race."""
        assert self._race is not None
        items = self._race.start(digest, uri, self._reads(self._index[digest]))
        self._queue_evaluation(digest, "search", uri, items=items)

    def _open_race(self) -> None:
        """The sources have their results: the order of the items is known, and who waited for it goes on."""
        race = self._race
        assert race is not None
        opened = race.open()
        for digest, uri in race.waiting.items():
            if opened:
                self._run(digest, uri)
            else:
                self._queue_evaluation(digest, "search", uri)
        race.waiting.clear()
        if not opened:
            self._race = None

    def _rung_scored(self, event: CandidateEvaluated, index: int, job: Job | None) -> None:
        race, digest = self._race, event.recipe_digest
        if race is None or self.phase is not Phase.RUNNING:
            return
        if (runner := race.advance(digest, event.rung, event.scores)) is None:
            return
        verdict = race.judge(digest, index, lambda place: self.candidates[place].proposed.recipe_digest)
        if verdict is None:
            runner.step += 1
            items = race.items(runner)
            self._queue_evaluation(digest, "search", runner.uri, items=items, rung=runner.step)
            return
        self._release(job)
        del race.runners[digest]
        scores = tuple(one.score for one in verdict.scores)
        self.candidates[index] = replace(self.candidates[index], fitness=verdict.fitness, scores=scores, raced=verdict)
        self._count()

    def _reads(self, index: int) -> int:
        """Of how many candidates, in order of proposal, rival and jury of this one may be some."""
        assert self._proposer is not None
        return max(self._proposer.sources, self._proposer.needed(index))

    def _failed(self, event: CandidateFailed) -> None:
        job = self._outstanding.pop(event.job_id, None)
        if event.kind == "download":
            if self.phase is Phase.PREPARING:
                self._fail(event.error.type, event.error.message)
            return
        if event.kind == "export" and (job is None or _format(job) == "gguf"):
            # Another worker has done it already; or only a copy in another format is missing, which `evomerge export`
            # makes from the champion: that is told, and no reason to lose the run.
            self._prove(_export_of(_format(job)) if job else "")
            return
        if event.kind == "export" or event.split == "holdout":
            if self.phase is Phase.FINISHING:
                if event.kind == "export" or (self.ended and event.recipe_digest == self.ended.champion_digest):
                    self._fail(event.error.type, f"the champion's {event.kind} failed: {event.error.message}")
                else:
                    self._prove(event.recipe_digest)
            return
        index = self._index.get(event.recipe_digest)
        if index is None or self.candidates[index].fitness is not None:
            return
        self._release(job)
        if self._race is not None:
            self._race.runners.pop(event.recipe_digest, None)
        self.failed += 1
        self.candidates[index] = replace(self.candidates[index], fitness=FAILED, error=event.error)
        self._count()

    # ---- counting results, in proposal order ----

    def _count(self) -> None:
        """Moves on over the results that are in, without a gap, and notes the decisions that they bring."""
        if self.phase is not Phase.RUNNING:
            return
        assert self.spec is not None
        assert self._proposer is not None
        search, standing, first = self.spec.search, self._standing, self._proposer.first_generation
        while standing.seen < len(self.candidates) and not self._stop_noted():
            candidate = self.candidates[standing.seen]
            if candidate.fitness is None:
                return
            champion = standing.count(candidate, search)
            if candidate.raced is not None:
                self._pending.append(candidate.raced)
            if self._race is not None:
                fitness = candidate.fitness if candidate.is_whole else None
                self._race.count(standing.seen - 1, fitness, self._reads(standing.seen))
                if standing.seen == self._proposer.sources:
                    self._open_race()
            if champion is not None:
                self._pending.append(champion)
            if standing.seen >= first and (standing.seen - first) % search.population == 0:
                self._pending.extend(standing.complete_generation(self.candidates, search))
            reason = standing.stop_reason(search, first)
            if reason and not self.has_champion:
                error = next((c.error for c in self.candidates if c.error), None) or ErrorInfo(type="WorkFailed")
                self._fail(error.type, f"no candidate could be scored; the first said: {error.message}")
            elif reason:
                self._pending.append(self.end_search(reason))

    def _stop_noted(self) -> bool:
        return any(isinstance(one, SearchEnded | RunFailed) for one in self._pending)

    # ---- the end ----

    def _end(self, event: SearchEnded) -> None:
        """The search is over: what is in flight no longer counts; champion and sources are proven on the holdout."""
        assert self.spec is not None
        self._drop_jobs()
        self._pending = deque(one for one in self._pending if one == event)
        self.ended = event
        self.phase = Phase.FINISHING
        champion = self.candidates[self._index[event.champion_digest]].proposed
        self._proof_missing = set()
        if self.started.has_holdout:
            for candidate in self.candidates:
                proposed = candidate.proposed
                if proposed.operator == "source" or proposed.recipe_digest == event.champion_digest:
                    uri = self._source_uri(proposed) if proposed.operator == "source" else ""
                    self._queue_evaluation(proposed.recipe_digest, "holdout", uri)
                    self._proof_missing.add(proposed.recipe_digest)
        for job in jobs.exports(self.run_id, champion, self.models, self.spec):
            self._proof_missing.add(_export_of(_format(job)))
            self._queue(job)

    def _prove(self, what: str) -> None:
        """Ticks off one part of the proof; with the last, the run is finished."""
        if self.phase is not Phase.FINISHING or what not in self._proof_missing:
            return
        self._proof_missing.discard(what)
        if not self._proof_missing:
            assert self.ended is not None
            champion = self.candidates[self._index[self.ended.champion_digest]]
            self._pending.append(
                RunFinished(
                    champion_digest=self.ended.champion_digest,
                    reason=self.ended.reason,
                    fitness=champion.fitness or 0.0,
                )
            )

    def _fail(self, kind: str, message: str) -> None:
        self._pending.append(RunFailed(error=ErrorInfo(type=kind, message=message)))

    def _close(self, phase: Phase, error: ErrorInfo | None) -> None:
        self._drop_jobs()
        self.phase, self.error = phase, error
        self._pending.clear()

    def _drop_jobs(self) -> None:
        for job in self._outstanding.values():
            self._release(job)
        self._outstanding.clear()
        if self._race is not None:
            self.discarded += self._race.waiting.values()
            self._race.waiting.clear()

    def _release(self, job: Job | None) -> None:
        """Merged weights that a job was to score are needed no more; a source's own files are not ours to delete."""
        if job is not None and isinstance(job.payload, EvaluateJob):
            proposed = self.candidates[self._index[job.payload.recipe_digest]].proposed
            if proposed.operator != "source" and job.payload.artifact_uri:
                self.discarded.append(job.payload.artifact_uri)

    # ---- jobs ----

    def _queue(self, *fresh: Job) -> None:
        self._outstanding.update((job.job_id, job) for job in fresh)

    def _queue_evaluation(
        self, digest: str, split: str, uri: str, *, items: tuple[TaskItems, ...] = (), rung: int = 0
    ) -> None:
        assert self.spec is not None
        proposed = self.candidates[self._index[digest]].proposed
        self._queue(
            jobs.evaluation(
                self.run_id, proposed, self.models, self.started, split=split, uri=uri, threads=self.spec.threads,
                items=items, rung=rung,
            )
        )  # fmt: skip

    def _source_uri(self, proposed: CandidateProposed) -> str:
        """Where the files of a candidate lie that is a source as it is."""
        source = Recipe.from_json(proposed.recipe_json).sources()[0]
        return next(model.uri for model in self.models.values() if model.digest == source.digest)
