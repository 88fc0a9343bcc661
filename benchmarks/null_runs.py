"""How often a report says "improved" where nothing can improve: searches over recorded answers that belong to nobody.

Give it the output folders of finished runs; their logs hold what each candidate answered to each item. In a null run
every merge and the best source answer an item as a candidate drawn at random has answered it (`--likeness`: so often as
the best source just did, since merges are like their sources), anew for each of them: no merge is better than that
source but by luck, and the search still picks the luckiest of them on the search items. The selector's own state
machine proposes and the report's own verdict speaks. `--gain G`: the same with something to find, for the power: a
merge of quality q, drawn uniformly from 0 to 1, answers the share q × G of the items as the best candidate has; the
average and the other controls have none.

    evomerge demo --out demo && evomerge bench null_runs demo [--runs 100] [--gain 0.2 …] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from evomerge_cli.run_folder import RunFolder
from evomerge_common.domain.controls import ControlsSpec
from evomerge_common.domain.messages import EvaluateJob, Event, RunStarted, TaskScore
from evomerge_common.domain.recipe import Recipe
from evomerge_common.domain.spec import RunSpec
from evomerge_common.domain.suite import Suite
from evomerge_common.ports import Recorded
from evomerge_report.controls import controls_of
from evomerge_report.history import History, history_of
from evomerge_report.result import best_source, improvement
from evomerge_selector import fake_workers
from evomerge_selector.domain.run import Run

Answers = dict[str, list[tuple[float, ...]]]
"""Task → item → what the candidates have answered."""


@dataclass
class Record:
    """What null runs are made of.

    Attributes:
        spec: of the recorded run.
        answers: split → answers.
        best: its best source, as the spec names it.
        others: source → split → task → item scores.

    """

    spec: RunSpec
    suite: Suite
    answers: dict[str, Answers]
    best: str
    others: dict[str, dict[str, dict[str, tuple[float, ...]]]]


def read(history: History, suite: Suite) -> Record:
    """Takes the item scores out of a finished run."""
    best = best_source(history, "search")
    assert best is not None, "the run has scored no source"
    answers: dict[str, Answers] = {}
    for split in ("search", "holdout"):
        results = [one.results[split].scores for one in history.candidates.values() if split in one.results]
        columns = {scores[0].task: [one.item_scores for one in scores] for scores in zip(*results, strict=True)}
        answers[split] = {task: list(zip(*rows, strict=True)) for task, rows in columns.items()}
    others = {
        history.model_of(one).reference: {
            split: {score.task: score.item_scores for score in result.scores} for split, result in one.results.items()
        }
        for one in history.sources
    }
    spec = RunSpec.from_json(history.start.spec_json)
    return Record(spec, suite, answers, history.model_of(best).reference, others)


class NullScores:
    """Answers of models that are nobody's, or of merges with something to them (`gain`)."""

    def __init__(self, record: Record, run: Run, seed: int, *, likeness: float, gain: float) -> None:
        self._record, self._run = record, run
        self._seed = seed
        self._likeness, self._gain = likeness, gain

    def __call__(self, job: EvaluateJob) -> tuple[float, list[TaskScore]]:
        recipe = Recipe.from_json(job.recipe_json)
        sources = recipe.sources()
        name = str(sources[0]) if recipe.method == "passthrough" and len(sources) == 1 else ""
        split = job.split
        if name and name != self._record.best:
            found = {task: tuple(items) for task, items in self._record.others[name][split].items()}
        elif name:
            found = self._best(split)
        else:
            found = self._merge(job.recipe_digest, split)
        scores = [
            TaskScore(task=task, score=statistics.fmean(items), item_scores=items) for task, items in found.items()
        ]
        return self._record.suite.fitness({one.task: one.score for one in scores}), scores

    def _best(self, split: str) -> dict[str, tuple[float, ...]]:
        rng = Random(f"{self._seed} source {split}")
        return {task: tuple(map(rng.choice, items)) for task, items in self._record.answers[split].items()}

    def _merge(self, digest: str, split: str) -> dict[str, tuple[float, ...]]:
        rng = Random(f"{self._seed} {digest} {split}")
        better = self._gain * Random(f"{self._seed} {digest}").random()
        source = self._best(split)
        proposed = next((one.proposed for one in self._run.candidates if one.proposed.recipe_digest == digest), None)
        if proposed is None or proposed.operator == "average":
            better = 0.0
        found = {}
        for task, items in self._record.answers[split].items():
            drawn = [
                own if rng.random() < self._likeness else rng.choice(item)
                for own, item in zip(source[task], items, strict=True)
            ]
            found[task] = tuple(
                max(item) if rng.random() < better else one for one, item in zip(drawn, items, strict=True)
            )
        return found


def null_run(
    record: Record, seed: int, *, evaluations: int, likeness: float = 0.5, gain: float = 0.0
) -> tuple[dict[str, Any], dict[str, Any]]:
    """One whole run through the state machine: the report's verdict, and what it says of controls."""
    search = replace(record.spec.search, evaluations=evaluations, patience=0, target=None, hours=None)
    spec = replace(record.spec, seed=seed, search=search, controls=ControlsSpec(), push_to="", gguf_type="")
    events: list[Event] = []
    run = Run("null")
    scores = NullScores(record, run, seed, likeness=likeness, gain=gain)
    fake_workers.play(
        run,
        spec,
        lambda job: fake_workers.answer(job, scores),
        started=RunStarted(spec_json=spec.to_json(), has_holdout=True),
        record=events.append,
    )
    history = history_of(Recorded(number, event) for number, event in enumerate(events, start=1))
    verdict, controls = improvement(history, record.suite, seed), controls_of(history, record.suite, seed)
    assert verdict is not None, "the run was not proven"
    assert controls is not None, "the run had no controls"
    return verdict, controls


def measure(records: Sequence[Record], runs: int, *, evaluations: int, likeness: float, gain: float) -> dict[str, Any]:
    """Counts what reports say; run i is made of record i, in turn."""
    improved, stood_out, gains, gaps = 0, 0, [], []
    for seed in range(runs):
        record = records[seed % len(records)]
        verdict, controls = null_run(record, seed, evaluations=evaluations, likeness=likeness, gain=gain)
        improved += verdict["improved"]
        stood_out += controls["stands_out"]
        gains.append(verdict["holdout_difference"])
        gaps.append(controls["selection"]["champion"] - controls["selection"]["expected_best"])
        if sys.stderr.isatty():
            sys.stderr.write(f"\r{seed + 1} of {runs}")
    return {
        "runs": runs, "evaluations": evaluations, "likeness": likeness, "gain": gain,
        "improved": improved, "did_not_improve": runs - improved, "stands_out_from_controls": stood_out,
        "mean_holdout_difference": statistics.fmean(gains), "champion_minus_expected_best": statistics.fmean(gaps),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, help="output folders of finished runs")
    parser.add_argument("--runs", type=int, default=100, help="of each setting (default: %(default)s)")
    parser.add_argument("--evaluations", type=int, default=40, help="candidates of a run (default: %(default)s)")
    parser.add_argument("--likeness", type=float, nargs="+", default=[0.0, 0.5, 0.9], metavar="SHARE")
    parser.add_argument("--gain", type=float, nargs="*", default=[0.05, 0.1, 0.2, 0.4], metavar="SHARE")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    records = [read(history_of(RunFolder(one).events()), RunFolder(one).suite()) for one in args.folders]
    settings = [(likeness, 0.0) for likeness in args.likeness] + [(0.5, gain) for gain in args.gain]
    rows = []
    for likeness, gain in settings:
        row = measure(records, args.runs, evaluations=args.evaluations, likeness=likeness, gain=gain)
        rows.append(row)
        what = f"gain {gain:.2f}" if gain else f"null, likeness {likeness:.1f}"
        print(
            f"{what:<20} improved {row['improved']:3d}, did not improve {row['did_not_improve']:3d} of {args.runs}; "
            f"stands out from controls {row['stands_out_from_controls']:3d}; champion on holdout "
            f"{row['mean_holdout_difference']:+.3f}, on search minus expected best "
            f"{row['champion_minus_expected_best']:+.3f}",
            flush=True,
        )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
