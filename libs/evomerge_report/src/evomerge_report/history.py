"""A run as its log tells it: one fold over the events."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from evomerge_common.domain import messages as m
from evomerge_common.domain.history import Change, change_of, population_of
from evomerge_common.domain.recipe import Recipe
from evomerge_common.domain.reference import ModelReference
from evomerge_common.errors import InvalidInput, RecipeError
from evomerge_common.ports import Recorded


@dataclass
class Candidate:
    """A proposed recipe with what became of it.

    `results` holds the first evaluation of each split, once it has all items; `parts` the rungs of a race, and `raced`
    what came of it. A candidate that was stopped has an estimate there, and neither result nor fitness.
    """

    proposal: m.CandidateProposed
    results: dict[str, m.CandidateEvaluated] = field(default_factory=dict)
    parts: dict[int, m.CandidateEvaluated] = field(default_factory=dict)
    raced: m.CandidateRaced | None = None
    failure: m.CandidateFailed | None = None

    @property
    def digest(self) -> str:
        """Returns its recipe's digest."""
        return self.proposal.recipe_digest

    @property
    def index(self) -> int:
        """Returns its place in the sequence of proposals, from 0."""
        return self.proposal.index

    @property
    def operator(self) -> str:
        """Says how it was proposed: source, classic, crossover …"""
        return self.proposal.operator

    @property
    def is_source(self) -> bool:
        """Tells whether it is one of the models that the run was given."""
        return self.operator == "source"

    @property
    def fitness(self) -> float | None:
        """Returns the fitness on all items of the search split; None without a result, or for a stopped candidate."""
        result = self.results.get("search") or self.results.get("all")
        return None if result is None else result.fitness

    @cached_property
    def recipe(self) -> Recipe | None:
        """Reads the recipe; None where its text cannot be read."""
        try:
            return Recipe.from_json(self.proposal.recipe_json)
        except RecipeError:
            return None

    @property
    def method(self) -> str:
        """Returns the merge method; empty for a source."""
        recipe = self.recipe
        return "" if recipe is None or self.is_source else recipe.method

    def scores(self, split: str) -> dict[str, float]:
        """Returns the score of each task of a split; empty while there is no result."""
        result = self.results.get(split)
        return {} if result is None else {score.task: score.score for score in result.scores}


@dataclass
class History:
    """Everything about one run that its log has told so far.

    Attributes:
        status: preparing, running, paused, finishing, finished, cancelled or failed.
        candidates: by recipe digest, in order of proposal.
        controls: null candidates by recipe digest, `operator` being their kind; one that was a candidate, too, has that
            one's results. They stand in no list of candidates.
        models: by reference as written.
        started_at: Unix seconds, less what lay between an end and what continued the run.

    """

    run_id: str = ""
    status: str = "preparing"
    reason: str = ""
    error: m.ErrorInfo | None = None
    start: m.RunStarted = field(default_factory=m.RunStarted)
    candidates: dict[str, Candidate] = field(default_factory=dict)
    controls: dict[str, Candidate] = field(default_factory=dict)
    models: dict[str, m.Model] = field(default_factory=dict)
    generations: list[m.GenerationCompleted] = field(default_factory=list)
    champions: list[m.ChampionChanged] = field(default_factory=list)
    failures: list[m.CandidateFailed] = field(default_factory=list)
    exports: list[m.ArtifactExported] = field(default_factory=list)
    champion_digest: str = ""
    started_at: float = 0.0
    last_at: float = 0.0
    sequence: int = 0
    cached: int = 0
    items_scored: int = 0
    download_seconds: float = 0.0
    merge_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    devices: list[str] = field(default_factory=list)
    dtype: str = ""
    notes: list[str] = field(default_factory=list)
    graded: list[m.TaskGraded] = field(default_factory=list)

    @property
    def spec(self) -> dict[str, Any]:
        """Returns the run spec with its defaults filled in."""
        data = json.loads(self.start.spec_json or "{}")
        return data if isinstance(data, dict) else {}

    @property
    def population(self) -> int:
        """Counts the candidates of a generation, over which the mean fitness is taken."""
        return population_of(self.start.spec_json)

    @property
    def champion(self) -> Candidate | None:
        """Returns the best so far, or at the end the champion."""
        return self.candidates.get(self.champion_digest)

    @property
    def sources(self) -> list[Candidate]:
        """Returns the given models, in order of proposal."""
        return [candidate for candidate in self.candidates.values() if candidate.is_source]

    @property
    def scored(self) -> list[Candidate]:
        """Returns the candidates with a score on the search split, in order of proposal."""
        return [candidate for candidate in self.candidates.values() if candidate.fitness is not None]

    @property
    def stopped(self) -> list[Candidate]:
        """Returns the candidates that a race has stopped, in order of proposal."""
        return [candidate for candidate in self.candidates.values() if candidate.raced and candidate.raced.stopped]

    @property
    def ranked(self) -> list[Candidate]:
        """Returns the same, best first; of equals the earlier."""
        return sorted(self.scored, key=lambda candidate: (-(candidate.fitness or 0.0), candidate.index))

    def model_of(self, candidate: Candidate) -> m.Model:
        """Returns the model that a source is, as the downloader reported it."""
        recipe = candidate.recipe
        sources = recipe.sources() if recipe is not None else []
        reference = sources[0] if sources else ModelReference("?")
        known = self.models.get(str(reference))
        return known or m.Model(reference=str(reference), digest=reference.digest)

    def notes_of(self, digest: str = "") -> list[str]:
        """Lists what merges had to say, or the one that made a champion's weights; without users' folders."""
        found = [note for one in self.exports if one.recipe_digest == digest for note in one.notes]
        if not digest:
            found = [*self.notes, *(note for one in self.exports for note in one.notes)]
        for reference in self.models:
            found = [note.replace(reference, short_name(reference)) for note in found]
        return list(dict.fromkeys(found))

    def name_of(self, candidate: Candidate) -> str:
        """Returns a short name for tables and charts."""
        if candidate.is_source:
            return short_name(self.model_of(candidate).reference)
        return f"#{candidate.index} {candidate.method}".strip()


def short_name(reference: str) -> str:
    """Returns the last part of a hub id or folder, which is how people call a model."""
    return reference.rstrip("/").rpartition("/")[2] or reference


def history_of(events: Iterable[Recorded]) -> History:
    """Folds one run's events.

    Raises:
        InvalidInput: no events, or events of several runs.

    """
    history = History()
    for recorded in events:
        if history.run_id and recorded.event.run_id != history.run_id:
            raise InvalidInput(f"events of two runs: {history.run_id} and {recorded.event.run_id}")
        apply(history, recorded)
    if not history.run_id:
        raise InvalidInput("no events: nothing to report; name a run that has started")
    return history


def apply(history: History, recorded: Recorded) -> None:
    """Takes in one event; one seen already (by sequence) changes nothing."""
    if recorded.sequence and recorded.sequence <= history.sequence:
        return
    event = recorded.event
    history.run_id = event.run_id
    history.sequence = recorded.sequence
    change = change_of(event.payload)
    if change.continued is not None:
        history.start = replace(history.start, spec_json=change.continued.spec_json)
        if history.status == "finished":
            history.started_at += event.time - history.last_at  # nobody worked in between
    history.last_at = max(history.last_at, event.time)
    if change.started is not None:
        history.start, history.started_at = change.started, event.time
    if change.status is not None:
        history.status, history.reason = change.status.word, change.status.reason
        history.error = change.status.error if change.status.word == "failed" else history.error
    if change.champion:
        history.champion_digest = change.champion
    if change.generation is not None:
        history.generations.append(change.generation)
    if change.improvement is not None:
        history.champions.append(change.improvement)
    if change.graded is not None:
        history.graded.append(change.graded)
    if change.exported is not None:
        history.exports.append(change.exported)
    if change.failure is not None:
        history.failures.append(change.failure)
    if change.model is not None:
        history.models[change.model.model.reference] = change.model.model
    _apply_to_controls(history, change)
    _apply_to_candidate(history, change)
    _count_work(history, change)


def _apply_to_controls(history: History, change: Change) -> None:
    """Takes in which candidates are controls, and their results."""
    for one in change.controls:
        proposal = m.CandidateProposed(
            recipe_digest=one.recipe_digest, recipe_json=one.recipe_json, operator=one.kind, index=-1
        )
        same = history.candidates.get(one.recipe_digest)
        results = dict(same.results) if same is not None else {}
        history.controls.setdefault(one.recipe_digest, Candidate(proposal, results))
    if (evaluation := change.evaluation) and (control := history.controls.get(evaluation.recipe_digest)):
        control.results.setdefault(evaluation.split, evaluation)
    if (failed := change.failure) and (control := history.controls.get(failed.recipe_digest)):
        control.failure = control.failure or failed


def _apply_to_candidate(history: History, change: Change) -> None:
    """Takes in what a change says of one candidate; the first result of each kind counts."""
    if change.proposed is not None:
        history.candidates.setdefault(change.proposed.recipe_digest, Candidate(change.proposed))
        if history.status == "preparing":
            history.status = "running"
    if (evaluation := change.evaluation) and (candidate := history.candidates.get(evaluation.recipe_digest)):
        if candidate.raced is not None and candidate.raced.stopped and candidate.digest in history.controls:
            pass  # all its items were scored for the control that it is, too; in the search it was stopped
        elif evaluation.partial:
            candidate.parts.setdefault(evaluation.rung, evaluation)
        else:
            candidate.results.setdefault(evaluation.split, evaluation)
    if (raced := change.raced) and (candidate := history.candidates.get(raced.recipe_digest)):
        if candidate.raced is None and not raced.stopped:
            candidate.results.setdefault("search", _assembled(candidate.parts, raced))
        candidate.raced = candidate.raced or raced
    if (failed := change.failed) and (candidate := history.candidates.get(failed.recipe_digest)):
        candidate.failure = candidate.failure or failed


def _count_work(history: History, change: Change) -> None:
    """Adds up seconds and items, and notes what merges had to say."""
    if change.model is not None:
        history.download_seconds += change.model.seconds
    if (merged := change.merged) is not None:
        history.merge_seconds += merged.seconds
        history.notes += [note for note in merged.notes if note not in history.notes]
    if (evaluation := change.evaluation) is not None:
        history.dtype = history.dtype or evaluation.dtype  # the first holds for the whole run
        if evaluation.cached:
            history.cached += 1
        else:
            history.evaluation_seconds += evaluation.seconds
            history.items_scored += evaluation.computed or sum(len(score.item_scores) for score in evaluation.scores)
        if evaluation.device and evaluation.device not in history.devices:
            history.devices.append(evaluation.device)


def _assembled(parts: dict[int, m.CandidateEvaluated], raced: m.CandidateRaced) -> m.CandidateEvaluated:
    """All rungs of a race as one result; a metric that is no mean of item scores is left to who knows the suite."""
    answers: dict[str, dict[int, float]] = {}
    metrics: dict[str, str] = {}
    for rung in sorted(parts):
        for score in parts[rung].scores:
            answers.setdefault(score.task, {}).update(zip(score.positions, score.item_scores, strict=True))
            metrics[score.task] = score.metric
    last = parts[max(parts)] if parts else m.CandidateEvaluated()
    scores = tuple(
        m.TaskScore(
            task=score.task,
            score=score.score,
            metric=metrics.get(score.task, ""),
            metric_value=score.score,
            item_scores=tuple(value for _, value in sorted(answers.get(score.task, {}).items())),
        )
        for score in raced.scores
    )
    seconds = sum(part.seconds for part in parts.values())
    return m.CandidateEvaluated(
        recipe_digest=raced.recipe_digest,
        suite_digest=last.suite_digest,
        split="search",
        fitness=raced.fitness,
        scores=scores,
        seconds=seconds,
        device=last.device,
        rung=raced.rung,
    )
