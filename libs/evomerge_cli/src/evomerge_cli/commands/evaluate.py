"""`evomerge evaluate`: one model on one suite, in this process."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from evomerge_cli.commands.merge import fetch
from evomerge_cli.console import Console
from evomerge_cli.preflight import check_code_allowed
from evomerge_cli.progress import stages
from evomerge_cli.spec_source import resolve_suite
from evomerge_common.domain.spec import AUTO
from evomerge_common.domain.statistics import mean_interval
from evomerge_common.domain.suite import Suite
from evomerge_common.runtime.files import write_atomically
from evomerge_models.reference import resolve_reference
from evomerge_scoring.report import ScoreReport


def run(args: argparse.Namespace, console: Console) -> int:
    """Scores one model on one suite, in this process."""
    from evomerge_common.runtime.settings import Settings
    from evomerge_scoring import score_folder

    settings = Settings.from_env()
    suite = resolve_suite(args.suite or "general", Path(), flag=True, say=lambda text: console.say(f"note: {text}"))
    check_code_allowed(suite, settings)
    if getattr(args, "batch_size", None):
        suite = replace(suite, batch_size=args.batch_size)
    reference = resolve_reference(args.model)
    folder = fetch([reference], console)[reference.key]
    with stages(console, "scoring") as progress:
        report = score_folder(
            folder,
            suite,
            args.split,
            threads=getattr(args, "threads", 2),
            device=getattr(args, "device", None) or settings.device,
            backend=settings.backend,
            dtype=getattr(args, "dtype", AUTO),
            allow_code=settings.allow_code,
            progress=lambda done, total: progress("scoring", done / max(1, total)),
        )
    result = _result(args, suite, report)
    if args.json_file not in {"", "-"}:
        items = {score.task: list(score.item_scores) for score in report.scores}
        write_atomically(Path(args.json_file), json.dumps({**result, "item_scores": items}, indent=2) + "\n")
    if not console.data(result):
        _show(result, console)
    return 0


def _result(args: argparse.Namespace, suite: Suite, report: ScoreReport) -> dict[str, Any]:
    """What --json prints: scores with 95% intervals, and how they were had."""
    weights = {task.name: task.weight for task in suite.tasks}
    whole = mean_interval({s.task: s.item_scores for s in report.scores}, weights, seed=suite.seed)
    tasks: list[dict[str, Any]] = []
    for score in report.scores:
        interval = mean_interval({score.task: score.item_scores}, {score.task: 1.0}, seed=suite.seed)
        tasks.append(
            {
                "task": score.task,
                "score": score.score,
                "interval95": [interval.low, interval.high],
                "metric": score.metric,
                "metric_value": score.metric_value,
                "items": len(score.item_scores),
            }
        )
    return {
        "model": args.model,
        "suite_digest": suite.digest,
        "split": args.split,
        "fitness": report.fitness,
        "interval95": [whole.low, whole.high],
        "tasks": tasks,
        "items": report.items,
        "seconds": report.seconds,
        "items_per_second": report.items / max(report.seconds, 1e-9),
        "batch_size": suite.batch_size,
        "truncated": report.truncated,
        "device": report.device,
    }


def _show(result: dict[str, Any], console: Console) -> None:
    rows = [
        [t["task"], f"{t['score']:.4f}", f"[{t['interval95'][0]:.3f}, {t['interval95'][1]:.3f}]",
         f"{t['metric']} {t['metric_value']:.4f}", str(t["items"])]
        for t in result["tasks"]
    ]  # fmt: skip
    low, high = result["interval95"]
    rows.append(["all", f"{result['fitness']:.4f}", f"[{low:.3f}, {high:.3f}]", "", str(result["items"])])
    console.table(["task", "score", "95%", "metric", "items"], rows)
    console.out("{items} items in {seconds:.1f} s ({items_per_second:.1f} items/s) on {device}".format(**result))
