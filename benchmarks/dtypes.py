"""What bfloat16 does to scores: candidates of the demo family, each scored in float32 and in bfloat16.

Random candidates (weights, methods, paths), merged once a dtype and scored on all items: differences of task scores and
of the suite's, how many items are answered alike, and whether the order of the candidates, which is all that a search
looks at, is the same. On a CPU without bfloat16 products it is emulated: slower, with the same numbers up to the order
of sums. With `--model FOLDER` the same of a model of your own and copies of it with seeded noise on every matrix.

    evomerge bench dtypes --candidates 60
    evomerge bench dtypes --model smollm2-135m --candidates 4 --suite suite.yaml
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from evomerge_common.domain.messages import CandidateProposed, EvaluateJob, TaskScore
from evomerge_common.domain.recipe import Recipe
from evomerge_common.domain.spec import RunSpec
from evomerge_common.domain.suite import Suite
from evomerge_common.runtime.suite_file import load_suite
from evomerge_scoring import ScoreReport, ScoreRequest
from evomerge_scoring.scorer import Load, Scorer
from evomerge_scoring.speeds import SHAPE, cpu_name, measure
from evomerge_selector import fake_workers
from evomerge_selector.domain.run import Run

DTYPES = ("float32", "bfloat16")
NOISE = 0.02
"""Of a changed copy, as a share of each matrix's standard deviation, times its number."""


@dataclass
class Both:
    """One candidate's reports, by dtype."""

    name: str
    reports: dict[str, ScoreReport]

    def score(self, dtype: str, task: str) -> float:
        return next(one.score for one in self.reports[dtype].scores if one.task == task)

    def alike(self, task: str) -> tuple[int, int]:
        """Items whose score is the same in both, and all items."""
        first, second = (next(s.item_scores for s in self.reports[d].scores if s.task == task) for d in DTYPES)
        return sum(a == b for a, b in zip(first, second, strict=True)), len(first)


def proposals(spec: RunSpec, layers: int) -> list[CandidateProposed]:
    """What a run of this spec proposes, whatever it scores (a random search looks at no score)."""
    run = Run("bench")

    def scored(job: EvaluateJob) -> tuple[float, list[TaskScore]]:
        value = int(job.recipe_digest[:8], 16) / 2**32
        return value, [TaskScore(task="any", score=value)]

    fake_workers.play(run, spec, lambda job: fake_workers.answer(job, scored, layers=layers))
    return [candidate.proposed for candidate in run.candidates]


def of_the_family(count: int) -> tuple[Suite, Iterator[tuple[str, Any]]]:
    from evomerge_cli.demo.family import build_family
    from evomerge_common.runtime.settings import Settings

    family = build_family(Settings.from_env().model_store.parent / "demo" / "0", seed=0)
    layers = int(json.loads((family.base / "config.json").read_text())["num_hidden_layers"])
    search = {"strategy": "random", "evaluations": count, "population": 16}
    models = {str(path): path for path in (*family.experts, family.base)}
    spec = RunSpec.from_dict(
        {"models": [str(path) for path in family.experts], "base": str(family.base), "search": search, "seed": 24}
    )

    @contextmanager
    def merged(recipe: Recipe) -> Iterator[Load]:
        from evomerge_merging import plan_merge

        with plan_merge(recipe, models) as plan:
            yield lambda backend: backend.load_plan(plan)

    made = ((f"#{one.index}", merged(Recipe.from_json(one.recipe_json))) for one in proposals(spec, layers))
    return load_suite(family.suite), made


def of_a_model(folder: Path, count: int) -> Iterator[tuple[str, Any]]:
    """The model as it is, then copies with more and more noise."""
    from safetensors.torch import load_file

    @contextmanager
    def changed(number: int) -> Iterator[Load]:
        generator = torch.Generator().manual_seed(number)
        tensors = {}
        for file in sorted(folder.glob("*.safetensors")):
            for name, tensor in load_file(file).items():
                noise = torch.randn(tensor.shape, generator=generator) if number and tensor.dim() == 2 else 0.0
                spread = NOISE * number * float(tensor.float().std())
                tensors[name] = (tensor.float() + spread * noise).to(tensor.dtype)
        yield lambda backend: backend.load_tensors(tensors, folder)

    return ((f"noise {NOISE * number:.2f}", changed(number)) for number in range(count))


def compare(suite: Suite, made: Iterator[tuple[str, Any]], threads: int) -> Iterator[Both]:
    scorers = {dtype: Scorer(device="cpu", backend="torch") for dtype in DTYPES}
    for name, opened in made:
        with opened as load:
            yield Both(
                name,
                {
                    dtype: scorer.score(load, ScoreRequest(suite=suite, split="all", threads=threads, dtype=dtype))
                    for dtype, scorer in scorers.items()
                },
            )


def ranks(values: Sequence[float]) -> list[float]:
    """Places of the values, ties shared."""
    order = sorted(values)
    return [order.index(value) + (order.count(value) - 1) / 2 for value in values]


def summary(found: Sequence[Both], suite: Suite) -> dict[str, Any]:
    rows = []
    for task in suite.tasks:
        differences = [abs(b.score("bfloat16", task.name) - b.score("float32", task.name)) for b in found]
        pairs = [both.alike(task.name) for both in found]
        alike = sum(a for a, _ in pairs) / max(1, sum(n for _, n in pairs))
        rows.append({"task": task.name, "kind": task.kind, **spread(differences), "items_alike": alike})
    fitness = [[both.reports[dtype].fitness for both in found] for dtype in DTYPES]
    wrong = [abs(a - b) for a, b in zip(*fitness, strict=True)]
    rows.append({"task": "suite", "kind": "", **spread(wrong), "items_alike": None})
    champion = max(range(len(found)), key=lambda i: fitness[1][i])
    return {
        "cpu": cpu_name(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "candidates": len(found),
        "rows": rows,
        "rank_correlation": statistics.correlation(ranks(fitness[0]), ranks(fitness[1])) if len(found) > 1 else None,
        "same_champion": fitness[0][champion] == max(fitness[0]),
        "champion_loses": max(fitness[0]) - fitness[0][champion],
        "spread_of_fitness": statistics.pstdev(fitness[0]),
        "seconds": {dtype: sum(both.reports[dtype].seconds for both in found) for dtype in DTYPES},
        "gflops": vars(measure(SHAPE)),
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "mean": statistics.mean(values), "most": max(values)}


def show(result: dict[str, Any]) -> None:
    print(f"{result['candidates']} candidates, {result['cpu']} ({result['capability']})")
    speeds = result["gflops"]
    print(f"products: float32 {speeds['float32']:.0f}, bfloat16 {speeds['bfloat16']:.0f} GFLOP/s")
    print(f"{'task':<14} {'kind':<16} difference of the score: median, mean, most   items scored alike")
    for row in result["rows"]:
        alike = "" if row["items_alike"] is None else f"{row['items_alike']:.2%}"
        values = f"{row['median']:.5f}  {row['mean']:.5f}  {row['most']:.5f}"
        print(f"{row['task']:<14} {row['kind']:<16} {values:>31} {alike:>31}")
    if result["rank_correlation"] is not None:
        print(f"rank correlation of the fitness {result['rank_correlation']:.4f}", end="; ")
    same = "the same" if result["same_champion"] else f"another, {result['champion_loses']:.4f} lower in float32"
    print(f"champion: {same}; fitness spreads by {result['spread_of_fitness']:.3f}")
    print("seconds: " + ", ".join(f"{dtype} {seconds:.0f}" for dtype, seconds in result["seconds"].items()))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--candidates", type=int, default=60, help="how many (default: %(default)s)")
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="a model of your own instead of the family")
    parser.add_argument("--suite", type=Path, metavar="SUITE.yaml", help="for --model (default: the demo family's)")
    parser.add_argument("--limit", type=int, metavar="N", help="the first items of each task")
    parser.add_argument("--seconds", type=float, default=480, help="stop after so many (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    suite, made = of_the_family(args.candidates)
    if args.model:
        suite, made = load_suite(args.suite) if args.suite else suite, of_a_model(args.model, args.candidates)
    if args.limit:
        tasks = [{**task, "items": task["items"][: args.limit]} for task in suite.to_dict()["tasks"]]
        suite = Suite.from_dict({**suite.to_dict(), "holdout": 0, "tasks": tasks})
    began, found = time.monotonic(), []
    for both in compare(suite, made, args.threads):
        found.append(both)
        sys.stderr.write(f"{both.name}: " + ", ".join(f"{d} {r.fitness:.4f}" for d, r in both.reports.items()) + "\n")
        if time.monotonic() - began > args.seconds:
            break
    result = summary(found, suite)
    show(result)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
