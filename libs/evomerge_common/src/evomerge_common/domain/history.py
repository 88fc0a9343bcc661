"""What the log of a run says: each event has its meaning here, for all who ask.

Reports, the reporter's tables and the command fold `Change` after `Change`, and match no events themselves. The
selector folds the events into jobs to be done instead (`evomerge_selector.domain.run`). Both matches end in
`assert_never`: mypy names them when an event is added.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import assert_never

from evomerge_common.domain.messages import (
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
    ErrorInfo,
    GenerationCompleted,
    JobPostponed,
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
    TaskScore,
)
from evomerge_common.domain.spec import SearchSpec


@dataclass(frozen=True, kw_only=True)
class Status:
    """How a run stands.

    Attributes:
        word: running, paused, finishing, finished, cancelled or failed (before any of them: preparing).
        reason: why, for people.
        error: what a machine lacks, or why the run failed.

    """

    word: str
    reason: str = ""
    error: ErrorInfo | None = None


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A candidate has all items of a split; the first such word of a candidate and split counts."""

    digest: str
    split: str
    fitness: float
    scores: tuple[TaskScore, ...]


@dataclass(frozen=True, kw_only=True)
class Change:
    """What one event changes in what is known of a run; what it leaves alone is None, or empty.

    Attributes:
        champion: recipe digest of the best so far, in the end of the champion.
        evaluation: what an evaluator has measured: all of a split, or a rung of a race.
        scored: follows from an evaluation, or from what a race has come to.
        failed: a candidate, which is merged and scored no more.
        failure: a job that will never succeed, of a candidate, a control, a model or the proof.
        controls: null candidates that are scored from now on, beside the champion.

    """

    status: Status | None = None
    started: RunStarted | None = None
    continued: RunContinued | None = None
    model: ModelReady | None = None
    proposed: CandidateProposed | None = None
    merged: CandidateMerged | None = None
    evaluation: CandidateEvaluated | None = None
    scored: Scored | None = None
    raced: CandidateRaced | None = None
    failed: CandidateFailed | None = None
    failure: CandidateFailed | None = None
    improvement: ChampionChanged | None = None
    champion: str = ""
    generation: GenerationCompleted | None = None
    exported: ArtifactExported | None = None
    controls: tuple[Control, ...] = ()
    graded: TaskGraded | None = None

    @property
    def digest(self) -> str:
        """Returns the recipe digest of the candidate that the event is about; empty for an event of a run."""
        about = self.proposed or self.merged or self.evaluation or self.raced or self.failure
        return "" if about is None else about.recipe_digest

    @property
    def state(self) -> tuple[str, str] | None:
        """Returns (recipe digest, state) of a candidate that moves on: merged, evaluated, stopped or failed."""
        if self.merged is not None:
            return self.merged.recipe_digest, "merged"
        if self.scored is not None and self.scored.split != "holdout":
            return self.scored.digest, "evaluated"
        if self.raced is not None and self.raced.stopped:
            return self.raced.recipe_digest, "stopped"
        return None if self.failed is None else (self.failed.recipe_digest, "failed")


def change_of(event: Decision | Result) -> Change:
    """Tells what an event means."""
    match event:
        case RunStarted():
            return Change(started=event)
        case RunPaused(reason=reason, lack=lack):
            return Change(status=Status(word="paused", reason=reason, error=lack if lack.type else None))
        case RunResumed():
            return Change(status=Status(word="running"))
        case RunContinued():
            return Change(status=Status(word="running"), continued=event)
        case SearchEnded(reason=reason, champion_digest=digest, controls=controls):
            return Change(status=Status(word="finishing", reason=reason), champion=digest, controls=controls)
        case RunFinished(reason=reason, champion_digest=digest):
            return Change(status=Status(word="finished", reason=reason), champion=digest)
        case RunCancelled(reason=reason):
            return Change(status=Status(word="cancelled", reason=reason))
        case RunFailed(error=error):
            return Change(status=Status(word="failed", reason=error.message, error=error))
        case CandidateProposed():
            return Change(proposed=event)
        case ChampionChanged(recipe_digest=digest):
            return Change(improvement=event, champion=digest)
        case GenerationCompleted():
            return Change(generation=event)
        case CandidateRaced():
            return _raced(event)
        case TaskGraded():
            return Change(graded=event)
        case CandidateSelected() | JobPostponed():
            return Change()  # the elites follow from the scores; a pause says what is lacking
        case ModelReady():
            return Change(model=event)
        case CandidateMerged():
            return Change(merged=event)
        case CandidateEvaluated():
            return Change(evaluation=event, scored=None if event.partial else _scored(event))
        case CandidateFailed(kind=kind, split=split):
            of_candidate = kind in ("merge", "evaluate") and split != "holdout"
            return Change(failure=event, failed=event if of_candidate else None)
        case ArtifactExported():
            return Change(exported=event)
        case _:
            assert_never(event)


def _scored(event: CandidateEvaluated) -> Scored:
    return Scored(digest=event.recipe_digest, split=event.split, fitness=event.fitness, scores=event.scores)


def _raced(event: CandidateRaced) -> Change:
    """All items: a score as any other; stopped: an estimate, which never stands in a ranking."""
    if event.stopped:
        return Change(raced=event)
    scored = Scored(digest=event.recipe_digest, split="search", fitness=event.fitness, scores=event.scores)
    return Change(raced=event, scored=scored)


def mean_fitness(scored: Iterable[tuple[int, float]], *, last: int, population: int) -> float | None:
    """Computes the mean fitness of a run as it stands: over those with a score among the last generation's places.

    Args:
        scored: (index, fitness) of candidates; of one that a race has stopped its estimate counts.
        last: index of the last candidate that counts, in order of proposal.
        population: how many candidates a generation has.

    Returns:
        None where none of the last `population` candidates has a score.

    """
    found = [fitness for index, fitness in scored if last - population < index <= last]
    return sum(found) / len(found) if found else None


def mean_name(population: int) -> str:
    """Names `mean_fitness` for people: page, charts, report and command say it alike."""
    return f"mean of the last {population}"


def mean_curve(points: Sequence[tuple[int, float]], *, population: int) -> list[float]:
    """Computes `mean_fitness` as it stood after each of the points, which are (index, fitness) by index."""
    curve = []
    for place, (index, fitness) in enumerate(points):
        window = points[max(0, place + 1 - population) : place + 1]  # at most: some places may have no score
        mean = mean_fitness(window, last=index, population=population)
        curve.append(fitness if mean is None else mean)
    return curve


def population_of(spec_json: str) -> int:
    """Reads from a run's spec how many candidates a generation has; of a spec that cannot be read, the default."""
    return _of_search(spec_json, "population", SearchSpec().population)


def evaluations_of(spec_json: str) -> int:
    """Reads a run's budget from its spec; 0 of a spec that cannot be read."""
    return _of_search(spec_json, "evaluations", 0)


def _of_search(spec_json: str, key: str, default: int) -> int:
    try:
        return int(json.loads(spec_json)["search"][key])
    except (ValueError, KeyError, TypeError):
        return default
