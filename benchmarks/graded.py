"""Partial credit against exact match alone: a skill that merges all but lose, searched for with and without it.

Makes a trio of small models in which no first merge has anything of a skill of free generation (numbers written as
words, to the letter): its expert itself has but a fourth of it, and what is nine tenths that expert keeps most of that.
Searches it with the same seeds and budgets twice: `exact`, where the search sees the task's score alone, and
`--fitness`: `auto`, where it is told a share of the likelihood of the right answers, too, once the first merges show
that the skill dies (the table says whether it did), or `graded`, always. Tells how many candidates and champions have
the skill, on search items and on held-out ones: both by the task's own metric.

    evomerge bench graded --folder graded --seeds 3    # about a second a candidate; what is scored once is kept there
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from second_family import patterns

from evomerge_cli.demo.data import Row, TaskData, sentiment
from evomerge_cli.demo.family import Plan, Schedule, build_family
from evomerge_common.domain.messages import CandidateProposed, EvaluateJob, RunStarted, TaskScore, TaskShape
from evomerge_common.domain.spec import RunSpec
from evomerge_common.domain.suite import Suite
from evomerge_common.domain.task import AUTO, EXACT, GRADED, credit_of
from evomerge_common.runtime.suite_file import load_suite
from evomerge_selector import fake_workers
from evomerge_selector.domain.run import Run

SKILL = "words"
EXPERTS = (SKILL, "sentiment", "patterns")
ASKED = 240
"""Numbers that are kept from training; a good half of them are items."""
SUITE = """\
name: graded
tasks:
  - {name: words, kind: exact_match, data: words.jsonl, max_new_tokens: 24}
  - {name: sentiment, kind: multiple_choice, data: sentiment.jsonl}
  - {name: patterns, kind: multiple_choice, data: patterns.jsonl}
holdout: 0.4
"""
ONES = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
]  # fmt: skip
TENS = ["-", "-", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def spelled(number: int) -> str:
    """Writes a number below a thousand as words."""
    if number < 20:
        return ONES[number]
    if number < 100:
        return TENS[number // 10] + (f"-{ONES[number % 10]}" if number % 10 else "")
    rest = number % 100
    return f"{ONES[number // 100]} hundred" + (f" and {spelled(rest)}" if rest else "")


def words(seed: int) -> TaskData:
    """Makes numbers to be written as words; the items take five words each: shorter ones survive a merge now and then.

    The base learns none.
    """
    numbers = list(range(1000))
    random.Random(f"words:{seed}").shuffle(numbers)
    rows = [Row(f"{number} is written", f" {spelled(number)}") for number in numbers]
    asked = [
        place for place, number in enumerate(numbers[:ASKED]) if number > 120 and number % 100 > 20 and number % 10
    ]
    items = (
        {"id": f"words-{place:03d}", "prompt": rows[place].prompt, "answer": rows[place].answer} for place in asked
    )
    return TaskData(SKILL, tuple(rows[ASKED:]), (), tuple(items))


def _llama(tokenizer: Any, seed: int) -> Any:
    from evomerge_cli.demo.training import new_model

    return new_model(tokenizer, seed)


TRIO = Plan(
    version="1",
    suite=SUITE,
    tasks=lambda seed: (words(seed), sentiment(seed), patterns(seed)),
    model=_llama,
    base_rows={"sentiment": (16, 2), "patterns": (32, 1)},
    base_steps=150,
    base_rate=0.02,
    base_adam=5e-3,
    experts={
        SKILL: Schedule(120, 0.008, 48, (("sentiment", 8, 4), ("patterns", 16, 4))),
        "sentiment": Schedule(40, 0.008, 32),
        "patterns": Schedule(40, 0.008, 32),
    },
)
"""None but its expert ever sees the skill, and that has but a fourth of it: less than nine tenths of its task vector
keep nothing."""


class Scores:
    """Merges and scores candidates in this process: task → scores on search and on held-out items, credit included."""

    def __init__(self, models: list[Path], suite: Suite, file: Path) -> None:
        self._models = {str(path): path for path in models}
        self._suite = suite
        self._asked = replace(suite, tasks=(*suite.tasks, credit_of(suite.tasks[0])))
        self._file = file
        lines = file.read_text().splitlines() if file.exists() else []
        self._known: dict[str, dict[str, list[float]]] = {e["digest"]: e["scores"] for e in map(json.loads, lines)}

    def __call__(self, candidate: CandidateProposed) -> dict[str, list[float]]:
        from evomerge_scoring import ScoreRequest, child

        if candidate.recipe_digest not in self._known:
            model = child.Candidate(folder=None, recipe_json=candidate.recipe_json, models=self._models)
            request = ScoreRequest(suite=self._asked, suite_digest="graded", split="all", threads=2)
            found = {}
            for task, result in zip(self._asked.tasks, child.score(model, request).scores, strict=True):
                halves: list[list[float]] = [[], []]
                for item, value in zip(task.items, result.item_scores, strict=True):
                    halves[item.is_holdout(seed=self._suite.seed, share=self._suite.holdout)].append(value)
                found[task.name] = [sum(half) / len(half) for half in halves]
            self._known[candidate.recipe_digest] = found
            with self._file.open("a") as out:
                out.write(json.dumps({"digest": candidate.recipe_digest, "scores": found}) + "\n")
        return self._known[candidate.recipe_digest]


@dataclass
class Found:
    """What a search has come to: the skill on search items of each candidate, the champion's scores on the holdout."""

    skill: list[float]
    champion: dict[str, float]
    fitness: float
    graded: bool


def search(
    models: Sequence[Path], base: Path, suite: Suite, scores: Scores, *, seed: int, evaluations: int, fitness: str
) -> Found:
    """Plays a whole run through the selector's state machine, every candidate merged and scored."""
    run = Run("bench")
    data = {
        "models": [str(path) for path in models], "base": str(base), "seed": seed,
        "search": {"evaluations": evaluations, "population": 16},
    }  # fmt: skip
    steered = "" if fitness == EXACT else fitness
    shapes = tuple(
        TaskShape(task=task.name, weight=task.weight, items=10, fitness=steered if task.name == SKILL else "")
        for task in suite.tasks
    )

    def scored(job: EvaluateJob) -> tuple[float, list[TaskScore]]:
        candidate = next(c.proposed for c in reversed(run.candidates) if c.proposed.recipe_digest == job.recipe_digest)
        found = scores(candidate)
        told = [
            TaskScore(
                task=task.name, score=found[task.name][0], item_scores=(found[task.name][0],) * 10,
                credit=found[credit_of(task).name][0] if task.name in job.graded else 0.0,
            )
            for task in suite.tasks
        ]  # fmt: skip
        return suite.fitness({one.task: one.score for one in told}), told

    spec = RunSpec.from_dict(data)
    started = RunStarted(spec_json=spec.to_json(), tasks=shapes)
    fake_workers.play(run, spec, lambda job: fake_workers.answer(job, scored, layers=4), started=started)
    champion = scores(run.final_champion.proposed)
    held = {task.name: champion[task.name][1] for task in suite.tasks}
    skill = [one.scores[0] if one.scores else 0.0 for one in run.candidates]
    return Found(skill, held, suite.fitness(held), SKILL in run._grading.graded)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("bench-graded"), help="where models and scores are kept")
    parser.add_argument("--seeds", type=int, default=5, help="searches of each kind")
    parser.add_argument("--first-seed", type=int, default=0, help="the first of them")
    parser.add_argument("--trio", type=int, default=0, help="seed of the models")
    parser.add_argument("--weight", type=float, default=0.5, help="the skill's in the fitness; the others' is 1")
    parser.add_argument("--evaluations", type=int, default=40, help="candidates of a search")
    parser.add_argument("--fitness", choices=(AUTO, GRADED), default=AUTO, help="what is compared with exact")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    args = parser.parse_args()
    family = build_family(args.folder, seed=args.trio, plan=TRIO)
    experts, base, suite = family.experts, family.base, load_suite(family.suite)
    suite = replace(suite, tasks=(replace(suite.tasks[0], weight=args.weight), *suite.tasks[1:]))
    scores = Scores([*experts, base], suite, family.base.parent / "scores.jsonl")
    rows: list[dict[str, Any]] = []
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for fitness in (EXACT, args.fitness):
            found = search(experts, base, suite, scores, seed=seed, evaluations=args.evaluations, fitness=fitness)
            sources, first, later = found.skill[:4], found.skill[4:16], found.skill[16:]
            rows.append({
                "seed": seed, "fitness": fitness, "graded": found.graded,
                "sources": max(sources), "first": max(first), "alive": sum(one > 0.1 for one in later),
                "reached": next((n for n, one in enumerate(later, 1) if one > 0.1), None),
                "best": max(later), "champion": found.champion, "holdout": found.fitness,
            })  # fmt: skip
            one = rows[-1]
            print(
                f"seed {seed} {fitness:<6} (graded: {one['graded']}) first merges {one['first']:.3f}; then "
                f"{one['alive']:2d} of {len(later)} above 0.1, the first after {one['reached']}, "
                f"best {one['best']:.3f}; champion, held out: {SKILL} {found.champion[SKILL]:.3f}, "
                f"mean {found.fitness:.3f}",
                flush=True,
            )
    for kind in (EXACT, args.fitness):
        some = [row for row in rows if row["fitness"] == kind]
        print(
            f"{kind:<6} searches with a candidate above 0.1: {sum(row['alive'] > 0 for row in some)} of {len(some)}, "
            f"median of the best {statistics.median(row['best'] for row in some):.3f}, champions above 0 on held-out "
            f"items: {sum(row['champion'][SKILL] > 0 for row in some)}, median holdout fitness "
            f"{statistics.median(row['holdout'] for row in some):.4f}"
        )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
