"""Search strategies against each other on equal budgets: holdout score against items scored, median and quartiles.

Either on the demo family itself, every candidate merged and scored (`--real`; what has been scored once, by whichever
strategy, is in the file `--data` and costs nothing again). Or on a surrogate of it: `--collect N` scores N candidates,
found by real searches of every strategy, and a kernel regression over those (one for each method and task, its error
told by leave-one-out) then answers for candidates that were never merged, so that many seeds of every strategy cost
seconds. The same state machine as in the selector proposes; only what is around it is stood in for.

    evomerge bench search --real --data real.jsonl --out real   # half a second a candidate: table, JSON and picture
    evomerge bench search --collect 400 --data scored.jsonl     # minutes: real merges, real scores
    evomerge bench search --data scored.jsonl --out search      # the same on the surrogate, with more seeds and budget
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from evomerge_common.domain.genome import Genome
from evomerge_common.domain.messages import CandidateProposed, EvaluateJob, TaskScore
from evomerge_common.domain.spec import RunSpec
from evomerge_common.domain.suite import Suite
from evomerge_common.runtime.suite_file import load_suite
from evomerge_selector import fake_workers
from evomerge_selector.domain.run import Run

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
                "search": search,
                "seed": seed,
            }
        )


def search(landscape: Landscape, spec: RunSpec, score: Score) -> list[tuple[CandidateProposed, Scores]]:
    """One whole run through the selector's state machine; candidates in order of proposal, with both scores."""
    run = Run("bench")
    found: dict[str, tuple[CandidateProposed, Scores]] = {}

    def scored(job: EvaluateJob) -> tuple[float, list[TaskScore]]:
        candidates = (one.proposed for one in reversed(run.candidates))
        candidate = next(one for one in candidates if one.recipe_digest == job.recipe_digest)
        scores = score(candidate)
        found[job.recipe_digest] = (candidate, scores)
        return landscape.suite.fitness(scores[0]), [TaskScore(task=k, score=v) for k, v in scores[0].items()]

    fake_workers.play(run, spec, lambda job: fake_workers.answer(job, scored, layers=landscape.layers))
    return sorted(found.values(), key=lambda pair: pair[0].index)


# ---- real scores ----


class RealScores:
    """Merges and scores candidates in this process; what the file holds already is not scored again."""

    def __init__(self, landscape: Landscape, file: Path) -> None:
        self.known = {entry["digest"]: entry for entry in _read(file)}
        self.fresh = 0
        self._suite = landscape.suite
        self._models = {str(path): path for path in (*landscape.family.experts, landscape.family.base)}
        self._file = file

    def __call__(self, candidate: CandidateProposed) -> Scores:
        entry = self.known.get(candidate.recipe_digest)
        if entry is None:
            searched, held = self._score(candidate)
            entry = self.known[candidate.recipe_digest] = {
                "digest": candidate.recipe_digest,
                "genome": json.loads(candidate.genome_json),
                "operator": candidate.operator,
                "search": searched,
                "holdout": held,
            }
            with self._file.open("a", encoding="utf-8") as out:
                out.write(json.dumps(entry) + "\n")
            self.fresh += 1
        return entry["search"], entry["holdout"]

    def _score(self, candidate: CandidateProposed) -> Scores:
        from evomerge_scoring import ScoreRequest, child

        model = child.Candidate(folder=None, recipe_json=candidate.recipe_json, models=self._models)
        request = ScoreRequest(suite=self._suite, suite_digest="bench", split="all", threads=1)
        halves: Scores = ({}, {})
        for task, result in zip(self._suite.tasks, child.score(model, request).scores, strict=True):
            for half, held_out in zip(halves, (False, True), strict=True):
                values = [
                    value
                    for item, value in zip(task.items, result.item_scores, strict=True)
                    if item.is_holdout(seed=self._suite.seed, share=self._suite.holdout) == held_out
                ]
                half[task.name] = sum(values) / len(values)
        return halves


def collect(landscape: Landscape, count: int, file: Path) -> None:
    """Real searches of every strategy in turn, until the file holds `count` scored candidates."""
    score = RealScores(landscape, file)
    began, seed = time.monotonic(), 100  # seeds that the comparison does not use
    while len(score.known) < count:
        for strategy in STRATEGIES:
            if len(score.known) < count:
                search(landscape, landscape.spec(strategy, seed, 60), score)
                rate = (time.monotonic() - began) / max(1, score.fresh)
                left = max(0, count - len(score.known)) * rate / 60
                sys.stderr.write(f"{len(score.known)}/{count} scored, {rate:.1f} s each, {left:.0f} min left\n")
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
            if not genome.traits.is_path and not genome.ingredients:
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


Curves = dict[str, list[list[float]]]
"""Strategy → seed → holdout fitness of the champion so far, after each candidate."""


def compare(
    landscape: Landscape, score: Score, strategies: Sequence[str], seeds: range, evaluations: int
) -> Iterator[Curves]:
    """The curves after each seed."""
    curves: Curves = {strategy: [] for strategy in strategies}
    for seed in seeds:
        for strategy in strategies:
            champion, curve, best = 0.0, [], float("-inf")
            for _, (searched, held) in search(landscape, landscape.spec(strategy, seed, evaluations), score):
                fitness = landscape.suite.fitness(searched)
                if fitness > best:
                    best, champion = fitness, landscape.suite.fitness(held)
                curve.append(champion)
            curves[strategy].append(curve)
        yield curves


def table(curves: Curves) -> list[dict[str, Any]]:
    """A row for each strategy: quartiles at the end, and after how many candidates CMA-ES's final median is reached."""
    rows = []
    goal = statistics.median(one[-1] for one in curves["cmaes"]) if "cmaes" in curves else math.inf
    for strategy, runs in curves.items():
        low, middle, high = np.quantile([one[-1] for one in runs], (0.25, 0.5, 0.75))
        medians = np.median(np.array([one[: min(map(len, runs))] for one in runs]), axis=0)
        reached = next((i + 1 for i, value in enumerate(medians) if value >= goal), None)
        behind = sum(one[-1] < first[-1] for one, first in zip(runs, curves["tournament"], strict=True))
        rows.append(
            {"strategy": strategy, "median": middle, "quartiles": [low, high],
             "mean": statistics.mean(one[-1] for one in runs), "seeds_below_tournament": behind,
             "reaches_cmaes_after_candidates": reached}
        )  # fmt: skip
    return rows


def show(rows: Sequence[dict[str, Any]], seeds: int, items: int) -> None:
    for row in rows:
        reached, (low, high) = row["reaches_cmaes_after_candidates"], row["quartiles"]
        words = f"{reached * items:6d} items ({reached} candidates)" if reached else "never"
        print(
            f"{row['strategy']:<12} {row['median']:.4f} [{low:.4f}, {high:.4f}]   mean {row['mean']:.4f}"
            f"   below tournament in {row['seeds_below_tournament']:2d} of {seeds}"
            f"   cmaes's final median reached after {words}",
            flush=True,
        )


def picture(curves: Curves, items: int, file: Path, where: str) -> None:
    """Median and quartiles against items scored."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 5.5), layout="constrained")
    colours = dict(zip(STRATEGIES, ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#666666"), strict=True))
    for strategy, runs in curves.items():
        colour, length = colours[strategy], min(map(len, runs))
        values = np.array([one[:length] for one in runs])
        spent = np.arange(1, length + 1) * items
        low, middle, high = np.quantile(values, (0.25, 0.5, 0.75), axis=0)
        axes.plot(spent, middle, label=strategy, color=colour, linewidth=2)
        axes.fill_between(spent, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.set_xlabel("items scored")
    axes.set_ylabel("champion on held-out items")
    seeds = len(next(iter(curves.values())))
    axes.set_title(f"Search strategies {where}: median and quartiles of {seeds} seeds", loc="left", fontweight="bold")
    axes.legend(frameon=False, loc="upper left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    figure.savefig(file, dpi=130)
    plt.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("search-data.jsonl"), help="scored candidates (JSON Lines)")
    parser.add_argument("--collect", type=int, metavar="N", help="score real candidates until the file holds N")
    parser.add_argument("--real", action="store_true", help="merge and score every candidate; no surrogate")
    parser.add_argument("--out", type=Path, default=Path("bench-search"), help="folder for table, JSON and picture")
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=STRATEGIES, metavar="NAME")
    parser.add_argument("--seeds", type=int, help="how many (default: 30, or 5 with --real)")
    parser.add_argument("--first-seed", type=int, default=1000, help="the first of them (default: %(default)s)")
    parser.add_argument("--evaluations", type=int, help="candidates of a run (default: 120, or 40 with --real)")
    args = parser.parse_args()
    from evomerge_cli.demo.family import build_family
    from evomerge_common.runtime.settings import Settings

    family = build_family(Settings.from_env().model_store.parent / "demo" / "0", seed=0)
    config = json.loads((family.base / "config.json").read_text())
    landscape = Landscape(family, load_suite(family.suite), int(config["num_hidden_layers"]))
    if args.collect:
        collect(landscape, args.collect, args.data)
        return 0
    score: Score
    if args.real:
        score, where = RealScores(landscape, args.data), "on the demo family"
    else:
        entries = _read(args.data)
        if not entries:
            sys.stderr.write(f"{args.data} holds no scored candidates; make some: --collect 400 --data {args.data}\n")
            return 2
        score, where = Surrogate(entries, [task.name for task in landscape.suite.tasks]), "on the surrogate"
        for method, (count, error, explained) in sorted(score.errors.items()):
            print(
                f"surrogate {method:<16} {count:4d} candidates, leave-one-out error {error:.3f}, "
                f"explains {explained:.0%}"
            )
    seeds = range(args.first_seed, args.first_seed + (args.seeds or (5 if args.real else 30)))
    evaluations = args.evaluations or (40 if args.real else 120)
    items = sum(len(landscape.suite.items(task, "search")) for task in landscape.suite.tasks)
    strategies = ["tournament", *(name for name in args.strategies if name != "tournament")]
    args.out.mkdir(parents=True, exist_ok=True)
    began, rows = time.monotonic(), []
    for count, curves in enumerate(compare(landscape, score, strategies, seeds, evaluations), start=1):
        left = (time.monotonic() - began) / count * (len(seeds) - count)
        sys.stderr.write(f"{count} of {len(seeds)} seeds, {left / 60:.1f} min left\n")
        rows = table(curves)
        whole = {"where": where, "seeds": list(seeds)[:count], "evaluations": evaluations,
                 "items_a_candidate": items, "strategies": rows, "curves": curves}  # fmt: skip
        (args.out / "search.json").write_text(json.dumps(whole, indent=1), encoding="utf-8")
    picture(curves, items, args.out / "search.png", where)
    show(rows, len(seeds), items)
    print(f"{args.out}/search.png, {args.out}/search.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
