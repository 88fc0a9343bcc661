"""What a run has shown, as result.json holds it: the verdict with its interval, the scores, what it cost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from evomerge_common.domain import messages as m
from evomerge_common.domain.benchmarks import selection_warnings
from evomerge_common.domain.licences import LicencePlan, by_source, combine
from evomerge_common.domain.pareto import front, hypervolume
from evomerge_common.domain.reference import ModelReference
from evomerge_common.domain.scores import task_score
from evomerge_common.domain.statistics import Interval, mean_interval
from evomerge_common.domain.suite import Suite
from evomerge_common.domain.task import GRADED
from evomerge_report.constraints import constraints_of
from evomerge_report.controls import controls_of
from evomerge_report.history import Candidate, History, short_name
from evomerge_report.racing import racing_of
from evomerge_report.samples import recipe_of, samples_of
from evomerge_report.specialists import (
    NOTE,
    against_specialists,
    bounds,
    difference,
    items_of,
    warnings_of,
)

OBJECTIVE = "fitness"
"""The one objective of a run so far: the weighted mean of the tasks' scores."""

VOLUME_TASKS = range(2, 6)
"""Of how many tasks a hypervolume is told: an exact one costs too much in more (While et al. 2006)."""


def result_of(history: History, suite: Suite) -> dict[str, Any]:
    """Gathers plain data for result.json; of a run under way, as far as it has come.

    Scores are higher-is-better numbers per task; intervals are 95% and by item bootstrap with the run's seed.
    Everything under "search" is what selection saw; only "holdout" says how good a model is.
    """
    spec = history.spec
    seed = int(spec.get("seed", 0))
    champion = history.champion
    measure = Measure(suite, seed)
    sources = [_source(history, candidate, measure) for candidate in history.sources]
    best = best_source(history, "search")
    return {
        "run_id": history.run_id,
        "status": history.status,
        "reason": history.reason,
        "error": {"type": history.error.type, "message": history.error.message} if history.error else None,
        "version": history.start.version,
        "seed": seed,
        "suite": _suite(suite, history),
        "warnings": list(selection_warnings(suite)),
        "champion": None if champion is None else _champion(champion, history, measure),
        "sources": sources,
        "licences": None if champion is None else licences_of(champion, history).to_dict(),
        "best_source": None if best is None else {"reference": history.model_of(best).reference,
                                                  "recipe_digest": best.digest, "chosen_by": "search fitness"},
        "improvement": improvement(history, suite, seed),
        "constraints": constraints_of(history, suite, seed),
        "controls": controls_of(history, suite, seed), "folds": None,
        "evaluations": len(history.scored) + len(history.stopped),
        "stopped": len(history.stopped), "proposed": len(history.candidates),
        "failed": sum(c.failure is not None and c.fitness is None for c in history.candidates.values()),
        "racing": racing_of(history),
        "graded": _graded(history, suite),
        "cached": history.cached, "items_scored": history.items_scored,
        **_origin(history),
        "dtype": history.dtype or None,
        "devices": history.devices,
        "generations": [
            {"generation": g.generation, "evaluated": g.evaluated, "best_fitness": g.best_fitness,
             "mean_fitness": g.mean_fitness, "diversity": g.diversity}
            for g in history.generations
        ],
        "pareto_front": [
            {"recipe_digest": c.digest, "index": c.index, "name": history.name_of(c), "operator": c.operator,
             "fitness": c.fitness, "scores": c.scores("search")}
            for c in pareto_front(history.scored)
        ],
        "hypervolume": hypervolume_curve(history), "samples": samples_of(history, suite),
        "failures": [
            {"kind": f.kind, "recipe_digest": f.recipe_digest, "split": f.split, "reference": f.reference,
             "type": f.error.type, "message": f.error.message}
            for f in history.failures
        ],
        "notes": history.notes_of(),
        "exports": [{"format": e.format, "uri": e.uri, "bytes": e.bytes, "recipe_digest": e.recipe_digest,
                     "notes": list(e.notes)}
                    for e in history.exports],
        "spec": spec,
    }  # fmt: skip


def _origin(history: History) -> dict[str, Any]:
    """With what of earlier runs the search began, and how long it all took."""
    earlier = history.start.earlier
    runs = sorted({one.run_id for one in earlier})
    counts = {"earlier_results": sum(bool(one.scores) for one in earlier), "earlier_candidates": len(earlier)}
    return {"earlier_runs": runs, **counts, **_seconds(history)}


def _seconds(history: History) -> dict[str, float]:
    seconds = {
        "wall_seconds": max(0.0, history.last_at - history.started_at),
        "download_seconds": history.download_seconds,
        "merge_seconds": history.merge_seconds,
        "evaluation_seconds": history.evaluation_seconds,
    }
    return {key: round(value, 3) for key, value in seconds.items()}


def licences_of(candidate: Candidate, history: History) -> LicencePlan:
    """Tells what the licences of a candidate's sources mean for it."""
    models = {model.digest: model for model in map(history.model_of, history.sources)}
    recipe = candidate.recipe
    used = [models.get(source.digest) for source in recipe.sources()] if recipe is not None else []
    chosen = [model for model in used if model is not None] or list(models.values())
    return combine(by_source((str(ModelReference.parse(one.reference).public), one.licence) for one in chosen))


class Measure:
    """Scores with intervals, as plain data."""

    def __init__(self, suite: Suite, seed: int) -> None:
        self.weights = weights_of(suite)
        self._tasks = {task.name: task for task in suite.tasks}
        self._suite = suite
        self._seed = seed

    def __call__(self, result: m.CandidateEvaluated | None) -> dict[str, Any] | None:
        if result is None:
            return None
        tasks = {
            score.task: {
                "score": score.score,
                "interval95": self._interval({score.task: score.item_scores}, {score.task: 1.0}),
                "metric": score.metric,
                "metric_value": self._metric(score) if result.rung else score.metric_value,
                "items": len(score.item_scores),
            }
            for score in result.scores
        }
        return {
            "fitness": result.fitness,
            "interval95": self._interval(items_of(result), self.weights),
            "tasks": tasks,
            "device": result.device,
        }

    def _metric(self, score: m.TaskScore) -> float:
        """In its own unit, of a result that was put together from rungs of the search split."""
        task = self._tasks[score.task]
        return task_score(task, self._suite.items(task, "search"), score.item_scores).metric_value

    def _interval(self, items: Mapping[str, Sequence[float]], weights: Mapping[str, float]) -> list[float] | None:
        try:
            return bounds(mean_interval(items, weights, seed=self._seed))
        except ValueError:
            return None  # a result that kept no item scores


def weights_of(suite: Suite) -> dict[str, float]:
    """Returns task → weight."""
    return {task.name: task.weight for task in suite.tasks}


def best_source(history: History, split: str) -> Candidate | None:
    """Finds the source with the highest fitness on a split; of equals the earlier."""
    scored = [(c.results[split].fitness, -c.index, c) for c in history.sources if split in c.results]
    return max(scored)[2] if scored else None


def improvement(history: History, suite: Suite, seed: int) -> dict[str, Any] | None:
    """Compares champion and best source on the holdout, item by item; None until both are scored there.

    `tasks` has, for each task, the source that is best on that task: see `against_specialists`.
    """
    champion, source = history.champion, best_source(history, "search")
    if champion is None or source is None:
        return None
    name = history.model_of(source).reference
    ours, theirs = champion.results.get("holdout"), source.results.get("holdout")
    if ours is None or theirs is None:
        return None
    weights = weights_of(suite)
    overall = difference(items_of(ours), items_of(theirs), weights, seed)
    if overall is None:
        return None
    strongest = best_source(history, "holdout")
    again = strongest.results["holdout"] if strongest is not None else theirs
    other = difference(items_of(ours), items_of(again), weights, seed)
    tasks = against_specialists(champion, history, suite, seed)
    return {
        "against": name,
        "holdout_difference": overall.mean,
        "interval95": bounds(overall),
        "excludes_zero": overall.excludes_zero,
        "improved": overall.low > 0,
        "statement": statement(champion, name, overall, sum(len(s.item_scores) for s in ours.scores)),
        "tasks": tasks,
        "tasks_note": NOTE,
        "specialists": warnings_of(tasks),
        "versus_best_by_holdout": None if strongest is None or other is None else {
            "reference": history.model_of(strongest).reference,
            "difference": other.mean, "interval95": bounds(other), "excludes_zero": other.excludes_zero,
        },
        "search_holdout_gap": None if champion.fitness is None else champion.fitness - ours.fitness,
        "method": "paired bootstrap over items within tasks, 2000 resamples, percentile interval",
    }  # fmt: skip


def statement(champion: Candidate, source: str, difference: Interval, items: int) -> str:
    """Says the verdict in one sentence."""
    span = f"95% interval {difference.low:+.3f} to {difference.high:+.3f}, {items} held-out items"
    shown = f"{difference.mean:+.3f} ({span})"
    name = short_name(source)
    if champion.is_source:
        return f"The run did not improve on its sources: the best model that it found is one of them, {name}."
    if difference.low > 0:
        return f"The champion improved on its best source, {name}, by {shown}."
    if difference.high < 0:
        return f"The champion did not improve on its sources: on held-out items it is worse than {name}, by {shown}."
    return (
        f"The champion did not improve on its sources beyond chance: its difference from {name} is {shown}, "
        "and the interval includes zero."
    )


def hypervolume_curve(history: History) -> list[dict[str, Any]]:
    """Returns the volume that the front dominates, above zero in every task, after each generation; it can only grow.

    Zitzler & Thiele 1999; of two to five tasks.
    """
    scored = [one for one in history.candidates.values() if one.scores("search")]
    tasks = list(scored[0].scores("search")) if scored else []
    if len(tasks) not in VOLUME_TASKS:
        return []
    ends = [g.evaluated for g in history.generations] or [len(history.candidates)]
    curve: list[dict[str, Any]] = []
    frontier: list[tuple[float, ...]] = []
    taken = 0
    for end in dict.fromkeys([*ends, len(history.candidates)]):
        points = frontier + [tuple(one.scores("search").values()) for one in scored[taken:] if one.index < end]
        taken = sum(one.index < end for one in scored)
        frontier = [points[i] for i in front(points)]
        curve.append({"evaluated": end, "hypervolume": hypervolume(frontier, (0.0,) * len(tasks))})
    return curve


def pareto_front(candidates: Sequence[Candidate], split: str = "search") -> list[Candidate]:
    """Returns the candidates whose task scores no other matches or beats in every task; in order of proposal."""
    scored = [one for one in candidates if one.scores(split)]
    points = [tuple(one.scores(split).values()) for one in scored]
    return sorted((scored[i] for i in front(points)), key=lambda candidate: candidate.index)


def _champion(champion: Candidate, history: History, measure: Measure) -> dict[str, Any]:
    return {
        "recipe_digest": champion.digest,
        "recipe": json.loads(champion.proposal.recipe_json or "null"),
        "name": history.name_of(champion),
        "method": champion.method,
        "operator": champion.operator,
        "is_source": champion.is_source,
        "index": champion.index,
        "generation": champion.proposal.generation,
        "parents": list(champion.proposal.parents),
        "objective": OBJECTIVE,
        "notes": history.notes_of(champion.digest),
        **recipe_of(champion, history),
        "search": measure(champion.results.get("search")),
        "holdout": measure(champion.results.get("holdout")),
    }


def _source(history: History, candidate: Candidate, measure: Measure) -> dict[str, Any]:
    model = history.model_of(candidate)
    return {
        "reference": model.reference,
        "digest": model.digest,
        "commit": model.commit,
        "licence": model.licence,
        "architecture": model.architecture,
        "parameters": model.parameters,
        "recipe_digest": candidate.digest,
        "search": measure(candidate.results.get("search")),
        "holdout": measure(candidate.results.get("holdout")),
    }


def _graded(history: History, suite: Suite) -> list[dict[str, str]]:
    """Tasks whose partial credit has steered the search, and why."""
    asked = [{"task": task.name, "reason": "the suite says so"} for task in suite.tasks if task.fitness == GRADED]
    return [*asked, *({"task": one.task, "reason": one.reason} for one in history.graded)]


def _suite(suite: Suite, history: History) -> dict[str, Any]:
    return {
        "name": suite.name,
        "digest": history.start.suite_digest or suite.digest,
        "holdout_share": suite.holdout,
        "tasks": [
            {"name": t.name, "kind": t.kind, "weight": t.weight, "metric": t.metric,
             "search_items": len(suite.items(t, "search")), "holdout_items": len(suite.items(t, "holdout")),
             **({} if t.benchmark is None else {"benchmark": t.benchmark.to_dict()})}
            for t in suite.tasks
        ],
    }  # fmt: skip
