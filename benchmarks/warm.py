"""A second search on the same sources and items, begun cold or with the first one's results (`search.warm_start`).

Counted are candidates in order of proposal, sources included, until one is at least as fit as the first search's
champion: in the first search, in a second one with another seed that begins cold, and in the same begun warm. With a
warm start that champion is proposed right after the sources and scored again, so it is also counted until a candidate
that the first search did not have is as fit.

    evomerge bench warm --data scored.jsonl           # on the surrogate; scored candidates: `evomerge bench search`
    evomerge bench warm --real --data real.jsonl      # on the demo family itself, every candidate merged and scored
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from search import Landscape, RealScores, Score, Surrogate, _read  # beside this script

from evomerge_cli.demo.family import build_family
from evomerge_common.domain.earlier import EarlierRun, earlier_candidates
from evomerge_common.domain.messages import EarlierCandidate, EvaluateJob, Event, RunStarted, TaskScore
from evomerge_common.domain.spec import RunSpec
from evomerge_common.runtime.settings import Settings
from evomerge_common.runtime.suite_file import load_suite
from evomerge_selector import fake_workers
from evomerge_selector.domain.run import Run


def played(
    landscape: Landscape, spec: RunSpec, score: Score, earlier: tuple[EarlierCandidate, ...] = ()
) -> tuple[Run, list[Event]]:
    """One whole run, and its log."""
    run, events = Run("bench"), list[Event]()

    def scored(job: EvaluateJob) -> tuple[float, list[TaskScore]]:
        index = {one.proposed.recipe_digest: one.proposed for one in run.candidates}
        items = score(index[job.recipe_digest], "search")
        scores = [
            TaskScore(task=task, score=sum(one) / len(one), item_scores=tuple(one)) for task, one in items.items()
        ]
        return landscape.fitness(items), scores

    fake_workers.play(
        run,
        spec,
        lambda job: fake_workers.answer(job, scored, layers=landscape.layers),
        started=RunStarted(
            spec_json=spec.to_json(), suite_digest=landscape.suite.digest, tasks=landscape.tasks, earlier=earlier
        ),
        record=events.append,
    )
    return run, events


def reached(run: Run, goal: float, *, without: frozenset[str] = frozenset()) -> int | None:
    """Counts the candidates until one is as fit as the goal; None when none is."""
    for count, one in enumerate(run.candidates, start=1):
        if (one.fitness or 0.0) >= goal and one.proposed.recipe_digest not in without:
            return count
    return None


def best_within(run: Run, count: int) -> float:
    """Finds the fitness of the best of the first candidates."""
    return max(one.fitness or 0.0 for one in run.candidates[:count])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("search-data.jsonl"), help="scored candidates (JSON Lines)")
    parser.add_argument("--real", action="store_true", help="merge and score every candidate; no surrogate")
    parser.add_argument("--seeds", type=int, help="how many pairs of searches (default: 20, or 3 with --real)")
    parser.add_argument("--evaluations", type=int, default=40, help="candidates of a first search (default: 40)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there")
    args = parser.parse_args()
    family = build_family(Settings.from_env().model_store.parent / "demo" / "0", seed=0)
    config = json.loads((family.base / "config.json").read_text())
    landscape = Landscape(family, load_suite(family.suite), int(config["num_hidden_layers"]))
    score: Score
    if args.real:
        score = RealScores(landscape, args.data)
    elif entries := _read(args.data):
        score = Surrogate(entries)
    else:
        sys.stderr.write(f"{args.data} holds no scored candidates; evomerge bench search --collect 400 makes some\n")
        return 2
    budget, rows = args.evaluations, list[dict[str, Any]]()
    for seed in range(3000, 3000 + (args.seeds or (3 if args.real else 20))):
        first, events = played(landscape, landscape.spec("tournament", seed, budget), score)
        spec = landscape.spec("tournament", seed + 1000, budget if args.real else 3 * budget)
        earlier = tuple(earlier_candidates([EarlierRun("first", events)], spec, landscape.suite))
        cold, warm = played(landscape, spec, score)[0], played(landscape, spec, score, earlier)[0]
        goal = first.champion.fitness or 0.0
        known = frozenset(one.proposed.recipe_digest for one in first.candidates)
        row = {
            "seed": seed,
            "goal": goal,
            "first": reached(first, goal),
            "cold": reached(cold, goal),
            "warm": reached(warm, goal),
            "warm_new": reached(warm, goal, without=known),
            "cold_end": best_within(cold, budget),
            "warm_end": best_within(warm, budget),
            "budget": spec.search.evaluations,
        }
        rows.append(row)
        print(row, flush=True)
    for key in ("first", "cold", "warm", "warm_new"):
        found = [float(row[key] or "inf") for row in rows]
        never = found.count(float("inf"))
        print(f"{key:<9} median {statistics.median(found):g} candidates; never in {never} of {len(found)}")
    for key in ("goal", "cold_end", "warm_end"):
        print(f"{key:<9} median fitness {statistics.median(row[key] for row in rows):.4f} within {budget} candidates")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
