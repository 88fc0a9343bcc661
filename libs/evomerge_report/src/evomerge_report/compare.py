"""Two or more runs side by side, from their logs: what each was given, what it found, and how their champions differ.

Champions are compared item by item where all runs asked the same suite, by its digest: then they answered the same
held-out items. Where the suites differ, each run is told for itself, and nothing is said of which is better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from evomerge_common.domain.suite import Suite
from evomerge_common.errors import InvalidInput
from evomerge_report.history import History
from evomerge_report.page import asset
from evomerge_report.report import environment
from evomerge_report.result import Measure, weights_of
from evomerge_report.specialists import bounds, compared, difference, items_of, score_of


@dataclass(frozen=True)
class Run:
    """A run to compare; `label` is how it is called: its folder, or its id."""

    label: str
    history: History
    suite: Suite

    @property
    def suite_digest(self) -> str:
        """Returns the digest of what it was scored on."""
        return self.history.start.suite_digest or self.suite.digest


def comparison_of(runs: Sequence[Run]) -> dict[str, Any]:
    """Gathers plain data.

    Returns:
        `runs` (models, suite, budgets, champion and scores of each), `reason` (why champions cannot be compared item by
        item; "" where they can), `tasks` (of each task the score of each champion on held-out items, and whose is
        highest), `pairs` (each two champions' paired difference with its 95% interval, overall and by task).

    Raises:
        InvalidInput: fewer than two runs.

    """
    if len(runs) < 2:
        raise InvalidInput("a comparison needs two runs or more: give their output folders, or ids of runs at a server")
    reason = _not_comparable(runs)
    rows = [_row(run) for run in runs]
    return {
        "runs": rows,
        "reason": reason,
        "tasks": _tasks(rows, is_comparable=not reason),
        "pairs": [] if reason else [_pair(a, b) for a, b in combinations(runs, 2)],
        "method": "paired bootstrap over held-out items within tasks, 2000 resamples, percentile interval",
    }


def comparison_page(comparison: dict[str, Any]) -> str:
    """Writes it as one HTML page that needs no other file."""
    return environment().get_template("compare.html").render(c=comparison, style=asset("style.css").read_text("utf-8"))


def _not_comparable(runs: Sequence[Run]) -> str:
    first = runs[0]
    for other in runs[1:]:
        if other.suite_digest != first.suite_digest:
            return (
                f"{first.label} and {other.label} were scored on different suites ({first.suite_digest[:12]}… and "
                f"{other.suite_digest[:12]}…), so their champions cannot be compared item by item"
            )
    for run in runs:
        champion = run.history.champion
        if champion is None or "holdout" not in champion.results:
            return f"the champion of {run.label} has no scores on held-out items, so there is nothing to compare"
    return ""


def _row(run: Run) -> dict[str, Any]:
    history, suite = run.history, run.suite
    spec = history.spec
    search = spec.get("search") or {}
    champion = history.champion
    measure = Measure(suite, int(spec.get("seed", 0)))
    found = None
    if champion is not None:
        found = {
            "recipe_digest": champion.digest,
            "name": history.name_of(champion),
            "search": champion.fitness,
            "holdout": measure(champion.results.get("holdout")),
        }
    return {
        "label": run.label,
        "run_id": history.run_id,
        "status": history.status,
        "seed": int(spec.get("seed", 0)),
        "models": [history.model_of(source).reference for source in history.sources],
        "suite": {"name": suite.name, "digest": run.suite_digest},
        "strategy": str(search.get("strategy", "")),
        "budget": int(search.get("evaluations", 0)),
        "evaluations": len(history.scored) + len(history.stopped),
        "items_scored": history.items_scored,
        "wall_seconds": round(max(0.0, history.last_at - history.started_at), 3),
        "devices": history.devices,
        "champion": found,
    }


def _tasks(rows: Sequence[dict[str, Any]], *, is_comparable: bool) -> list[dict[str, Any]]:
    held = [(row["champion"] or {}).get("holdout") for row in rows]
    names = dict.fromkeys(task for one in held if one for task in one["tasks"])
    found = []
    for name in names:
        scores = [one["tasks"].get(name) if one else None for one in held]
        known = [(one["score"], -place) for place, one in enumerate(scores) if one]
        found.append({"task": name, "scores": scores, "best": -max(known)[1] if is_comparable else None})
    return found


def _pair(a: Run, b: Run) -> dict[str, Any]:
    """How two champions differ that answered the same items."""
    first, second = (run.history.champion for run in (a, b))
    assert first is not None, "asked only where both have held-out scores"
    assert second is not None, "as above"
    ours, theirs = first.results["holdout"], second.results["holdout"]
    seed = int(a.history.spec.get("seed", 0))
    overall = difference(items_of(ours), items_of(theirs), weights_of(a.suite), seed)
    tasks = {}
    for task in a.suite.tasks:
        mine, other = score_of(first, task), score_of(second, task)
        entry = compared(task, mine, other, a.suite, seed) if mine and other else None
        if entry is not None:
            fields = ("difference", "interval95", "excludes_zero", "wins", "losses", "ties")
            tasks[task.name] = {key: entry[key] for key in fields}
    return {
        "first": a.label,
        "second": b.label,
        "same_recipe": first.digest == second.digest,
        "difference": None if overall is None else overall.mean,
        "interval95": None if overall is None else bounds(overall),
        "statement": _statement(a, b, None if overall is None else (overall.mean, overall.low, overall.high)),
        "tasks": tasks,
    }


def _statement(a: Run, b: Run, found: tuple[float, float, float] | None) -> str:
    if found is None:
        return f"the champions of {a.label} and {b.label} kept no scores of the same items"
    mean, low, high = found
    if high < 0:
        return _statement(b, a, (-mean, -high, -low))
    span = f"{mean:+.3f} (95% interval {low:+.3f} to {high:+.3f})"
    if low > 0:
        return f"the champion of {a.label} is better than that of {b.label} by {span}"
    return f"the champions of {a.label} and {b.label} do not differ beyond chance: {span}"
