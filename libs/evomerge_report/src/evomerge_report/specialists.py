"""The champion beside the best source of each task, item by item: a mean may hide that a specialist was lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evomerge_common.domain import messages as m
from evomerge_common.domain.statistics import Interval, paired_difference
from evomerge_common.domain.suite import Suite
from evomerge_common.domain.task import Task
from evomerge_report.history import Candidate, History, short_name

NOTE = (
    "Each interval is a 95% one of its task alone, so of twenty tasks one misses by chance; and the best source of a "
    "task is picked on the same held-out items, which favours the source."
)
"""What to mind about comparisons task by task; a correction for their number would need no smaller a grain of salt."""


def against_specialists(champion: Candidate, history: History, suite: Suite, seed: int) -> dict[str, dict[str, Any]]:
    """Compares a champion with the best source of each task on the holdout.

    Returns:
        Task → `against` (the source), both scores, the paired difference with its 95% interval, how many items the
        champion answers better (`wins`), worse (`losses`) and alike (`ties`), the ids of the first two, and `worse`:
        whether it is worse beyond the interval. Tasks without item scores on both sides are left out.

    """
    found = {}
    for task in suite.tasks:
        ours = score_of(champion, task)
        rivals = [(theirs, source) for source in history.sources if (theirs := score_of(source, task)) is not None]
        if ours is None or not rivals:
            continue
        theirs, source = max(rivals, key=lambda rival: rival[0].score)  # of equals the earlier
        if (entry := compared(task, ours, theirs, suite, seed)) is not None:
            found[task.name] = {"against": history.model_of(source).reference, **entry}
    return found


def warnings_of(tasks: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Says of each task where the champion is worse than a source beyond the interval; `tasks` as above."""
    return [
        f"On {task} the champion ({one['champion']:.3f}) is worse than {short_name(one['against'])} "
        f"({one['source']:.3f}) by {-one['difference']:.3f} (95% interval {-one['interval95'][1]:.3f} to "
        f"{-one['interval95'][0]:.3f}): of the items {one['losses']} are answered worse, {one['wins']} better"
        for task, one in tasks.items()
        if one["worse"]
    ]


def compared(task: Task, ours: m.TaskScore, theirs: m.TaskScore, suite: Suite, seed: int) -> dict[str, Any] | None:
    """Compares two models' answers to the same held-out items of a task, as `against_specialists` tells; None: they
    are not of the same items.
    """
    name = task.name
    apart = difference({name: ours.item_scores}, {name: theirs.item_scores}, {name: 1.0}, seed)
    if apart is None:
        return None
    pairs = list(zip(ours.item_scores, theirs.item_scores, strict=True))
    items = suite.items(task, "holdout")
    ids = [item.id for item in items] if len(items) == len(pairs) else [str(place) for place in range(len(pairs))]
    won = [one for one, (a, b) in zip(ids, pairs, strict=True) if a > b]
    lost = [one for one, (a, b) in zip(ids, pairs, strict=True) if a < b]
    return {
        "champion": ours.score,
        "source": theirs.score,
        "difference": apart.mean,
        "interval95": bounds(apart),
        "excludes_zero": apart.excludes_zero,
        "worse": apart.high < 0,
        "wins": len(won),
        "losses": len(lost),
        "ties": len(pairs) - len(won) - len(lost),
        "won": won,
        "lost": lost,
    }


def score_of(candidate: Candidate, task: Task, split: str = "holdout") -> m.TaskScore | None:
    """Finds a candidate's score of a task; None where it has none on that split."""
    result = candidate.results.get(split)
    return next((score for score in result.scores if score.task == task.name), None) if result else None


def answers_of(candidate: Candidate, task: Task, split: str = "search") -> dict[int, str]:
    """Returns place → what a candidate wrote to the item there, as far as it was recorded."""
    score = score_of(candidate, task, split)
    return {one.position: one.text for one in score.answers} if score else {}


def items_of(result: m.CandidateEvaluated) -> dict[str, Sequence[float]]:
    """Returns task → item scores."""
    return {score.task: score.item_scores for score in result.scores}


def difference(
    ours: Mapping[str, Sequence[float]], theirs: Mapping[str, Sequence[float]], weights: Mapping[str, float], seed: int
) -> Interval | None:
    """Returns the paired 95% interval of ours − theirs; None where the item scores are not of the same items."""
    try:
        return paired_difference(ours, theirs, weights, seed=seed)
    except ValueError:
        return None


def bounds(interval: Interval) -> list[float]:
    """Returns [low, high]."""
    return [interval.low, interval.high]
