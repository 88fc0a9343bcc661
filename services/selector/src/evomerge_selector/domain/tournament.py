"""The run as a state machine: `apply` folds an event in, `next_decision` and `jobs` say what follows.

Nothing here reads a clock, a file or a network, and no decision depends on the order in which results arrive:
candidate k is proposed from the results of candidates 0 … needed(k)−1, taken in proposal order. So the same spec gives
the same proposals and the same champion with one worker or eight, with or without crashes.
"""

from __future__ import annotations

import hashlib
import math
from bisect import insort
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from itertools import combinations
from random import Random
from typing import Any

from evomerge_common.domain.genome import Genome, SearchSpace, builds_differ
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
    DownloadJob,
    ErrorInfo,
    EvaluateJob,
    Event,
    ExportJob,
    GenerationCompleted,
    Job,
    JobPayload,
    MergeJob,
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
from evomerge_common.domain.pareto import Point, knee
from evomerge_common.domain.recipe import CrossDomain, ModelReference, Recipe
from evomerge_common.domain.spec import RunSpec
from evomerge_common.domain.suite import Suite
from evomerge_common.errors import SpecError
from evomerge_selector.domain.operators import mutate, random_genome
from evomerge_selector.domain.population_zero import population_zero
from evomerge_selector.domain.race import Race, Runner
from evomerge_selector.domain.strategies import Individual, Proposal, Strategy
from evomerge_selector.domain.strategy_factory import make_strategy

FAILED = float("-inf")
"""Fitness of a candidate that could not be merged or scored: the worst there is."""


_LINEAR = ("linear", "task_arithmetic", "passthrough")


def _is_linear(recipe: Recipe) -> bool:
    """Whether each tensor is a weighted sum of the sources'."""
    nested = (item for item in recipe.inputs() if isinstance(item, Recipe))
    return recipe.method in _LINEAR and all(_is_linear(item) for item in nested)


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


@dataclass(frozen=True)
class Candidate:
    """A proposal with what became of it. Of one that was stopped, fitness and scores are estimates."""

    proposed: CandidateProposed
    fitness: float | None = None
    scores: Point = ()
    error: ErrorInfo | None = None
    raced: CandidateRaced | None = None

    @property
    def is_whole(self) -> bool:
        """Whether all items were scored: only then may it be compared with others."""
        return self.fitness is not None and self.fitness > FAILED and not (self.raced and self.raced.stopped)

    @property
    def genome(self) -> Genome:
        """Read when asked for: a fold of a long log needs only the last ones."""
        return Genome.from_json(self.proposed.genome_json)


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
        self._seen = 0  # candidates 0 … seen−1 have results and were counted, in order
        self._told = 0
        self._asked = 0
        self._champion = -1
        self._elites: list[tuple[float, int]] = []  # (−fitness, index), best first
        self._last_improvement = 0
        self._generations = 0
        self._proof_missing: set[str] = set()
        self._adapters = False  # all models are adapters of one base
        self._space: SearchSpace | None = None
        self._strategy: Strategy | None = None
        self._zero: list[tuple[str, Genome]] = []
        self._sources = 0  # the first so many candidates
        self._race: Race | None = None

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

    def end_search(self, reason: str) -> Decision:
        """Ends the search with what has been counted so far: by hand, or because time is up."""
        if self._champion < 0:
            return RunCancelled(reason=f"{reason}; no candidate had been scored yet")
        digest = self.final_champion.proposed.recipe_digest
        return SearchEnded(champion_digest=digest, reason=reason, evaluated=self._seen)

    @property
    def final_champion(self) -> Candidate:
        """The one that the search would end with now: the fittest, or of several objectives the knee of the front."""
        scored = [one for one in self.candidates[: self._seen] if one.scores and one.is_whole]
        if self.spec and self.spec.search.strategy == "nsga2" and scored:
            return scored[knee([one.scores for one in scored])]
        return self.champion

    @property
    def champion(self) -> Candidate:
        """The best candidate counted so far."""
        return self.candidates[self._champion]

    @property
    def has_champion(self) -> bool:
        """Whether any candidate has a score."""
        return self._champion >= 0

    @property
    def evaluated(self) -> int:
        """Candidates with a score or a failure, in whatever order."""
        return sum(1 for one in self.candidates if one.fitness is not None)

    @property
    def generation(self) -> int:
        """Generations completed."""
        return self._generations

    def mean_fitness(self) -> float:
        """Mean over the scored candidates of the last generation's length."""
        scores = [c.fitness for c in self.candidates[: self._seen] if c.fitness is not None and c.fitness > FAILED]
        recent = scores[-(self.spec.search.population if self.spec else 1) :]
        return sum(recent) / len(recent) if recent else 0.0

    # ---- folding ----

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes over the attributes of another one's state (`snapshot`), and makes anew what follows from them."""
        vars(self).update(state)
        if self.started.spec_json:
            self.spec = RunSpec.from_json(self.started.spec_json, Suite(()))
        if self.phase is Phase.RUNNING:
            self._open_search()
            vars(self).update(state)

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
        for reference in self.spec.sources:
            base = self.spec.base if reference != self.spec.base else ""
            self._queue("download", reference, DownloadJob(reference=reference, base=base))

    def _model_ready(self, event: ModelReady) -> None:
        assert self.spec is not None
        self._outstanding.pop(event.job_id, None)
        self.models.setdefault(event.model.reference, event.model)
        if self.phase is not Phase.PREPARING or not all(name in self.models for name in self.spec.sources):
            return
        self._open_search()

    def _open_search(self) -> None:
        assert self.spec is not None
        references = {
            name: replace(ModelReference.parse(name), digest=self.models[name].digest) for name in self.models
        }
        search = self.spec.search
        cross_domain = self.spec.cross_domain
        known = [self.models[name] for name in self.spec.sources]
        if cross_domain is not None or builds_differ((m.architecture, m.num_layers, m.parameters) for m in known):
            cross_domain = replace(cross_domain or CrossDomain(), target=references[self.spec.target])
        self._space = SearchSpace(
            models=tuple(references[name] for name in self.spec.models),
            base=references[self.spec.base] if self.spec.base else None,
            num_layers=max(1, self.models[self.spec.target].num_layers),
            groups=search.layer_groups,
            methods=search.methods,
            dtype=self.spec.dtype,
            genes=search.genes,
            cross_domain=cross_domain,
        )
        try:
            self._strategy = make_strategy(self._space, search, seed=self.spec.seed)
        except SpecError as error:
            self._fail("SpecError", str(error))
            return
        bases = {self.models[name].base for name in self.spec.models}
        whole = {self.models[self.spec.base].digest} if self.spec.base else bases
        self._adapters = "" not in bases and len(bases) == 1 and whole == bases
        count = len(self.spec.models)
        sources = [
            ("source", Genome("linear", weights=(tuple(float(i == j) for j in range(count)),) * self._space.rows))
            for i in range(count)
        ]
        if len(self.spec.sources) > count:  # the base, of which no model is a part
            sources.append(("source", self._space.uniform("linear", weight=0.0)))
        self._zero = (sources + population_zero(self._space, self.spec.classic))[: search.evaluations]
        self._sources = sum(operator == "source" for operator, _ in self._zero)
        self.phase = Phase.RUNNING

    def _proposed(self, event: CandidateProposed) -> None:
        self._index[event.recipe_digest] = len(self.candidates)
        self.candidates.append(Candidate(event))
        if event.operator == "source":
            self._queue_evaluation(event.recipe_digest, "search", self._source_uri(event))
        elif self._adapters and _is_linear(Recipe.from_json(event.recipe_json)):
            # A few low-rank updates of one base: the evaluator makes them faster than it could read a model.
            self._score(event.recipe_digest, "")
        else:
            self._queue(
                "merge",
                event.recipe_digest,
                MergeJob(
                    recipe_json=event.recipe_json,
                    recipe_digest=event.recipe_digest,
                    sources=tuple(self.models.values()),
                ),
            )

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
        jobs = [job.payload for job in self._outstanding.values()]
        return any(isinstance(p, EvaluateJob) and (p.recipe_digest, p.artifact_uri) == (digest, uri) for p in jobs)

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
        self._race.runners[digest] = Runner(uri)
        self._queue_evaluation(digest, "search", uri, items=self._race.items(0))

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
        if race is None or (runner := race.advance(digest, event.rung, event.scores)) is None:
            return
        reads = max(self._sources, self._needed(index))
        verdict = race.judge(digest, index, reads, lambda place: self.candidates[place].proposed.recipe_digest)
        if verdict is None:
            runner.step += 1
            items = race.items(runner.step)
            self._queue_evaluation(digest, "search", runner.uri, items=items, rung=runner.step)
            return
        self._release(job)
        del race.runners[digest]
        scores = tuple(one.score for one in verdict.scores)
        self.candidates[index] = replace(self.candidates[index], fitness=verdict.fitness, scores=scores, raced=verdict)
        self._count()

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
        search = self.spec.search
        while self._seen < len(self.candidates) and not self._stop_noted():
            candidate = self.candidates[self._seen]
            if candidate.fitness is None:
                return
            index = self._seen
            self._seen += 1
            if candidate.raced is not None:
                self._pending.append(candidate.raced)
            if self._race is not None:
                reads = max(self._sources, self._needed(self._seen))
                self._race.count(index, candidate.fitness if candidate.is_whole else None, reads)
                if self._seen == self._sources:
                    self._open_race()
            if candidate.is_whole:
                insort(self._elites, (-candidate.fitness, index))
                del self._elites[search.elites :]
            if candidate.is_whole and (self._champion < 0 or candidate.fitness > (self.champion.fitness or 0.0)):
                # Only a step of min_delta resets patience, but any better candidate is the champion.
                before = self.champion.fitness or 0.0 if self._champion >= 0 else FAILED
                if candidate.fitness > before + search.min_delta:
                    self._last_improvement = index
                self._champion = index
                digest = candidate.proposed.recipe_digest
                self._pending.append(ChampionChanged(recipe_digest=digest, fitness=candidate.fitness, index=index))
            if (
                self._seen - self._first_generation()
            ) % search.population == 0 and self._seen >= self._first_generation():
                self._complete_generation()
            reason = self._stop_reason(index)
            if reason and self._champion < 0:
                first = next((c.error for c in self.candidates if c.error), None) or ErrorInfo(type="WorkFailed")
                self._fail(first.type, f"no candidate could be scored; the first said: {first.message}")
            elif reason:
                self._pending.append(self.end_search(reason))

    def _stop_noted(self) -> bool:
        return any(isinstance(one, SearchEnded | RunFailed) for one in self._pending)

    def _stop_reason(self, index: int) -> str:
        assert self.spec is not None
        search = self.spec.search
        if search.target is not None and self._champion >= 0 and (self.champion.fitness or 0.0) >= search.target:
            return "target"
        if self._seen >= search.evaluations:
            return "budget"
        if search.patience and index >= self._first_generation() and index - self._last_improvement >= search.patience:
            return "patience"
        return ""

    def _complete_generation(self) -> None:
        assert self.spec is not None
        members = self.candidates[max(0, self._seen - self.spec.search.population) : self._seen]
        scores = [one.fitness for one in members if one.fitness is not None and one.fitness > FAILED]
        pairs = list(combinations([one.genome for one in members[:24]], 2))
        self._pending.append(
            GenerationCompleted(
                generation=self._generations,
                evaluated=self._seen,
                best_fitness=(self.champion.fitness or 0.0) if self._champion >= 0 else 0.0,
                mean_fitness=sum(scores) / len(scores) if scores else 0.0,
                diversity=sum(a.distance(b) for a, b in pairs) / len(pairs) if pairs else 0.0,
            )
        )
        if self._elites:
            digests = tuple(self.candidates[index].proposed.recipe_digest for _, index in self._elites)
            self._pending.append(CandidateSelected(generation=self._generations, recipe_digests=digests))
        self._generations += 1

    # ---- proposing ----

    def _first_generation(self) -> int:
        assert self.spec is not None
        return min(self.spec.search.evaluations, max(self.spec.search.population, len(self._zero)))

    def _generation_of(self, index: int) -> int:
        assert self.spec is not None
        first = self._first_generation()
        return 0 if index < first else 1 + (index - first) // self.spec.search.population

    def _needed(self, index: int) -> int:
        """How many results, in proposal order, the proposal of candidate `index` reads."""
        assert self.spec is not None
        search = self.spec.search
        if search.schedule == "steady":
            return max(0, index - search.in_flight + 1)
        generation = self._generation_of(index)
        return 0 if generation == 0 else self._first_generation() + (generation - 1) * search.population

    def _propose(self) -> Decision | None:
        assert self.spec is not None
        index = len(self.candidates)
        needed = self._needed(index)
        if index >= self.spec.search.evaluations or needed > self._seen:
            return None
        assert self._strategy is not None
        assert self._space is not None
        if self._strategy.is_stateful:  # after a fold of the log, it is asked again what it was asked before
            for past in range(max(self._asked, self._first_generation()), index):
                self._tell(self._needed(past))
                self._strategy.ask(past, Random(f"{self.spec.seed}:{past}"))
        self._asked = index + 1
        self._tell(needed)
        rng = Random(f"{self.spec.seed}:{index}")
        proposal, recipe = self._novel(index, rng)
        if recipe is None:
            return self.end_search("exhausted") if self._seen == index else None
        return CandidateProposed(
            index=index,
            recipe_digest=recipe.digest,
            recipe_json=recipe.to_json(),
            genome_json=proposal.genome.to_json(),
            operator=proposal.operator,
            parents=proposal.parents,
            generation=self._generation_of(index),
        )

    def _tell(self, count: int) -> None:
        """Tells the strategy the results of the first `count` candidates, as far as it does not know them."""
        assert self._strategy is not None
        for one in self.candidates[self._told : count]:
            fitness = FAILED if one.fitness is None else one.fitness
            individual = Individual(one.proposed.recipe_digest, one.genome, fitness, one.proposed.index, one.scores)
            self._strategy.tell(individual)
        self._told = max(self._told, count)

    def _novel(self, index: int, rng: Random) -> tuple[Proposal, Recipe | None]:
        """A proposal whose recipe the run has not had yet; None when the space seems to hold no more."""
        assert self._strategy is not None
        assert self._space is not None
        if index < len(self._zero):
            operator, genome = self._zero[index]
            proposal = Proposal(genome, operator)
        elif index < self._first_generation():
            proposal = Proposal(random_genome(self._space, rng), "random")
        else:
            proposal = self._strategy.ask(index, rng)
        for attempt in range(40):
            recipe = self._recipe(proposal)
            if recipe.digest not in self._index:
                return proposal, recipe
            if attempt < 10 and not (proposal.genome.path and attempt > 4):
                proposal = Proposal(mutate(proposal.genome, self._space, rng), "mutation", proposal.parents)
            else:
                proposal = Proposal(random_genome(self._space, rng), "random")
        return proposal, None

    def _recipe(self, proposal: Proposal) -> Recipe:
        assert self._space is not None
        if proposal.operator != "source":
            recipe = self._space.recipe(proposal.genome)
            preserve = self.spec.preserve_instruction if self.spec else None
            return recipe if preserve is None else replace(recipe, preserve_instruction=preserve)
        row = proposal.genome.weights[0]
        if 1.0 in row:
            return self._space.source(self._space.models[row.index(1.0)])
        assert self._space.base is not None
        return self._space.source(self._space.base)

    # ---- the end ----

    def _end(self, event: SearchEnded) -> None:
        """The search is over: what is in flight no longer counts; champion and sources are proven on the holdout."""
        assert self.spec is not None
        self._drop_jobs()
        self._pending = deque(one for one in self._pending if one == event)
        self.ended = event
        self.phase = Phase.FINISHING
        champion = self.candidates[self._index[event.champion_digest]].proposed
        self._proof_missing = {"export"}
        if self.started.has_holdout:
            for candidate in self.candidates:
                proposed = candidate.proposed
                if proposed.operator == "source" or proposed.recipe_digest == event.champion_digest:
                    uri = self._source_uri(proposed) if proposed.operator == "source" else ""
                    self._queue_evaluation(proposed.recipe_digest, "holdout", uri)
                    self._proof_missing.add(proposed.recipe_digest)
        recipe = Recipe.from_json(champion.recipe_json)
        if self.spec.export_dtype:
            recipe = replace(recipe, out_dtype=self.spec.export_dtype)
        export = ExportJob(
            recipe_json=recipe.to_json(),
            recipe_digest=event.champion_digest,
            sources=tuple(self.models.values()),
            format="hf",
            destination="model",
        )
        self._queue("export", event.champion_digest, export)
        if self.spec.gguf_type:
            self._proof_missing.add(_export_of("gguf"))
            gguf = replace(export, format="gguf", destination="gguf", gguf_type=self.spec.gguf_type)
            self._queue("export", f"{event.champion_digest}:gguf", gguf)

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

    def _job_id(self, kind: str, key: str) -> str:
        """The same work of the same run has the same id, whoever asks for it and how often."""
        return f"{kind}-{hashlib.sha256(key.encode()).hexdigest()[:24]}-{self.run_id}"

    def _queue(self, kind: str, key: str, payload: JobPayload) -> None:
        job = Job(job_id=self._job_id(kind, key), run_id=self.run_id, payload=payload)
        self._outstanding[job.job_id] = job

    def _queue_evaluation(
        self, digest: str, split: str, uri: str, *, items: tuple[TaskItems, ...] = (), rung: int = 0
    ) -> None:
        assert self.spec is not None
        recipe_json = self.candidates[self._index[digest]].proposed.recipe_json
        self._queue(
            f"evaluate-{split}-{rung}" if items else f"evaluate-{split}",
            digest,
            EvaluateJob(
                recipe_json=recipe_json,
                recipe_digest=digest,
                sources=tuple(self.models.values()),
                artifact_uri=uri,
                suite_uri=self.started.suite_uri,
                suite_digest=self.started.suite_digest,
                split=split,
                threads=self.spec.threads,
                items=items,
                rung=rung,
            ),
        )

    def _source_uri(self, proposed: CandidateProposed) -> str:
        """Where the files of a candidate lie that is a source as it is."""
        source = Recipe.from_json(proposed.recipe_json).sources()[0]
        return next(model.uri for model in self.models.values() if model.digest == source.digest)
