"""A run without services: a state machine, an event list, and workers that answer in any order."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from functools import partial
from random import Random
from typing import Any

from evomerge_common.domain.messages import (
    CandidateEvaluated,
    CandidateFailed,
    CandidateProposed,
    CandidateRaced,
    EarlierCandidate,
    ErrorInfo,
    EvaluateJob,
    Event,
    ExportJob,
    Job,
    JobPostponed,
    Result,
    RunContinued,
    RunResumed,
    RunStarted,
    TaskItems,
    TaskScore,
    TaskShape,
)
from evomerge_common.domain.recipe import Recipe
from evomerge_common.domain.spec import RunRequest, RunSpec
from evomerge_common.domain.suite import Suite
from evomerge_selector import fake_workers
from evomerge_selector.domain.run import Run

SUITE = {
    "tasks": [
        {"name": "a", "kind": "exact_match", "items": [{"prompt": str(i), "answer": str(i)} for i in range(20)]},
    ]
}


def make_spec(models: int = 3, seed: int = 7, **search: Any) -> RunSpec:
    names = [f"org/m{i}" for i in range(models)]
    return RunSpec.from_dict({"models": names, "base": "org/base", "search": search, "seed": seed})


def make_request(**search: Any) -> RunRequest:
    """What StartRun is given for `make_spec`."""
    return RunRequest(make_spec(**search), Suite.from_dict(SUITE))


def adapters_spec(*bases: str, methods: tuple[str, ...] = ("linear", "task_arithmetic", "ties")) -> RunSpec:
    """A run over an adapter of each of the bases."""
    models = [f"{base}+org/m{i}" for i, base in enumerate(bases)]
    search = {"evaluations": 30, "population": 8, "methods": list(methods)}
    return RunSpec.from_dict({"models": models, "base": "org/base", "search": search, "seed": 7})


def landscape(recipe_json: str) -> float:
    """A smooth made-up fitness: the closer the weights are to a hidden optimum, the better."""
    data = json.loads(recipe_json)
    recipe = Recipe.from_dict(data)
    if recipe.method in {"frankenmerge", "dfs"}:
        return 0.2 + 0.001 * (len(recipe_json) % 97)
    goal, error, count = (0.7, 0.4, 0.5), 0.0, 0
    for part in recipe.slices:
        for value, item in zip(goal, part.inputs, strict=False):
            weight = item.parameters.get("weight", 1.0)
            weight = weight[-1]["value"] if isinstance(weight, list) else weight
            error += (weight - value) ** 2
            count += 1
    return 1.0 / (1.0 + error / max(1, count)) - (0.05 if recipe.method == "linear" else 0.0)


def skills(recipe_json: str) -> tuple[TaskScore, ...]:
    """Three tasks that pull apart: each likes the weight of its own model, and dislikes the sum of all."""
    total, own = 0.0, [0.0, 0.0, 0.0]
    for part in Recipe.from_json(recipe_json).slices:
        for i, item in enumerate(part.inputs[:3]):
            weight = item.parameters.get("weight", 0.5)
            weight = weight[-1]["value"] if isinstance(weight, list) else weight
            own[i] += weight / max(1, len(part.inputs))
            total += weight / max(1, len(part.inputs))
    return tuple(
        TaskScore(task=f"t{i}", score=round(1.0 / (1.0 + (value - 1.0) ** 2 + 0.3 * total), 6))
        for i, value in enumerate(own)
    )


ITEMS = 40
"""Items of each task in a simulation that races."""


def answers(recipe_json: str, wanted: tuple[TaskItems, ...]) -> tuple[TaskScore, ...]:
    """The same skills, item by item: an item is answered by whoever is better than it is hard, with some luck."""
    digest = Recipe.from_json(recipe_json).digest
    places = {one.task: one.positions for one in wanted} or {f"t{i}": tuple(range(ITEMS)) for i in range(3)}
    scores = []
    for one in skills(recipe_json):
        if one.task not in places:
            continue
        found = tuple(
            float(one.score + 0.1 * Random(f"{digest}{one.task}{i}").gauss(0, 1) > Random(f"{one.task}{i}").random())
            for i in places[one.task]
        )
        mean = sum(found) / len(found)
        positions = places[one.task] if wanted else ()
        scores.append(TaskScore(task=one.task, score=mean, item_scores=found, positions=positions))
    return tuple(scores)


def answer(
    job: Job,
    *,
    fail: frozenset[int] = frozenset(),
    layers: int = 6,
    items: bool = False,
    fail_at_rung: int = 0,
    fail_exports: tuple[str, ...] = (),
) -> Result:
    payload = job.payload
    error = ErrorInfo(type="NonFiniteScore", message="NaN")
    if isinstance(payload, ExportJob) and payload.format in fail_exports:
        error = ErrorInfo(type="ModelError", message="cannot be written")
        return CandidateFailed(job_id=job.job_id, kind="export", recipe_digest=payload.recipe_digest, error=error)
    if isinstance(payload, EvaluateJob):
        drawn = int(payload.recipe_digest[:4], 16)
        breaks = fail_at_rung and payload.rung == fail_at_rung and drawn % 3 == 0
        if breaks or (drawn % 50 in fail and payload.split == "search"):
            return CandidateFailed(
                job_id=job.job_id, kind="evaluate", recipe_digest=payload.recipe_digest, split="search", error=error
            )
    return fake_workers.answer(job, by_items if items else as_a_whole, layers=layers)


def as_a_whole(job: EvaluateJob) -> tuple[float, tuple[TaskScore, ...]]:
    return landscape(job.recipe_json), skills(job.recipe_json)


def by_items(job: EvaluateJob) -> tuple[float, tuple[TaskScore, ...]]:
    scores = answers(job.recipe_json, job.items)
    return sum(one.score for one in scores) / len(scores), scores


def in_dtype(result: CandidateEvaluated, job: Job, auto: str) -> CandidateEvaluated:
    """What a worker answers whose "auto" is this: digits of the recipe stand for what rounding does to a score."""
    assert isinstance(job.payload, EvaluateJob)
    dtype = auto if job.payload.dtype == "auto" else job.payload.dtype
    noise = int(hashlib.sha256(f"{dtype}{result.recipe_digest}".encode()).hexdigest()[:4], 16) / 2**20
    scores = tuple(replace(one, score=one.score + noise) for one in result.scores)
    return replace(result, fitness=result.fitness + noise, scores=scores, dtype=dtype)


class Simulation:
    """Plays a run to its end with `workers` jobs in hand, answered in random order."""

    def __init__(
        self,
        spec: RunSpec,
        *,
        workers: int,
        order: int,
        fail: frozenset[int] = frozenset(),
        replay_every: int = 0,
        items: bool = False,
        tells_items: bool = True,
        fail_at_rung: int = 0,
        fail_exports: tuple[str, ...] = (),
        full: float = 0.0,
        dtypes: tuple[str, ...] = (),
        earlier: tuple[EarlierCandidate, ...] = (),
    ) -> None:
        """Takes `dtypes` as those that "auto" is on the workers; in each the scores are a little different."""
        self.events: list[Event] = []
        self.run = Run("r")
        self.replays = 0
        self._replay_every = replay_every
        self._workers, self._full, self._dtypes, self._rng = workers, full, dtypes, Random(order)
        self._respond = partial(
            answer, fail=fail, items=items and tells_items, fail_at_rung=fail_at_rung, fail_exports=fail_exports
        )
        self._queued: list[Job] = []
        self._results: list[Result] = []
        self._known: set[str] = set()
        shapes = tuple(TaskShape(task=f"t{i}", weight=1.0, items=ITEMS) for i in range(3)) if items else ()
        self._append(
            RunStarted(spec_json=spec.to_json(), suite_uri="file:///s", has_holdout=True, tasks=shapes, earlier=earlier)
        )
        self._play()

    def go_on(self, spec: RunSpec) -> None:
        """Plays the run with another budget, to another end."""
        self.run.discarded.clear()  # the shell has deleted them
        self._append(RunContinued(spec_json=spec.to_json()))
        self._play()

    def _play(self) -> None:
        rng, queued, results = self._rng, self._queued, self._results
        while not self.run.phase.is_terminal:
            while (decision := self.run.next_decision()) is not None:
                self._append(decision)
            for job in self.run.jobs():
                if job.message_id not in self._known:
                    self._known.add(job.message_id)
                    queued.append(job)
            if self.run.phase.is_terminal:
                break
            if self.run.paused and (not queued or rng.random() < 0.2):
                self._append(RunResumed(reason="there is room"))
                continue
            assert queued, "the run waits for nothing"
            job = queued.pop(rng.randrange(min(self._workers, len(queued))))
            if rng.random() < self._full:
                lack = ErrorInfo(type="DiskFull", message="the model needs 9 bytes, and /x has 5 left")
                postponed = JobPostponed(job_id=job.job_id, kind=job.kind, attempt=job.attempt, error=lack)
                self._append(postponed)
                results.append(postponed)
                continue
            result = self._respond(job)
            if self._dtypes and isinstance(result, CandidateEvaluated):
                result = in_dtype(result, job, rng.choice(self._dtypes))
            self._append(result)
            results.append(result)
            if rng.random() < 0.1:
                self._append(rng.choice(results))  # at least once: any result may come again, at any time

    def _append(self, payload: Any) -> None:
        event = Event(run_id="r", payload=payload)
        self.events.append(event)
        self.run.apply(event)
        gone = set(self.run.discarded) - {""}
        for job in self.run.jobs():
            if isinstance(job.payload, EvaluateJob):
                assert job.payload.artifact_uri not in gone, "weights are deleted that are still to be scored"
        if self._replay_every and len(self.events) % self._replay_every == 0:
            self.run = Run("r")  # killed; the log is folded again
            for old in self.events:
                self.run.apply(old)
            self.replays += 1

    @property
    def proposals(self) -> list[tuple[int, str, str]]:
        found = [e.payload for e in self.events if isinstance(e.payload, CandidateProposed)]
        return [(p.index, p.recipe_digest, p.operator) for p in found]

    @property
    def raced(self) -> list[CandidateRaced]:
        """What came of each race, in the order of the log."""
        return [e.payload for e in self.events if isinstance(e.payload, CandidateRaced)]

    @property
    def champion(self) -> str:
        return self.run.champion.proposed.recipe_digest
