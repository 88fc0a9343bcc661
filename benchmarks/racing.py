"""What racing spares and what it loses: real runs without a race, judged again with one, over many orders of the items.

Give it the output folders of runs that did not race (the default); their logs hold every candidate's answer to every
item. The selector's own race then judges each candidate in order of proposal. "lost": how often the champion of the
whole run would have been stopped; "regret": how much lower the champion found instead scored, on search items.

    evomerge bench racing RUN_DIR … [--orders 40] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge_cli.run_folder import RunFolder
from evomerge_common.domain import messages as m
from evomerge_common.domain.spec import RacingSpec
from evomerge_selector.domain.race import Race

RULES = {
    "default": RacingSpec(),
    "no haste": RacingSpec(early=0.0),
    "rungs 1/4, 1/2": RacingSpec(rungs=(0.25, 0.5)),
    "margin 1/2": RacingSpec(margin=0.5),
    "confidence 1/2": RacingSpec(confidence=0.5),
    "confidence 0.95": RacingSpec(confidence=0.95),
    "against the second": RacingSpec(rank=2),
}


@dataclass
class Run:
    """Candidates in order of proposal, (recipe digest, search result) each; the first `sources` are sources."""

    name: str
    tasks: tuple[m.TaskShape, ...]
    sources: int
    in_flight: int
    candidates: list[tuple[str, m.CandidateEvaluated]]


def read(folder: Path) -> Run:
    """A run from its log."""
    proposed: dict[str, m.CandidateProposed] = {}
    results: dict[str, m.CandidateEvaluated] = {}
    tasks: tuple[m.TaskShape, ...] = ()
    in_flight = 1
    for recorded in RunFolder(folder).events():
        match recorded.event.payload:
            case m.RunStarted() as started:
                tasks = started.tasks
                in_flight = int(json.loads(started.spec_json)["search"]["in_flight"])
            case m.CandidateProposed() as candidate:
                proposed[candidate.recipe_digest] = candidate
            case m.CandidateEvaluated(split="search", partial=False) as result:
                results.setdefault(result.recipe_digest, result)
            case m.CandidateRaced():
                raise SystemExit(f"{folder} was a race: its log does not hold every answer; run it without racing")
            case _:
                pass
    scored = [(digest, results[digest]) for digest in proposed if digest in results]
    sources = sum(proposed[digest].operator == "source" for digest, _ in scored)
    return Run(folder.name, tasks, sources, in_flight, scored)


def race(run: Run, rules: RacingSpec, seed: int) -> tuple[float, bool, float]:
    """(share of the items, whether the whole run's champion was lost, regret) of one order of the items."""
    track = Race(rules, run.tasks, seed=seed)
    size = sum(one.items for one in run.tasks)
    budget = size * len(run.candidates)
    spent, whole = run.sources * size, list(range(run.sources))
    for index, (_, result) in enumerate(run.candidates):
        if index == run.sources:
            track.open()
        reads = max(run.sources, index - run.in_flight + 1)
        following = max(run.sources, index - run.in_flight + 2)
        if index < run.sources:
            track.whole(index, result.scores)
            track.count(index, result.fitness, following, index + 1)
            continue
        verdict = _run(track, run, index, reads)
        spent += verdict.items
        track.count(index, None if verdict.stopped else verdict.fitness, following, spent / size)
        if not verdict.stopped:
            whole.append(index)
    fitness = [result.fitness for _, result in run.candidates]
    best = max(range(len(fitness)), key=lambda i: (fitness[i], -i))
    found = max(whole, key=lambda i: (fitness[i], -i))
    return spent / budget, found != best, fitness[best] - fitness[found]


def _run(track: Race, run: Run, index: int, reads: int) -> m.CandidateRaced:
    digest, result = run.candidates[index]
    answers = {one.task: one.item_scores for one in result.scores}
    asked = track.start(digest, "", reads)
    runner = track.runners[digest]
    while True:
        parts = [
            m.TaskScore(
                task=one.task, item_scores=tuple(answers[one.task][i] for i in one.positions), positions=one.positions
            )
            for one in asked
        ]
        track.advance(digest, runner.step, parts)
        verdict = track.judge(digest, index, lambda place: run.candidates[place][0])
        if verdict is not None:
            del track.runners[digest]
            return verdict
        runner.step += 1
        asked = track.items(runner)


def table(runs: Sequence[Run], orders: int) -> Iterator[dict[str, Any]]:
    for name, rules in RULES.items():
        found = [[race(run, rules, 1000 * place + seed) for seed in range(orders)] for place, run in enumerate(runs)]
        every = [one for some in found for one in some]
        yield {
            "rules": name,
            "items": sum(one[0] for one in every) / len(every),
            "items_by_run": {
                run.name: sum(one[0] for one in some) / len(some) for run, some in zip(runs, found, strict=True)
            },
            "lost": sum(one[1] for one in every) / len(every),
            "regret": sum(one[2] for one in every) / len(every),
            "replays": len(every),
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR")
    parser.add_argument("--orders", type=int, default=40, help="orders of the items (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    runs = [read(folder) for folder in args.runs]
    rows = []
    print(f"{'rules':<26} {'items':>7} {'lost':>7} {'regret':>8}   items by run")
    for row in table(runs, args.orders):
        rows.append(row)
        each = "  ".join(f"{share:.0%}" for share in row["items_by_run"].values())
        print(f"{row['rules']:<26} {row['items']:7.1%} {row['lost']:7.1%} {row['regret']:8.4f}   {each}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
