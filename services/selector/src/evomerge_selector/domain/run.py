"""A run as a state machine: `apply` folds an event in, `next_decision` and `jobs` say what follows.

Nothing here reads a clock, a file or a network, and no decision depends on the order in which results arrive:
candidate k is proposed from the results of candidates 0 … needed(k)−1, taken in proposal order. So the same spec gives
the same proposals and the same champion with one worker or eight, with or without crashes.

Its parts: the ledger of jobs, the leaderboard, the race, the proof, and the proposer, which asks the strategy.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import Enum
from typing import Any, assert_never

from evomerge_common.domain.messages import (
    JOB_KINDS,
    ArtifactExported,
    CandidateEvaluated,
    CandidateFailed,
    CandidateMerged,
    CandidateProposed,
    CandidateRaced,
    CandidateSelected,
    ChampionChanged,
    Control,
    Decision,
    DownloadJob,
    ErrorInfo,
    Event,
    ExportJob,
    GenerationCompleted,
    Job,
    JobPostponed,
    Model,
    ModelReady,
    Result,
    RunCancelled,
    RunContinued,
    RunFailed,
    RunFinished,
    RunPaused,
    RunResumed,
    RunStarted,
    SearchEnded,
    TaskGraded,
    TaskItems,
    TaskScore,
)
from evomerge_common.domain.recipe import Recipe
from evomerge_common.domain.spec import AUTO, RunSpec
from evomerge_common.errors import InvalidInput, SpecError, error_from_info
from evomerge_selector.domain import jobs
from evomerge_selector.domain.candidate import FAILED, Candidate
from evomerge_selector.domain.controls import controls
from evomerge_selector.domain.feasibility import lacking, least_violating, violation
from evomerge_selector.domain.grading import Grading
from evomerge_selector.domain.leaderboard import Leaderboard, is_decided
from evomerge_selector.domain.ledger import Ledger
from evomerge_selector.domain.proof import Proof, Proven, export_part, format_of, search_part
from evomerge_selector.domain.proposer import Proposer
from evomerge_selector.domain.race import Race
from evomerge_selector.domain.strategy import strategy_class


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
        """Tells whether nothing more will happen."""
        return self in (Phase.FINISHED, Phase.CANCELLED, Phase.FAILED)


class Run:
    """One run. Events go in by `apply`; the shell appends what `next_decision` answers and queues what `jobs` lists."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self.phase = Phase.NEW
        self.paused = False
        self.lack: ErrorInfo | None = None  # why it is paused, where no person asked for it: what a machine lacks
        self.spec: RunSpec | None = None
        self.started = RunStarted()
        self.started_at = 0.0  # less the time between an end and what continues the run
        self.dtype = ""  # in which candidates are scored: the spec's, or that of the first score
        self.models: dict[str, Model] = {}
        self.candidates: list[Candidate] = []
        self.failed = 0
        self.error: ErrorInfo | None = None
        self._index: dict[str, int] = {}
        self._pending: deque[Decision] = deque()
        self._adapters = False  # all models are adapters of one base
        self._continued = 0  # how often the run went on with another budget
        self._ended_at = 0.0
        self._models_before: dict[str, Model] = {}  # those of a run that was continued, until they are looked up again
        self._ledger = Ledger()
        self._leaderboard = Leaderboard()
        self._grading = Grading()
        self._race: Race | None = None
        self._proof: Proof | None = None
        self._proven = Proven()
        self._proposer: Proposer | None = None

    # ---- what the shell asks ----

    def jobs(self) -> list[Job]:
        """Lists every job without a result, oldest first; queuing one twice is harmless, its first result wins."""
        return [] if self.paused else list(self._ledger.waiting.values())

    def next_decision(self) -> Decision | None:
        """Answers the decision that follows from what is known, or None when results are missing."""
        if self._pending and self.spec is not None:
            return self._leaderboard.measured(self._pending[0], self.candidates, self.spec.search)
        if self.phase is Phase.RUNNING and not self.paused:
            return self._propose()
        return None

    def end_search(self, reason: str) -> Decision:
        """Ends the search with what has been counted so far: by hand, or because time is up."""
        if not self.has_champion:
            return RunCancelled(reason=f"{reason}; no candidate had been scored yet")
        champion = self.final_champion.proposed
        return SearchEnded(
            champion_digest=champion.recipe_digest,
            reason=reason,
            evaluated=self._leaderboard.seen,
            controls=self._controls(champion),
        )

    def _controls(self, champion: CandidateProposed) -> tuple[Control, ...]:
        assert self.spec is not None
        assert self._proposer is not None
        if not self.spec.controls.count:
            return ()
        sources = [one for one in self.candidates[: self._leaderboard.seen] if one.proposed.operator == "source"]
        best = max(sources, key=lambda one: one.fitness if one.fitness is not None else FAILED)
        return tuple(controls(self.spec, self._proposer.space, champion, best.proposed))

    @property
    def discarded(self) -> list[str]:
        """Lists the URIs of weights that nobody needs any more; the shell takes them off the list and deletes them."""
        return self._ledger.discarded

    @property
    def final_champion(self) -> Candidate:
        """Returns the champion that the search would end with now, by the strategy's rule."""
        assert self.spec is not None
        whole = least_violating([one for one in self.candidates[: self._leaderboard.seen] if one.is_whole])
        return whole[strategy_class(self.spec.search.strategy).champion(whole)]

    @property
    def champion(self) -> Candidate:
        """Returns the fittest candidate counted so far."""
        return self.candidates[self._leaderboard.champion]

    @property
    def has_champion(self) -> bool:
        """Tells whether any candidate has a score."""
        return self._leaderboard.champion >= 0

    @property
    def ended(self) -> SearchEnded | None:
        """Says how the search ended; None while it goes on."""
        return self._proof.ended if self._proof is not None else None

    @property
    def evaluated(self) -> int:
        """Counts the candidates with a score or a failure, in whatever order."""
        return sum(1 for one in self.candidates if one.fitness is not None)

    @property
    def generation(self) -> int:
        """Counts the generations completed."""
        return self._leaderboard.generations

    @property
    def mean_fitness(self) -> float:
        """Returns the mean over the last generation's places; 0 without a score."""
        return self._leaderboard.mean_fitness(self.candidates, self.spec.search) if self.spec else 0.0

    # ---- folding ----

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes over the attributes of another one's state (`snapshot`), and makes anew what follows from them."""
        vars(self).update(state)
        if self.started.spec_json:
            self.spec = RunSpec.from_json(self.started.spec_json)
        if self.spec and self.phase is Phase.RUNNING:
            self._proposer = Proposer(self.spec, self.models, self.started.earlier)

    def apply(self, event: Event) -> None:
        """Folds one event in; what is already known changes nothing."""
        payload = event.payload
        if self.phase.is_terminal and not isinstance(payload, RunContinued):
            if isinstance(payload, CandidateMerged):
                self._ledger.discard([payload.uri])
            return
        if isinstance(payload, Result):
            self._apply_result(payload)
        else:
            self._apply_decision(payload, event.time)
        if self._pending and not isinstance(payload, Result) and is_decided(self._pending[0], payload):
            self._pending.popleft()

    def _apply_decision(self, decision: Decision, time: float) -> None:
        match decision:
            case RunStarted():
                self._start(decision, time)
            case CandidateProposed():
                self._add_candidate(decision)
            case SearchEnded():
                self._begin_proof(decision)
            case RunPaused(lack=lack):
                if not self.paused or self.lack is not None:  # whom a person has paused, no lack of room resumes
                    self.lack = lack if lack.type else None
                self.paused = True
            case RunResumed():
                self.paused, self.lack = False, None
            case RunCancelled(reason=reason):
                self._close(Phase.CANCELLED, ErrorInfo(type="RunCancelled", message=reason))
            case RunFailed(error=error):
                self._close(Phase.FAILED, error)
            case RunFinished():
                self._ended_at = time
                self._close(Phase.FINISHED, None)
            case RunContinued():
                self._continue(decision, time)
            case ChampionChanged() | GenerationCompleted() | CandidateSelected() | CandidateRaced() | TaskGraded():
                pass  # they follow from the results, which have been folded in
            case _:
                assert_never(decision)

    def _apply_result(self, result: Result) -> None:
        match result:
            case ModelReady():
                self._add_model(result)
            case CandidateMerged():
                self._take_weights(result)
            case CandidateEvaluated():
                self._take_scores(result)
            case CandidateFailed():
                self._take_failure(result)
            case JobPostponed():
                self._postpone(result)
            case ArtifactExported():
                self._take_export(result)
            case _:
                assert_never(result)

    # ---- preparing ----

    def _start(self, event: RunStarted, time: float) -> None:
        self.started, self.started_at = event, time
        self.spec = RunSpec.from_json(event.spec_json)
        self.phase = Phase.PREPARING
        known = next((one.dtype for one in event.earlier if one.scores), "")  # what is compared has one dtype
        self.dtype = known if self.spec.scoring_dtype == AUTO else self.spec.scoring_dtype
        if self.spec.search.racing.rungs and event.tasks:
            self._race = Race(self.spec.search.racing, event.tasks, seed=self.spec.seed)
            self._leaderboard.unit = max(1, self._race.size)
        self._ledger.add(*jobs.downloads(self.run_id, self.spec))

    def _add_model(self, event: ModelReady) -> None:
        assert self.spec is not None
        self._ledger.settle(event.job_id)
        model = self.models.setdefault(event.model.reference, event.model)
        if self.phase is not Phase.PREPARING or not all(name in self.models for name in self.spec.sources):
            return
        for name, before in self._models_before.items():
            if before.digest != (model := self.models[name]).digest:
                problem = f"{name} is not what the run began with: {model.digest}, and it was {before.digest}"
                self._fail("InvalidInput", f"{problem}; start another run")
                return
        try:
            self._proposer = Proposer(self.spec, self.models, self.started.earlier)
        except SpecError as error:
            self._fail("SpecError", str(error))
            return
        if not self.candidates:  # a run that goes on has decided
            self._grading = Grading.of(self.started.tasks, self._proposer.deciding)
        bases = {self.models[name].base for name in self.spec.models}
        whole = {self.models[self.spec.base].digest} if self.spec.base else bases
        self._adapters = "" not in bases and len(bases) == 1 and whole == bases
        self.phase = Phase.RUNNING
        if self._continued:
            self._go_on()

    # ---- searching ----

    def _propose(self) -> Decision | None:
        assert self.spec is not None
        assert self._proposer is not None
        index, seen = len(self.candidates), self._leaderboard.seen
        if not self._leaderboard.allows(index, self.spec.search) or self._proposer.needed(index) > seen:
            return None
        proposed = self._proposer.propose(self.candidates, self._index, self._grading)
        if proposed is None and seen == index:
            return self.end_search("exhausted")
        return proposed

    def _add_candidate(self, event: CandidateProposed) -> None:
        self._index[event.recipe_digest] = len(self.candidates)
        self.candidates.append(Candidate(event))
        self._queue_first_job(event)

    def _queue_first_job(self, event: CandidateProposed) -> None:
        if event.operator == "source":
            self._queue_evaluation(event.recipe_digest, "search", self._source_uri(event))
        elif self._adapters and jobs.is_linear(Recipe.from_json(event.recipe_json)):
            # A few low-rank updates of one base: the evaluator makes them faster than it could read a model.
            self._score(event.recipe_digest, "")
        else:
            self._ledger.add(jobs.merge(self.run_id, event, self.models, turn=self._continued))

    def _take_weights(self, event: CandidateMerged) -> None:
        job = self._ledger.settle(event.job_id)
        if job is not None and self.phase is Phase.RUNNING:
            self._ledger.keep(event.uri)
            self._score(event.recipe_digest, event.uri)
            return
        waits = self._race is not None and self._race.waiting.get(event.recipe_digest) == event.uri
        if not waits and not self._ledger.needs(event.recipe_digest, event.uri):
            self._ledger.discard([event.uri])

    def _score(self, digest: str, uri: str) -> None:
        """Sends a candidate that is no source to be scored; in a race, once the order of the items is known."""
        if self._race is None:
            self._queue_evaluation(digest, "search", uri)
        elif self._race.is_open:
            self._enter_race(digest, uri)
        else:
            self._race.waiting[digest] = uri

    def _take_scores(self, event: CandidateEvaluated) -> None:
        job = self._ledger.settle(event.job_id)
        self.dtype = self.dtype or event.dtype
        if event.dtype and event.dtype != self.dtype:  # "auto" was another one where this was scored: once again
            if job is not None:
                self._ledger.add(jobs.in_dtype(job, self.dtype))
            return
        if event.split == "holdout":
            self._prove(event.recipe_digest)
            return
        self._prove(search_part(event.recipe_digest))
        index = self._index.get(event.recipe_digest)
        if index is None or self.candidates[index].fitness is not None:
            return
        if event.partial:
            self._take_rung(event, index, job)
            return
        self._ledger.release(job)
        fitness = event.fitness if math.isfinite(event.fitness) else FAILED
        scores = tuple(one.score for one in event.scores) if fitness > FAILED else ()
        self._take_credit(index, event.scores)
        self.candidates[index] = replace(self.candidates[index], fitness=fitness, scores=scores)
        if self._race is not None and fitness > FAILED:
            self._race.whole(index, event.scores)
        self._count()

    def _take_credit(self, index: int, scores: Sequence[TaskScore]) -> None:
        """Notes the partial credit that a result tells of."""
        if self._asked_credit(index):
            candidate = self.candidates[index]
            self.candidates[index] = replace(candidate, credits=self._grading.credited(candidate, scores))

    def _asked_credit(self, index: int) -> tuple[str, ...]:
        assert self._proposer is not None
        return self._grading.asked(self._proposer.needed(index))

    def _take_failure(self, event: CandidateFailed) -> None:
        job = self._ledger.settle(event.job_id)
        if event.kind == JOB_KINDS[DownloadJob]:
            if self.phase is Phase.PREPARING:
                self._fail(event.error.type, event.error.message)
            return
        if event.kind == JOB_KINDS[ExportJob] or event.split == "holdout":
            self._miss_proof(event, job)
            return
        self._prove(search_part(event.recipe_digest))
        index = self._index.get(event.recipe_digest)
        if index is None or self.candidates[index].fitness is not None:
            return
        self._ledger.release(job)
        if self._race is not None:
            self._race.runners.pop(event.recipe_digest, None)
        self.failed += 1
        self.candidates[index] = replace(self.candidates[index], fitness=FAILED, error=event.error)
        self._count()

    def _postpone(self, event: JobPostponed) -> None:
        """A machine lacks something, which is no candidate's fault: the job stays to be done, and the run pauses."""
        if not self._ledger.postpone(event.job_id, event.attempt) or self.paused:
            return
        if not any(isinstance(one, RunPaused) for one in self._pending):
            self._pending.append(RunPaused(reason=f"{event.kind}: {event.error.message}", lack=event.error))

    # ---- racing ----

    def _enter_race(self, digest: str, uri: str) -> None:
        assert self._race is not None
        items = self._race.start(digest, uri, self._reads(self._index[digest]))
        self._queue_evaluation(digest, "search", uri, items=items)

    def _open_race(self, race: Race) -> None:
        """The sources have their results: the order of the items is known, and who waited for it goes on."""
        opened = race.open()
        for digest, uri in race.waiting.items():
            if opened:
                self._enter_race(digest, uri)
            else:
                self._queue_evaluation(digest, "search", uri)
        race.waiting.clear()
        if not opened:
            self._race = None

    def _take_rung(self, event: CandidateEvaluated, index: int, job: Job | None) -> None:
        race, digest = self._race, event.recipe_digest
        if race is None or self.phase is not Phase.RUNNING:
            return
        if (runner := race.advance(digest, event.rung, event.scores)) is None:
            return
        self._take_credit(index, event.scores)
        verdict = race.judge(digest, index, lambda place: self.candidates[place].proposed.recipe_digest)
        if verdict is None:
            runner.step += 1
            items = race.items(runner)
            self._queue_evaluation(digest, "search", runner.uri, items=items, rung=runner.step)
            return
        self._ledger.release(job)
        del race.runners[digest]
        scores = tuple(one.score for one in verdict.scores)
        self.candidates[index] = replace(self.candidates[index], fitness=verdict.fitness, scores=scores, raced=verdict)
        self._count()

    def _reads(self, index: int) -> int:
        """Counts the candidates, in order of proposal, of whom rival and jury of this one may be some."""
        assert self._proposer is not None
        return max(self._proposer.sources, self._proposer.needed(index))

    # ---- counting results, in proposal order ----

    def _count(self) -> None:
        """Moves on over the results that are in, without a gap, and notes the decisions that they bring."""
        if self.phase is not Phase.RUNNING:
            return
        assert self.spec is not None
        assert self._proposer is not None
        search, board, first = self.spec.search, self._leaderboard, self._proposer.first_generation
        while board.seen < len(self.candidates) and not self._end_is_pending():
            candidate = self.candidates[board.seen]
            if candidate.fitness is None or not self._bounds_are_known():
                return
            candidate = self._judged(candidate)
            champion = board.count(candidate, search)
            if candidate.raced is not None:
                self._pending.append(candidate.raced)
            self._count_in_race(candidate)
            if board.seen == self._proposer.sources and self._is_refused():
                self._fail_for_all("none of the source models can be scored")
                return
            if champion is not None:
                self._pending.append(champion)
            if board.seen == self._grading.after and not self._grading.decided:
                self._grading, graded = self._grading.decide(self.candidates[: board.seen])
                self._pending.extend(graded)
            if board.seen >= first and (board.seen - first) % search.population == 0:
                self._pending.extend(board.complete_generation(self.candidates, search))
            self._stop_if_due()

    def _stop_if_due(self) -> None:
        """Notes the end of the search, where the candidate counted last brings it."""
        assert self.spec is not None
        assert self._proposer is not None
        reason = self._leaderboard.stop_reason(self.spec.search, self._proposer.first_generation)
        if reason and not self.has_champion:
            self._fail_for_all("no candidate could be scored")
        elif reason:
            self._pending.append(self.end_search(reason))

    def _bounds_are_known(self) -> bool:
        """Whether all sources have results, where constraints are counted from their scores."""
        assert self.spec is not None
        if not self.spec.constraints or self._leaderboard.seen:
            return True
        sources = self.candidates[: len(self.spec.sources)]
        if len(sources) < len(self.spec.sources) or any(one.fitness is None for one in sources):
            return False
        reason = "" if self._is_refused() else lacking(self.spec, self._tasks, sources)
        if reason:
            self._fail("WorkFailed", reason)
        return not reason

    def _judged(self, candidate: Candidate) -> Candidate:
        """Notes what a candidate violates, before it is counted."""
        assert self.spec is not None
        if not self.spec.constraints:
            return candidate
        found = violation(candidate, self.spec, self._tasks, self.candidates[: len(self.spec.sources)])
        self.candidates[self._leaderboard.seen] = replace(candidate, violation=found)
        return self.candidates[self._leaderboard.seen]

    @property
    def _tasks(self) -> list[str]:
        return [one.task for one in self.started.tasks]

    def _is_refused(self) -> bool:
        """Whether every source was refused for what it is or is asked: so will be whatever is made of them."""
        assert self._proposer is not None
        errors = [one.error for one in self.candidates[: self._proposer.sources]]
        return all(error and isinstance(error_from_info(error.type, error.message), InvalidInput) for error in errors)

    def _count_in_race(self, candidate: Candidate) -> None:
        race, board, seen = self._race, self._leaderboard, self._leaderboard.seen
        if race is None or self._proposer is None:
            return
        spent = board.spent / board.unit
        is_rival = candidate.is_whole and not candidate.violation  # who violates a constraint may stop nobody
        race.count(seen - 1, candidate.fitness if is_rival else None, self._reads(seen), spent)
        if seen == self._proposer.sources:
            self._open_race(race)

    def _end_is_pending(self) -> bool:
        return any(isinstance(one, SearchEnded | RunFailed) for one in self._pending)

    # ---- the end ----

    def _begin_proof(self, ended: SearchEnded) -> None:
        """The search is over: what is in flight no longer counts; champion and sources are proven on the holdout."""
        assert self.spec is not None
        self._drop_jobs()
        self._pending = deque(one for one in self._pending if one == ended)
        self.phase = Phase.FINISHING
        proof = self._proof = Proof(ended, set())
        if self.started.has_holdout:
            for proposed in (candidate.proposed for candidate in self.candidates):
                wanted = proposed.operator == "source" or proposed.recipe_digest == ended.champion_digest
                if wanted and proposed.recipe_digest not in self._proven.parts:
                    uri = self._source_uri(proposed) if proposed.operator == "source" else ""
                    self._queue_evaluation(proposed.recipe_digest, "holdout", uri)
                    proof.missing.add(proposed.recipe_digest)
        for control in ended.controls:
            self._queue_control(control, proof)
        champion = self.candidates[self._index[ended.champion_digest]].proposed
        for job in jobs.exports(self.run_id, champion, self.models, self.spec, turn=self._continued):
            if self._proven.exports.get(format_of(job)) != ended.champion_digest:
                proof.missing.add(export_part(format_of(job)))
                self._ledger.add(job)
        if not proof.missing:
            self._finish()

    def _take_export(self, event: ArtifactExported) -> None:
        if self._ledger.settle(event.job_id) is not None:
            self._proven.exports[event.format] = event.recipe_digest
        self._prove(export_part(event.format))

    def _queue_control(self, control: Control, proof: Proof) -> None:
        """Has a control scored on both splits, as far as it is no candidate of which that is known or asked."""
        digest = control.recipe_digest
        same = [one for one in self.candidates if one.proposed.recipe_digest == digest]
        known = any(one.is_whole or one.fitness == FAILED for one in same)
        if not known and search_part(digest) not in self._proven.parts:
            self._add_evaluation(control, "search", "")
            proof.missing.add(search_part(digest))
        if self.started.has_holdout and digest not in proof.missing | self._proven.parts:
            self._add_evaluation(control, "holdout", "")
            proof.missing.add(digest)

    def _prove(self, part: str) -> None:
        """Ticks off one part of the proof; with the last, the run is finished."""
        if self.phase is not Phase.FINISHING or self._proof is None or part not in self._proof.missing:
            return
        self._proven.parts.add(part)
        if self._proof.tick_off(part):
            self._finish()

    def _finish(self) -> None:
        assert self._proof is not None
        ended = self._proof.ended
        fitness = self.candidates[self._index[ended.champion_digest]].fitness or 0.0
        self._pending.append(RunFinished(champion_digest=ended.champion_digest, reason=ended.reason, fitness=fitness))

    def _miss_proof(self, event: CandidateFailed, job: Job | None) -> None:
        """A part of the proof cannot be had: without the champion's own the run fails."""
        if event.kind == JOB_KINDS[ExportJob] and (job is None or format_of(job) == "gguf"):
            # Another worker has done it already; or only a copy in another format is missing, which `evomerge export`
            # makes from the champion: the log says so, and it is no reason to lose the run.
            self._prove(export_part(format_of(job)) if job else "")
        elif self.phase is not Phase.FINISHING:
            return
        elif event.kind == JOB_KINDS[ExportJob] or (self.ended and event.recipe_digest == self.ended.champion_digest):
            self._fail(event.error.type, f"the champion's {event.kind} failed: {event.error.message}")
        else:
            self._prove(event.recipe_digest)

    # ---- going on with another budget ----

    def _continue(self, event: RunContinued, time: float) -> None:
        """Takes the new budget; after the end of the search the models are looked up again, and then it goes on."""
        self._continued += 1
        self.started = replace(self.started, spec_json=event.spec_json)
        self.spec = RunSpec.from_json(event.spec_json)
        if self.phase is Phase.RUNNING:
            self._pending = deque(one for one in self._pending if not isinstance(one, SearchEnded))
            self._proposer = Proposer(self.spec, self.models, self.started.earlier)
            self._count_on()
            return
        if self.phase is Phase.FINISHED:
            self.started_at += time - self._ended_at
        if self.phase is not Phase.PREPARING:
            self._ledger.clear()
            self._pending.clear()
            self.phase, self._proof = Phase.PREPARING, None
            self._models_before, self.models = self.models, {}
            self._ledger.add(*jobs.downloads(self.run_id, self.spec, turn=self._continued))

    def _go_on(self) -> None:
        """Searches on where the search had ended; what was under way then begins again."""
        self._models_before = {}
        for index, candidate in enumerate(self.candidates):
            if candidate.fitness is None:
                if self._race is not None:
                    self._race.runners.pop(candidate.proposed.recipe_digest, None)
                self.candidates[index] = replace(candidate, credits=())  # its first rung is answered again
                self._queue_first_job(candidate.proposed)
        self._count_on()

    def _count_on(self) -> None:
        """Asks of what has been counted whether it ends the search by the new budget, and counts what came since."""
        assert self._proposer is not None
        board = self._leaderboard
        board.generations = self._proposer.generation_of(board.seen)  # a budget below the population cut the first one
        if board.seen:
            self._stop_if_due()
        self._count()

    def _fail(self, kind: str, message: str) -> None:
        self._pending.append(RunFailed(error=ErrorInfo(type=kind, message=message)))

    def _fail_for_all(self, what: str) -> None:
        error = next((c.error for c in self.candidates if c.error), None) or ErrorInfo(type="WorkFailed")
        self._fail(error.type, f"{what}; the first said: {error.message}")

    def _close(self, phase: Phase, error: ErrorInfo | None) -> None:
        self._drop_jobs()
        self.phase, self.error, self.lack = phase, error, None
        self._pending.clear()

    def _drop_jobs(self) -> None:
        self._ledger.clear()
        if self._race is not None:
            self._ledger.discard(self._race.waiting.values())
            self._race.waiting.clear()

    # ---- jobs ----

    def _queue_evaluation(
        self, digest: str, split: str, uri: str, *, items: tuple[TaskItems, ...] = (), rung: int = 0
    ) -> None:
        proposed = self.candidates[self._index[digest]].proposed
        graded = self._asked_credit(proposed.index) if split == "search" else ()
        self._add_evaluation(proposed, split, uri, items=items, rung=rung, graded=graded)

    def _add_evaluation(
        self,
        proposed: CandidateProposed | Control,
        split: str,
        uri: str,
        *,
        items: tuple[TaskItems, ...] = (),
        rung: int = 0,
        graded: tuple[str, ...] = (),
    ) -> None:
        assert self.spec is not None
        self._ledger.add(
            jobs.evaluation(
                self.run_id, proposed, self.models, self.started, split=split, uri=uri, threads=self.spec.threads,
                dtype=self.dtype or AUTO, items=items, rung=rung, turn=self._continued,
                graded=graded,
            )
        )  # fmt: skip

    def _source_uri(self, proposed: CandidateProposed) -> str:
        """Finds where the files of a candidate lie that is a source as it is."""
        source = Recipe.from_json(proposed.recipe_json).sources()[0]
        return next(model.uri for model in self.models.values() if model.digest == source.digest)
