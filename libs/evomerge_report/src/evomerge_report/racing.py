"""What racing has done for a run: who was stopped, how many items were saved, how far the estimates were off."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evomerge_report.history import Candidate, History

CHECKED = 300
"""Candidates, the latest, whose estimates are held against what all items gave."""


def racing_of(history: History) -> dict[str, Any] | None:
    """Gathers plain data for result.json; None for a run without a race."""
    ended = [one for one in history.candidates.values() if one.raced is not None]
    if not ended:
        return None
    size = next((_items(one) for one in history.sources if one.results.get("search")), 0)
    others = [one for one in history.scored if one.raced is None]
    spent = sum(one.raced.items for one in ended if one.raced) + size * len(others)
    stopped = [one for one in ended if one.raced and one.raced.stopped]
    return {
        "rules": history.spec.get("search", {}).get("racing", {}),
        "stopped": len(stopped),
        "whole": len(ended) - len(stopped) + len(others),
        "items": spent,
        "items_without_racing": size * (len(ended) + len(others)),
        "share": spent / (size * (len(ended) + len(others))) if size else None,
        "estimate_error": _errors([one for one in ended if one.raced and not one.raced.stopped]),
        "candidates": [
            {"index": one.index, "name": history.name_of(one), "recipe_digest": one.digest, "rung": raced.rung,
             "items": raced.items, "estimate": raced.fitness, "interval95": [raced.low, raced.high],
             "against": raced.against, "chance": raced.chance}
            for one in stopped if (raced := one.raced) is not None
        ],
    }  # fmt: skip


def _items(candidate: Candidate) -> int:
    return sum(len(score.item_scores) for score in candidate.results["search"].scores)


def _errors(whole: Sequence[Candidate]) -> dict[str, Any]:
    """What the race thought of those that came to the end, after each question, against what all items gave."""
    rungs: dict[int, list[tuple[float, bool]]] = {}
    for one in whole[-CHECKED:]:
        for rung, guess in enumerate(one.raced.estimates if one.raced else ()):
            actual = one.raced.fitness if one.raced else 0.0
            rungs.setdefault(rung, []).append((guess.fitness - actual, guess.low <= actual <= guess.high))
    return {
        "whole_candidates": {str(rung): _summary(found) for rung, found in rungs.items()},
        "method": "each task's answers regressed on those of the sources and of the best candidates before",
    }


def _summary(found: Sequence[tuple[float, bool]]) -> dict[str, float]:
    count = len(found)
    return {
        "candidates": count,
        "mean_absolute_error": sum(abs(error) for error, _ in found) / count,
        "bias": sum(error for error, _ in found) / count,
        "inside_interval95": sum(inside for _, inside in found) / count,
    }
