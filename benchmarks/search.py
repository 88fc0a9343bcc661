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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from evomerge_common.domain.genome import Genome
from evomerge_common.domain.messages import CandidateProposed, EvaluateJob, RunStarted, TaskScore, TaskShape
from evomerge_common.domain.spec import RunSpec
from evomerge_common.domain.suite import Suite
from evomerge_common.runtime.suite_file import load_suite
from evomerge_selector import fake_workers
from evomerge_selector.domain.run import Run

STRATEGIES = ("race", "tournament", "nsga2", "map_elites", "cmaes", "tpe", "random")
"""`race` is the tournament that scores a part of the items; all others score every item."""
CMAES_METHODS = ["task_arithmetic"]
"""mergekit-evolve's genome: weights × layer groups of one method."""

SPLITS = ("search", "holdout")

Items = dict[str, list[float]]
"""Task → score of every item of a split."""
Asked = Mapping[str, Sequence[int]]
"""Task → places in a split's order."""


class Score(Protocol):
    """Answers items for a candidate."""

    def __call__(self, candidate: CandidateProposed, split: str, asked: Asked | None = None) -> Items:
        """Returns the scores of those items of a split (search or holdout), in the order asked; of all by default."""


@dataclass
class Landscape:
    """A family that can be searched."""

    family: Any
    suite: Suite
    layers: int

    def spec(self, strategy: str, seed: int, evaluations: int, racing: Any = True) -> RunSpec:
        is_race = strategy == "race"
        search: dict[str, Any] = {"strategy": "tournament" if is_race else strategy, "evaluations": evaluations}
        search |= {"population": 16, "racing": racing if is_race else False}
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

    def fitness(self, items: Items) -> float:
        return self.suite.fitness({task: sum(values) / len(values) for task, values in items.items()})

    @property
    def tasks(self) -> tuple[TaskShape, ...]:
        sizes = ((task, len(self.suite.items(task, "search"))) for task in self.suite.tasks)
        return tuple(TaskShape(task=task.name, weight=task.weight, items=size) for task, size in sizes)


@dataclass
class Found:
    """A whole run.

    Attributes:
        curve: after each candidate, in order of proposal: items scored so far, holdout fitness of the champion so far.
        inside: of each estimate of a race whether its interval has what all items gave.
        errors: of each estimate of a race.

    """

    curve: list[tuple[int, float]] = field(default_factory=list)
    inside: list[bool] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)


def search(landscape: Landscape, spec: RunSpec, score: Score, checked: float = 1.0) -> Found:
    """One whole run through the selector's state machine; `checked`: share of its estimates that are checked."""
    run = Run("bench")
    index: dict[str, int] = {}

    def scored(job: EvaluateJob) -> tuple[float, list[TaskScore]]:
        while len(index) < len(run.candidates):
            index[run.candidates[len(index)].proposed.recipe_digest] = len(index)
        proposed = run.candidates[index[job.recipe_digest]].proposed
        asked = {one.task: one.positions for one in job.items}
        found = score(proposed, "search", asked or None)
        scores = [
            TaskScore(task=task, score=sum(v) / len(v), item_scores=tuple(v), positions=tuple(asked.get(task, ())))
            for task, v in found.items()
        ]
        return landscape.fitness(found), scores

    fake_workers.play(
        run,
        spec,
        lambda job: fake_workers.answer(job, scored, layers=landscape.layers),
        started=RunStarted(spec_json=spec.to_json(), tasks=landscape.tasks),
    )
    found, spent, champion, best = Found(), 0, 0.0, float("-inf")
    size = sum(one.items for one in landscape.tasks)
    for one in run.candidates:
        if one.fitness is None:
            continue
        spent += one.raced.items if one.raced else size
        if one.is_whole and one.fitness > best:
            best, champion = one.fitness, landscape.fitness(score(one.proposed, "holdout"))
        found.curve.append((spent, champion))
        if one.raced and one.raced.estimates and int(one.proposed.recipe_digest[:6], 16) < checked * 16**6:
            true = landscape.fitness(score(one.proposed, "search"))
            found.inside += [guess.low <= true <= guess.high for guess in one.raced.estimates]
            found.errors += [guess.fitness - true for guess in one.raced.estimates]
    return found


# ---- real scores ----


class RealScores:
    """Merges and scores candidates in this process; items that the file holds already are not scored again.

    A line of the file is a candidate's genome and `search` and `holdout`: task → score of each item, null where it was
    not asked. Of several lines of a candidate each adds to the one before.
    """

    def __init__(self, landscape: Landscape, file: Path) -> None:
        self.known = {entry["digest"]: entry for entry in _read(file)}
        self.fresh = 0
        self._suite = landscape.suite
        self._sizes = {
            split: {task.name: len(self._suite.items(task, split)) for task in self._suite.tasks} for split in SPLITS
        }
        self._models = {str(path): path for path in (*landscape.family.experts, landscape.family.base)}
        self._file = file

    def __call__(self, candidate: CandidateProposed, split: str, asked: Asked | None = None) -> Items:
        wanted = asked or {task: range(size) for task, size in self._sizes[split].items()}
        entry = self.known.setdefault(
            candidate.recipe_digest,
            {
                "digest": candidate.recipe_digest,
                "genome": json.loads(candidate.genome_json),
                "operator": candidate.operator,
                **{name: {task: [None] * size for task, size in self._sizes[name].items()} for name in SPLITS},
            },
        )
        answers = entry[split]
        missing = {task: [place for place in places if answers[task][place] is None] for task, places in wanted.items()}
        missing = {task: places for task, places in missing.items() if places}
        if missing:
            found = self._score(candidate, split, missing)
            for task, places in missing.items():
                for place, value in zip(places, found[task], strict=True):
                    answers[task][place] = value
            with self._file.open("a", encoding="utf-8") as out:
                out.write(json.dumps(entry) + "\n")
            self.fresh += 1
        return {task: [answers[task][place] for place in places] for task, places in wanted.items()}

    def _score(self, candidate: CandidateProposed, split: str, asked: Asked) -> dict[str, Sequence[float]]:
        from evomerge_scoring import ScoreRequest, child

        model = child.Candidate(folder=None, recipe_json=candidate.recipe_json, models=self._models)
        request = ScoreRequest(suite=self._suite, suite_digest="bench", split=split, threads=1, places=asked)
        return {one.task: one.item_scores for one in child.score(model, request).scores}


def collect(landscape: Landscape, count: int, file: Path) -> None:
    """Real searches of every strategy in turn, until the file holds `count` candidates with all items."""
    score = RealScores(landscape, file)
    began, seed = time.monotonic(), 100  # seeds that the comparison does not use

    def whole(candidate: CandidateProposed, split: str, asked: Asked | None = None) -> Items:
        score(candidate, "holdout")
        return score(candidate, split, asked)

    while len(score.known) < count:
        for strategy in STRATEGIES[1:]:
            if len(score.known) < count:
                search(landscape, landscape.spec(strategy, seed, 60), whole)
                rate = (time.monotonic() - began) / max(1, score.fresh)
                left = max(0, count - len(score.known)) * rate / 60
                sys.stderr.write(f"{len(score.known)}/{count} scored, {rate:.1f} s each, {left:.0f} min left\n")
        seed += 1


def _read(file: Path) -> list[dict[str, Any]]:
    """The candidates of a file, each as its last line says."""
    lines = file.read_text("utf-8").splitlines() if file.exists() else []
    return list({entry["digest"]: entry for entry in map(json.loads, lines)}.values())


def _is_whole(entry: dict[str, Any]) -> bool:
    return not any(None in values for split in SPLITS for values in entry[split].values())


# ---- the surrogate ----


class Surrogate:
    """Kernel ridge regression of every item's score for each method; others answer as their nearest neighbour.

    What it predicts is blurred by noise of the size of its leave-one-out error at that item, the same for the same
    candidate; an item that is passed or failed is passed beyond a half. So candidates are as hard to tell from a part
    of the items as real ones are.
    """

    def __init__(self, entries: Sequence[dict[str, Any]]) -> None:
        self._columns = [(split, task, len(v)) for split in SPLITS for task, v in entries[0][split].items()]
        self._answers: dict[str, dict[str, Items]] = {}
        self._models: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray, float, np.ndarray]] = {}
        self._known = {_key(Genome.from_json(json.dumps(entry["genome"]))): entry for entry in entries}
        self.errors: dict[str, tuple[int, float, float]] = {}
        self._paths: list[tuple[Genome, dict[str, Any]]] = []
        every = np.array([self._flat(entry) for entry in entries])
        self._is_yes_or_no = np.isin(every, (0.0, 1.0)).all(axis=0)
        groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for entry in entries:
            genome = Genome.from_json(json.dumps(entry["genome"]))
            if not genome.traits.is_path and not genome.ingredients:
                groups[genome.method].append(entry)
            else:
                self._paths.append((genome, entry))
        for method, members in groups.items():
            inputs = np.array([_features(Genome.from_json(json.dumps(one["genome"]))) for one in members])
            self._fit(method, inputs, np.array([self._flat(one) for one in members]))

    def _flat(self, entry: dict[str, Any]) -> list[float]:
        return [value for split, task, _ in self._columns for value in entry[split][task]]

    def _fit(self, method: str, inputs: np.ndarray, outputs: np.ndarray) -> None:
        mean = outputs.mean(axis=0)
        best: tuple[float, float, float, np.ndarray] | None = None
        for width in (0.3, 0.5, 0.8, 1.2, 2.0, 3.0):
            for ridge in (1e-3, 1e-2, 1e-1):
                inverse = np.linalg.inv(_kernel(inputs, inputs, width) + ridge * np.eye(len(inputs)))
                # Leave-one-out residuals of a linear smoother, in closed form.
                residual = (inverse @ (outputs - mean)) / np.diag(inverse)[:, None]
                error = float((residual**2).mean())
                if best is None or error < best[0]:
                    best = (error, width, ridge, np.sqrt((residual**2).mean(axis=0)))
        assert best is not None
        error, width, ridge, blur = best
        weights = np.linalg.solve(_kernel(inputs, inputs, width) + ridge * np.eye(len(inputs)), outputs - mean)
        self._models[method] = (inputs, weights, mean, width, blur)
        spread = float(((outputs - mean) ** 2).mean())
        self.errors[method] = (len(inputs), error**0.5, 1.0 - error / spread if spread else 0.0)

    def __call__(self, candidate: CandidateProposed, split: str, asked: Asked | None = None) -> Items:
        if candidate.recipe_digest not in self._answers:
            self._answers[candidate.recipe_digest] = self._answer(candidate)
        whole = self._answers[candidate.recipe_digest][split]
        return {task: [whole[task][place] for place in places] for task, places in (asked or _places(whole)).items()}

    def _answer(self, candidate: CandidateProposed) -> dict[str, Items]:
        genome = Genome.from_json(candidate.genome_json)
        entry = self._known.get(_key(genome))
        if entry is None and (genome.method not in self._models or genome.ingredients):
            entry = min(self._paths, key=lambda pair: (genome.distance(pair[0]), pair[1]["digest"]))[1]
        if entry is not None:
            return entry
        inputs, weights, mean, width, blur = self._models[genome.method]
        values = mean + _kernel(np.array([_features(genome)]), inputs, width)[0] @ weights
        noise = np.random.default_rng(int(candidate.recipe_digest[:12], 16)).standard_normal(len(values))
        values = values + blur * noise
        values = np.where(self._is_yes_or_no, (values > 0.5).astype(float), np.clip(values, 0.0, 1.0))
        found: dict[str, Items] = {split: {} for split in SPLITS}
        place = 0
        for split, task, size in self._columns:
            found[split][task] = values[place : place + size].tolist()
            place += size
        return found


def _places(items: Items) -> Asked:
    return {task: range(len(values)) for task, values in items.items()}


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

Results = dict[str, list[Found]]
"""Strategy → a run for each seed."""


def compare(
    landscape: Landscape, score: Score, strategies: Sequence[str], seeds: range, evaluations: int, checked: float
) -> Iterator[Results]:
    """The results after each seed."""
    results: Results = {strategy: [] for strategy in strategies}
    for seed in seeds:
        for strategy in strategies:
            spec = landscape.spec(strategy, seed, evaluations)
            results[strategy].append(search(landscape, spec, score, checked))
        yield results


def median_after(runs: Sequence[Found], items: int) -> float:
    """Median over the runs of the champion's holdout fitness when so many items were scored."""
    return statistics.median(
        next((value for spent, value in reversed(run.curve) if spent <= items), 0.0) for run in runs
    )


def reached(runs: Sequence[Found], goal: float, items: int) -> int | None:
    """Items after which the median reaches the goal; steps of a tenth of a candidate."""
    last = max(run.curve[-1][0] for run in runs)
    grid = range(items, last + items // 10, max(1, items // 10))
    return next((spent for spent in grid if median_after(runs, spent) >= goal), None)


def difference(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """Mean paired difference and its 95% interval by bootstrap over the seeds."""
    gaps = np.array(ours) - np.array(theirs)
    drawn = np.random.default_rng(0).choice(gaps, (4000, len(gaps))).mean(axis=1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(gaps.mean()), float(low), float(high)


def table(results: Results, items: int) -> list[dict[str, Any]]:
    """A row for each strategy, compared with the tournament that scores every item."""
    ends = {name: [run.curve[-1][1] for run in runs] for name, runs in results.items()}
    rows = []
    for name, runs in results.items():
        low, middle, high = np.quantile(ends[name], (0.25, 0.5, 0.75))
        gap, least, most = difference(ends[name], ends["tournament"])
        inside = [one for run in runs for one in run.inside]
        errors = [one for run in runs for one in run.errors]
        rows.append(
            {"strategy": name, "median": float(middle), "quartiles": [float(low), float(high)],
             "mean": statistics.mean(ends[name]), "items": statistics.mean(run.curve[-1][0] for run in runs),
             "candidates": statistics.mean(len(run.curve) for run in runs),
             "above_tournament": gap, "above_tournament_interval95": [least, most],
             **{f"reaches_{goal}_after_items": reached(runs, statistics.median(ends[goal]), items)
                for goal in ("tournament", "cmaes") if goal in ends},
             "estimates": len(errors), "coverage95": statistics.mean(inside) if inside else None,
             "estimate_rmse": math.sqrt(statistics.mean(e * e for e in errors)) if errors else None}
        )  # fmt: skip
    return rows


def show(rows: Sequence[dict[str, Any]]) -> None:
    whole = next(row["items"] for row in rows if row["strategy"] == "tournament")
    for row in rows:
        (low, high), (least, most) = row["quartiles"], row["above_tournament_interval95"]
        words = f"{row['strategy']:<11} {row['median']:.4f} [{low:.4f}, {high:.4f}]  mean {row['mean']:.4f}"
        words += f"  {row['items']:.0f} items, {row['candidates']:.0f} candidates"
        words += f"  above tournament {row['above_tournament']:+.4f} [{least:+.4f}, {most:+.4f}]"
        for goal in ("tournament", "cmaes"):
            if f"reaches_{goal}_after_items" in row:
                after = row[f"reaches_{goal}_after_items"]
                words += f"  {goal}'s end after " + (f"{after} items ({after / whole:.0%})" if after else "no items")
        if row["estimates"]:
            words += f"  {row['estimates']} estimates: rmse {row['estimate_rmse']:.4f}, covered {row['coverage95']:.1%}"
        print(words, flush=True)


def picture(results: Results, items: int, file: Path, where: str) -> None:
    """Median and quartiles against items scored."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 5.5), layout="constrained")
    colours = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#666666")
    for strategy, runs in results.items():
        colour = colours[STRATEGIES.index(strategy)]
        step = max(1, items // 10)
        spent = np.arange(
            items, max(run.curve[-1][0] for run in runs) + step, step
        )  # to the end, and not just short of it
        values = np.array([[next((v for s, v in reversed(run.curve) if s <= x), 0.0) for x in spent] for run in runs])
        low, middle, high = np.quantile(values, (0.25, 0.5, 0.75), axis=0)
        axes.plot(spent, middle, label=strategy, color=colour, linewidth=2)
        axes.fill_between(spent, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.set_xlabel("items scored")
    axes.set_ylabel("champion on held-out items")
    seeds = len(next(iter(results.values())))
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
    parser.add_argument("--family", type=Path, metavar="FOLDER", help="search the second family, which lies there")
    parser.add_argument("--out", type=Path, default=Path("bench-search"), help="folder for table, JSON and picture")
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=STRATEGIES, metavar="NAME")
    parser.add_argument("--seeds", type=int, help="how many (default: 30, or 5 with --real)")
    parser.add_argument("--first-seed", type=int, default=1000, help="the first of them (default: %(default)s)")
    parser.add_argument("--evaluations", type=int, help="candidates of a run (default: 120, or 40 with --real)")
    parser.add_argument(
        "--checked", type=float, default=0.25,
        help="share of a race's candidates whose estimates are compared with all items, with --real (%(default)s)",
    )  # fmt: skip
    args = parser.parse_args()
    from second_family import build_second_family

    from evomerge_cli.demo.family import build_family
    from evomerge_common.runtime.settings import Settings

    demo = Settings.from_env().model_store.parent / "demo" / "0"
    family = build_second_family(args.family) if args.family else build_family(demo, seed=0)
    config = json.loads((family.base / "config.json").read_text())
    landscape = Landscape(family, load_suite(family.suite), int(config["num_hidden_layers"]))
    if args.collect:
        collect(landscape, args.collect, args.data)
        return 0
    score: Score
    if args.real:
        score, where = RealScores(landscape, args.data), f"on the {'second' if args.family else 'demo'} family"
    else:
        entries = [entry for entry in _read(args.data) if _is_whole(entry)]
        if not entries:
            sys.stderr.write(f"{args.data} holds no scored candidates; make some: --collect 400 --data {args.data}\n")
            return 2
        score, where = Surrogate(entries), "on the surrogate"
        for method, (count, error, explained) in sorted(score.errors.items()):
            print(
                f"surrogate {method:<16} {count:4d} candidates, leave-one-out error {error:.3f} an item, "
                f"explains {explained:.0%}"
            )
    seeds = range(args.first_seed, args.first_seed + (args.seeds or (5 if args.real else 30)))
    evaluations = args.evaluations or (40 if args.real else 120)
    items = sum(one.items for one in landscape.tasks)
    strategies = ["tournament", *(name for name in args.strategies if name != "tournament")]
    args.out.mkdir(parents=True, exist_ok=True)
    began, rows = time.monotonic(), []
    checked = args.checked if args.real else 1.0
    for count, results in enumerate(compare(landscape, score, strategies, seeds, evaluations, checked), start=1):
        left = (time.monotonic() - began) / count * (len(seeds) - count)
        sys.stderr.write(f"{count} of {len(seeds)} seeds, {left / 60:.1f} min left\n")
        rows = table(results, items)
        curves = {name: [run.curve for run in runs] for name, runs in results.items()}
        whole = {"where": where, "seeds": list(seeds)[:count], "evaluations": evaluations,
                 "items_a_candidate": items, "strategies": rows, "curves": curves}  # fmt: skip
        (args.out / "search.json").write_text(json.dumps(whole, indent=1), encoding="utf-8")
    picture(results, items, args.out / "search.png", where)
    show(rows)
    print(f"{args.out}/search.png, {args.out}/search.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
