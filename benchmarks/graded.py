"""Partial credit against exact match alone: a skill that merges all but lose, searched for with and without it.

Makes a trio of small models in which the first merges have next to nothing of a skill of free generation (numbers
written as words, to the letter), and searches it with the same seeds and budgets twice: `exact`, where the search sees
the task's score alone, and `--fitness`: `graded`, where it is told a share of the likelihood of the right answers, too,
or `auto`, which does that only where the first merges all score the same (the table says whether it did). Tells how
many candidates and champions have the skill, on search items and on held-out ones: both by the task's own metric.

    evomerge bench graded --folder graded --seeds 5    # about a second a candidate; what is scored once is kept there
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import statistics
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evomerge_common.domain.messages import CandidateProposed, EvaluateJob, RunStarted, TaskScore, TaskShape
from evomerge_common.domain.spec import RunSpec
from evomerge_common.domain.suite import Suite
from evomerge_common.domain.task import AUTO, EXACT, GRADED, credit_of
from evomerge_common.runtime.suite_file import load_suite
from evomerge_selector import fake_workers
from evomerge_selector.domain.run import Run

SKILL = "words"
EXPERTS = (SKILL, "sentiment", "python")
SUITE = """\
name: graded
tasks:
  - {name: words, kind: exact_match, data: words.jsonl, max_new_tokens: 24}
  - {name: sentiment, kind: multiple_choice, data: sentiment.jsonl}
  - {name: python, kind: perplexity, data: python.jsonl}
holdout: 0.4
"""
ONES = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
]  # fmt: skip
TENS = ["-", "-", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
STEPS = {SKILL: (220, 0.02, 48), "sentiment": (120, 0.02, 32), "python": (90, 0.02, 12)}
"""Expert → steps, learning rate, rows a batch: far from the base, so that an average of the three keeps little."""

BASE_ROWS = {"sentiment": 8, "python": 6}


def spelled(number: int) -> str:
    """Writes a number below a thousand as words."""
    if number < 20:
        return ONES[number]
    if number < 100:
        return TENS[number // 10] + (f"-{ONES[number % 10]}" if number % 10 else "")
    rest = number % 100
    return f"{ONES[number // 100]} hundred" + (f" and {spelled(rest)}" if rest else "")


def build(folder: Path, seed: int) -> tuple[list[Path], Path, Suite]:
    """Makes the trio and its suite in a folder, or finds them there: experts, base, suite."""
    import torch

    from evomerge_cli.demo.data import Row, python_code, sentiment
    from evomerge_cli.demo.training import Encoded, new_model, train, train_tokenizer

    home = folder / f"trio-{seed}"
    if not (home / "suite.yaml").exists():
        torch.set_num_threads(2)
        home.mkdir(parents=True, exist_ok=True)
        numbers = list(range(1000))
        random.Random(f"words:{seed}").shuffle(numbers)
        items = [{"prompt": f"{n} is written", "answer": f" {spelled(n)}"} for n in numbers[:160] if is_long(n)]
        rows = {SKILL: [Row(f"{n} is written", f" {spelled(n)}") for n in numbers[160:]]}
        data = {SKILL: items}
        for task in (sentiment(seed), python_code(seed)):
            rows[task.name], data[task.name] = list(task.rows), list(task.items)
        for name, content in data.items():
            (home / f"{name}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in content))
        tokenizer = train_tokenizer([row for some in rows.values() for row in some])
        base = new_model(tokenizer, seed)
        mix = [
            (Encoded(name, rows[name], tokenizer, count, seed), 1) for name, count in (("sentiment", 8), ("python", 6))
        ]
        train(base, mix, steps=60, rate=0.02, adam=5e-3)
        models = {"base": base}
        for name, (steps, rate, count) in STEPS.items():
            sys.stderr.write(f"training the {name} expert\n")
            models[name] = copy.deepcopy(base)
            train(
                models[name],
                [(Encoded(name, rows[name], tokenizer, count, seed + 1), 1)],
                steps=steps,
                rate=rate,
                adam=2e-3,
            )
        for name, model in models.items():
            model.save_pretrained(home / name)
            tokenizer.save_pretrained(home / name)
        (home / "suite.yaml").write_text(SUITE)
    return [home / name for name in EXPERTS], home / "base", load_suite(home / "suite.yaml")


def is_long(number: int) -> bool:
    """Tells whether a number takes five words to write: the shorter ones survive a merge now and then."""
    return number > 120 and number % 100 > 20 and number % 10 != 0


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
    models: list[Path], base: Path, suite: Suite, scores: Scores, *, seed: int, evaluations: int, fitness: str
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
    parser.add_argument("--evaluations", type=int, default=40, help="candidates of a search")
    parser.add_argument("--fitness", choices=(AUTO, GRADED), default=GRADED, help="what is compared with exact")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    args = parser.parse_args()
    experts, base, suite = build(args.folder, args.trio)
    scores = Scores([*experts, base], suite, args.folder / f"scores-{args.trio}.jsonl")
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
