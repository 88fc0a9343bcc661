"""A run without services: a state machine, an event list, and workers that answer in any order."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from evomerge_common.domain.messages import (
    ArtifactExported,
    CandidateEvaluated,
    CandidateFailed,
    CandidateMerged,
    CandidateProposed,
    DownloadJob,
    ErrorInfo,
    EvaluateJob,
    Event,
    ExportJob,
    Job,
    MergeJob,
    Model,
    ModelReady,
    Result,
    RunStarted,
    TaskScore,
)
from evomerge_common.domain.recipe import Recipe
from evomerge_common.domain.spec import RunSpec
from evomerge_selector.domain.tournament import EvolutionaryTournament

SUITE = {
    "tasks": [
        {"name": "a", "kind": "exact_match", "items": [{"prompt": str(i), "answer": str(i)} for i in range(20)]},
    ]
}


def make_spec(models: int = 3, seed: int = 7, **search: Any) -> RunSpec:
    names = [f"org/m{i}" for i in range(models)]
    return RunSpec.from_dict({"models": names, "base": "org/base", "suite": SUITE, "search": search, "seed": seed})


def adapters_spec(*bases: str, methods: tuple[str, ...] = ("linear", "task_arithmetic", "ties")) -> RunSpec:
    """A run over an adapter of each of the bases."""
    models = [f"{base}+org/m{i}" for i, base in enumerate(bases)]
    search = {"evaluations": 30, "population": 8, "methods": list(methods)}
    return RunSpec.from_dict({"models": models, "base": "org/base", "suite": SUITE, "search": search, "seed": 7})


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


def answer(job: Job, *, fail: frozenset[int] = frozenset(), layers: int = 6) -> Result:
    payload = job.payload
    match payload:
        case DownloadJob():
            name = payload.reference
            base, _, adapter = name.partition("+")
            model = Model(
                reference=name, digest=f"sha256:{name}", uri=f"file:///{name}", architecture="L", num_layers=layers,
                base=f"sha256:{base}" if adapter else "",
            )  # fmt: skip
            return ModelReady(job_id=job.job_id, model=model)
        case MergeJob():
            uri = ""
            return CandidateMerged(job_id=job.job_id, recipe_digest=payload.recipe_digest, uri=uri)
        case EvaluateJob():
            if int(payload.recipe_digest[:4], 16) % 50 in fail and payload.split == "search":
                return CandidateFailed(
                    job_id=job.job_id, kind="evaluate", recipe_digest=payload.recipe_digest, split="search",
                    error=ErrorInfo(type="NonFiniteScore", message="NaN"),
                )  # fmt: skip
            return CandidateEvaluated(
                job_id=job.job_id, recipe_digest=payload.recipe_digest, split=payload.split,
                fitness=landscape(payload.recipe_json), scores=skills(payload.recipe_json),
            )  # fmt: skip
        case ExportJob():
            return ArtifactExported(job_id=job.job_id, recipe_digest=payload.recipe_digest, uri="file:///x")


class Simulation:
    """Runs a tournament to its end with `workers` jobs in hand, answered in random order."""

    def __init__(
        self, spec: RunSpec, *, workers: int, order: int, fail: frozenset[int] = frozenset(), replay_every: int = 0
    ) -> None:
        self.events: list[Event] = []
        self.tournament = EvolutionaryTournament("r")
        self.replays = 0
        self._replay_every = replay_every
        self._append(RunStarted(spec_json=spec.to_json(), suite_uri="file:///s", has_holdout=True))
        rng = Random(order)
        queued: list[Job] = []
        done: set[str] = set()
        known: set[str] = set()
        while not self.tournament.phase.is_terminal:
            while (decision := self.tournament.next_decision()) is not None:
                self._append(decision)
            for job in self.tournament.jobs():
                if job.job_id not in known:
                    known.add(job.job_id)
                    queued.append(job)
            if self.tournament.phase.is_terminal:
                break
            assert queued, "the run waits for nothing"
            job = queued.pop(rng.randrange(min(workers, len(queued))))
            result = answer(job, fail=fail)
            self._append(result)
            if rng.random() < 0.1:
                self._append(result)  # at least once: a result may come twice
            done.add(job.job_id)

    def _append(self, payload: Any) -> None:
        event = Event(run_id="r", payload=payload)
        self.events.append(event)
        self.tournament.apply(event)
        if self._replay_every and len(self.events) % self._replay_every == 0:
            self.tournament = EvolutionaryTournament("r")  # killed; the log is folded again
            for old in self.events:
                self.tournament.apply(old)
            self.replays += 1

    @property
    def proposals(self) -> list[tuple[int, str, str]]:
        found = [e.payload for e in self.events if isinstance(e.payload, CandidateProposed)]
        return [(p.index, p.recipe_digest, p.operator) for p in found]

    @property
    def champion(self) -> str:
        return self.tournament.champion.proposed.recipe_digest
