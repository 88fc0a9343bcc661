"""Search strategies against each other on equal budgets: holdout score against items scored, median and quartiles.

The landscape is real: `--collect N` scores N candidates of the demo family, found by real searches of every strategy,
and keeps them in a file. A kernel regression over those (one for each method and task, its error told by leave-one-out)
then answers for candidates that were never merged, so that many seeds of every strategy cost seconds. The same state
machine as in the selector proposes; only scoring is stood in for.

    evomerge bench search --collect 400 --data scored.jsonl     # minutes: real merges, real scores
    evomerge bench search --data scored.jsonl --out search      # table, JSON and picture
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from evomerge_common.domain.genome import PARAMETER_METHODS, Genome
from evomerge_common.domain.messages import (
    ArtifactExported,
    CandidateEvaluated,
    CandidateMerged,
    CandidateProposed,
    DownloadJob,
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
from evomerge_common.domain.spec import RunSpec
from evomerge_common.domain.suite import Suite
from evomerge_common.suite_file import load_suite
from evomerge_selector.domain.tournament import EvolutionaryTournament

STRATEGIES = ("tournament", "nsga2", "map_elites", "cmaes", "tpe", "random")
CMAES_METHODS = ["task_arithmetic"]
"""mergekit-evolve's genome: weights × layer groups of one method."""

Scores = tuple[dict[str, float], dict[str, float]]
"""Task → score, on search items and on held-out ones."""
Score = Callable[[CandidateProposed], Scores]


@dataclass
class Landscape:
    """A family that can be searched."""

    family: Any
    suite: Suite
    layers: int

    def spec(self, strategy: str, seed: int, evaluations: int) -> RunSpec:
        search = {"strategy": strategy, "evaluations": evaluations, "population": 16}
        if strategy == "cmaes":
            search["methods"] = CMAES_METHODS
        return RunSpec.from_dict(
            {
                "models": [str(path) for path in self.family.experts],
                "base": str(self.family.base),
                "suite": json.loads(self.suite.to_json()),
                "search": search,
                "seed": seed,
            }
        )


def search(landscape: Landscape, spec: RunSpec, score: Score) -> list[tuple[CandidateProposed, Scores]]:
    """One whole run through the selector's state machine; candidates in order of proposal, with both scores."""
    tournament = EvolutionaryTournament("bench")
    tournament.apply(Event(run_id="bench", payload=RunStarted(spec_json=spec.to_json(), has_holdout=False)))
    proposed: dict[str, CandidateProposed] = {}
    found: list[tuple[CandidateProposed, Scores]] = []
    done: set[str] = set()
    while not tournament.phase.is_terminal:
        while (decision := tournament.next_decision()) is not None:
            tournament.apply(Event(run_id="bench", payload=decision))
            if isinstance(decision, CandidateProposed):
                proposed[decision.recipe_digest] = decision
        for job in [one for one in tournament.jobs() if one.job_id not in done]:
            done.add(job.job_id)
            result = _answer(job, landscape, proposed, score, found)
            tournament.apply(Event(run_id="bench", payload=result))
            tournament.discarded.clear()
    return sorted(found, key=lambda pair: pair[0].index)


def _answer(
    job: Job,
    landscape: Landscape,
    proposed: Mapping[str, CandidateProposed],
    score: Score,
    found: list[tuple[CandidateProposed, Scores]],
) -> Result:
    payload = job.payload
    if isinstance(payload, DownloadJob):
        model = Model(
            reference=payload.reference,
            digest=payload.reference,
            uri=Path(payload.reference).as_uri(),
            architecture="llama",
            num_layers=landscape.layers,
        )
        return ModelReady(job_id=job.job_id, model=model)
    if isinstance(payload, MergeJob):
        return CandidateMerged(job_id=job.job_id, recipe_digest=payload.recipe_digest)
    if isinstance(payload, ExportJob):
        return ArtifactExported(job_id=job.job_id, recipe_digest=payload.recipe_digest)
    assert isinstance(payload, EvaluateJob)
    candidate = proposed[payload.recipe_digest]
    scores = score(candidate)
    found.append((candidate, scores))
    return CandidateEvaluated(
        job_id=job.job_id,
        recipe_digest=payload.recipe_digest,
        split=payload.split,
        fitness=landscape.suite.fitness(scores[0]),
        scores=tuple(TaskScore(task=name, score=value) for name, value in scores[0].items()),
    )


# ---- real scores ----


def collect(landscape: Landscape, count: int, file: Path) -> None:
    """Appends real scored candidates to the file until it holds `count`; what it holds already is not scored again."""
    from evomerge_evaluator.scoring import child

    known = {entry["digest"]: entry for entry in _read(file)}
    models = {str(path): path for path in (*landscape.family.experts, landscape.family.base)}
    began, fresh = time.monotonic(), 0

    def score(candidate: CandidateProposed) -> Scores:
        nonlocal fresh
        if candidate.recipe_digest not in known:
            report = child.score(
                child.ScoreRequest(
                    folder=None,
                    recipe_json=candidate.recipe_json,
                    models=models,
                    suite=landscape.suite,
                    suite_digest="bench",
                    split="all",
                    threads=1,
                )
            )
            halves: list[dict[str, float]] = [{}, {}]
            for task, result in zip(landscape.suite.tasks, report.scores, strict=True):
                for half, held_out in zip(halves, (False, True), strict=True):
                    values = [
                        value
                        for item, value in zip(task.items, result.item_scores, strict=True)
                        if item.is_holdout(seed=landscape.suite.seed, share=landscape.suite.holdout) == held_out
                    ]
                    half[task.name] = sum(values) / len(values)
            entry = {
                "digest": candidate.recipe_digest,
                "genome": json.loads(candidate.genome_json),
                "operator": candidate.operator,
                "search": halves[0],
                "holdout": halves[1],
            }
            known[candidate.recipe_digest] = entry
            with file.open("a", encoding="utf-8") as out:
                out.write(json.dumps(entry) + "\n")
            fresh += 1
            if fresh % 20 == 0:
                rate = (time.monotonic() - began) / fresh
                left = max(0, count - len(known)) * rate
                sys.stderr.write(f"{len(known)}/{count} scored, {rate:.1f} s each, {left / 60:.0f} min left\n")
        entry = known[candidate.recipe_digest]
        return entry["search"], entry["holdout"]

    seed = 100  # seeds that the comparison does not use
    while len(known) < count:
        for strategy in STRATEGIES:
            if len(known) < count:
                search(landscape, landscape.spec(strategy, seed, 60), score)
        seed += 1


def _read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.exists() else []


# ---- the surrogate ----


class Surrogate:
    """Kernel ridge regression for each method, task and split; data-flow genomes answer by their nearest neighbour."""

    def __init__(self, entries: Sequence[dict[str, Any]], tasks: Sequence[str]) -> None:
        self._tasks = tasks
        self._models: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray, float, np.ndarray]] = {}
        self._known = {_key(Genome.from_json(json.dumps(entry["genome"]))): entry for entry in entries}
        self.errors: dict[str, tuple[int, float, float]] = {}
        self._paths: list[tuple[Genome, dict[str, Any]]] = []
        groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for entry in entries:
            genome = Genome.from_json(json.dumps(entry["genome"]))
            if genome.method in PARAMETER_METHODS and not genome.ingredients:
                groups[genome.method].append(entry)
            else:
                self._paths.append((genome, entry))
        for method, members in groups.items():
            inputs = np.array([_features(Genome.from_json(json.dumps(one["genome"]))) for one in members])
            outputs = np.array(
                [[*(one["search"][t] for t in tasks), *(one["holdout"][t] for t in tasks)] for one in members]
            )
            self._fit(method, inputs, outputs)

    def _fit(self, method: str, inputs: np.ndarray, outputs: np.ndarray) -> None:
        mean = outputs.mean(axis=0)
        best: tuple[float, float, float] = (np.inf, 1.0, 1e-2)
        for width in (0.3, 0.5, 0.8, 1.2, 2.0, 3.0):
            for ridge in (1e-3, 1e-2, 1e-1):
                inverse = np.linalg.inv(_kernel(inputs, inputs, width) + ridge * np.eye(len(inputs)))
                # Leave-one-out residuals of a linear smoother, in closed form.
                residual = (inverse @ (outputs - mean)) / np.diag(inverse)[:, None]
                best = min(best, (float((residual**2).mean()), width, ridge))
        error, width, ridge = best
        weights = np.linalg.solve(_kernel(inputs, inputs, width) + ridge * np.eye(len(inputs)), outputs - mean)
        self._models[method] = (inputs, weights, mean, width, outputs)
        spread = float(((outputs - mean) ** 2).mean())
        self.errors[method] = (len(inputs), error**0.5, 1.0 - error / spread if spread else 0.0)

    def __call__(self, candidate: CandidateProposed) -> Scores:
        genome = Genome.from_json(candidate.genome_json)
        entry = self._known.get(_key(genome))
        if entry is not None:
            return entry["search"], entry["holdout"]
        if genome.method in self._models and not genome.ingredients:
            inputs, weights, mean, width, outputs = self._models[genome.method]
            values = mean + _kernel(np.array([_features(genome)]), inputs, width)[0] @ weights
            values = np.clip(values, outputs.min(axis=0), outputs.max(axis=0))  # never better than what was seen
            half = len(self._tasks)
            return dict(zip(self._tasks, map(float, values[:half]), strict=True)), dict(
                zip(self._tasks, map(float, values[half:]), strict=True)
            )
        _, nearest = min(self._paths, key=lambda pair: (genome.distance(pair[0]), pair[1]["digest"]))
        return nearest["search"], nearest["holdout"]


def _key(genome: Genome) -> str:
    """The genes that a score follows from; of a merge of merges, the methods inside."""
    own = replace(genome, sigma=0.2, ingredients=())
    return own.to_json() + ",".join(recipe.method for recipe in genome.ingredients)


def _features(genome: Genome) -> list[float]:
    return [w for row in genome.weights for w in row] + [0.5 * d for d in genome.density]


def _kernel(a: np.ndarray, b: np.ndarray, width: float) -> np.ndarray:
    squared = ((a[:, None, :] - b[None, :, :]) ** 2).sum(axis=2) / a.shape[1]
    kernel: np.ndarray = np.exp(-squared / (2 * (width / 2) ** 2))
    return kernel


# ---- the comparison ----


def compare(landscape: Landscape, surrogate: Surrogate, seeds: range, evaluations: int) -> dict[str, list[list[float]]]:
    """Strategy → seed → holdout fitness of the champion so far, after each candidate."""
    curves: dict[str, list[list[float]]] = {}
    for strategy in STRATEGIES:
        curves[strategy] = []
        for seed in seeds:
            champion, curve, best = 0.0, [], float("-inf")
            for _, (searched, held) in search(landscape, landscape.spec(strategy, seed, evaluations), surrogate):
                fitness = landscape.suite.fitness(searched)
                if fitness > best:
                    best, champion = fitness, landscape.suite.fitness(held)
                curve.append(champion)
            curves[strategy].append(curve)
    return curves


def picture(curves: Mapping[str, list[list[float]]], items: int, file: Path) -> None:
    """Median and quartiles against items scored."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 5.5), layout="constrained")
    colours = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#666666")
    for (strategy, seeds), colour in zip(curves.items(), colours, strict=False):
        length = min(map(len, seeds))
        values = np.array([one[:length] for one in seeds])
        spent = np.arange(1, length + 1) * items
        low, middle, high = np.quantile(values, (0.25, 0.5, 0.75), axis=0)
        axes.plot(spent, middle, label=strategy, color=colour, linewidth=2)
        axes.fill_between(spent, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.set_xlabel("items scored")
    axes.set_ylabel("champion on held-out items")
    axes.set_title("Search strategies: median and quartiles over seeds", loc="left", fontweight="bold")
    axes.legend(frameon=False, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    figure.savefig(file, dpi=130)
    plt.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("search-data.jsonl"), help="scored candidates (JSON Lines)")
    parser.add_argument("--collect", type=int, metavar="N", help="score real candidates until the file holds N")
    parser.add_argument("--out", type=Path, default=Path("bench-search"), help="folder for table, JSON and picture")
    parser.add_argument("--seeds", type=int, default=30, help="how many (default: %(default)s)")
    parser.add_argument("--first-seed", type=int, default=1000, help="the first of them (default: %(default)s)")
    parser.add_argument("--evaluations", type=int, default=120)
    args = parser.parse_args()
    from evomerge_cli.demo.family import build_family
    from evomerge_common.runtime.settings import Settings

    family = build_family(Settings.from_env().model_store.parent / "demo" / "0", seed=0)
    config = json.loads((family.base / "config.json").read_text())
    landscape = Landscape(family, load_suite(family.suite), int(config["num_hidden_layers"]))
    if args.collect:
        collect(landscape, args.collect, args.data)
        return 0
    entries = _read(args.data)
    if not entries:
        sys.stderr.write(f"{args.data} holds no scored candidates; make some: --collect 400 --data {args.data}\n")
        return 2
    surrogate = Surrogate(entries, [task.name for task in landscape.suite.tasks])
    for method, (count, error, explained) in sorted(surrogate.errors.items()):
        print(
            f"surrogate {method:<16} {count:4d} candidates, leave-one-out error {error:.3f}, explains {explained:.0%}"
        )
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    curves = compare(landscape, surrogate, seeds, args.evaluations)
    items = sum(len(landscape.suite.items(task, "search")) for task in landscape.suite.tasks)
    rows = []
    goal = statistics.median(one[-1] for one in curves["cmaes"])
    for strategy, runs in curves.items():
        low, middle, high = np.quantile([one[-1] for one in runs], (0.25, 0.5, 0.75))
        medians = np.median(np.array([one[: min(map(len, runs))] for one in runs]), axis=0)
        reached = next((i + 1 for i, value in enumerate(medians) if value >= goal), None)
        rows.append((strategy, low, middle, high, reached))
        words = f"{reached * items:6d} items ({reached} candidates)" if reached else "never"
        print(f"{strategy:<12} {middle:.4f} [{low:.4f}, {high:.4f}]   cmaes's final median reached after {words}")
    args.out.mkdir(parents=True, exist_ok=True)
    picture(curves, items, args.out / "search.png")
    table = [
        {"strategy": s, "median": m, "quartiles": [lo, hi], "reaches_cmaes_after_candidates": r}
        for s, lo, m, hi, r in rows
    ]
    whole = {"seeds": list(seeds), "evaluations": args.evaluations, "items_a_candidate": items, "scored": len(entries),
             "strategies": table, "curves": curves}  # fmt: skip
    (args.out / "search.json").write_text(json.dumps(whole, indent=1), encoding="utf-8")
    print(f"{args.out}/search.png, {args.out}/search.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
