"""What racing has done for a run: who was stopped, how many items were spared, how far the estimates were off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evomerge_common.domain.racing import Answers, estimate
from evomerge_reporter.domain.history import Candidate, History

CHECKED = 300
"""Candidates, the latest, whose estimates are held against what all items gave."""


def racing_of(history: History, weights: Mapping[str, float]) -> dict[str, Any] | None:
    """Plain data for result.json; None for a run without a race."""
    ended = [one for one in history.candidates.values() if one.raced is not None]
    if not ended:
        return None
    sources = [_answers(one) for one in history.sources if one.results.get("search")]
    size = sum(len(values) for values in sources[0].values()) if sources else 0
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
        "estimate_error": _errors([one for one in ended if one.raced and not one.raced.stopped], sources, weights),
        "candidates": [
            {"index": one.index, "name": history.name_of(one), "recipe_digest": one.digest, "rung": raced.rung,
             "items": raced.items, "estimate": raced.fitness, "interval95": [raced.low, raced.high],
             "against": raced.against, "chance": raced.chance}
            for one in stopped if (raced := one.raced) is not None
        ],
    }  # fmt: skip


def _answers(candidate: Candidate) -> Answers:
    return {score.task: score.item_scores for score in candidate.results["search"].scores}


def _errors(whole: Sequence[Candidate], sources: Sequence[Answers], weights: Mapping[str, float]) -> dict[str, Any]:
    """Estimates after each rung against what all items gave.

    Of candidates that came to the end, and of each source as if it were a candidate and the others were the sources.
    """
    rungs: dict[int, list[tuple[float, bool]]] = {}
    held_out: dict[int, list[tuple[float, bool]]] = {}
    for one in whole[-CHECKED:]:
        known: dict[str, dict[int, float]] = {}
        for rung in sorted(one.parts)[:-1]:
            _take(known, one, rung)
            rungs.setdefault(rung, []).append(_miss(known, _answers(one), sources, weights))
    if whole and len(sources) > 2:
        pattern = whole[0]
        for place, answers in enumerate(sources):
            rest = [*sources[:place], *sources[place + 1 :]]
            asked: dict[str, dict[int, float]] = {}
            for rung in sorted(pattern.parts)[:-1]:
                for score in pattern.parts[rung].scores:
                    asked.setdefault(score.task, {}).update({i: answers[score.task][i] for i in score.positions})
                held_out.setdefault(rung, []).append(_miss(asked, answers, rest, weights))
    return {
        "whole_candidates": {str(rung): _summary(found) for rung, found in rungs.items()},
        "sources_left_out": {str(rung): _summary(found) for rung, found in held_out.items()},
        "method": "Rasch model, difficulties from the sources' answers, ability from the candidate's own",
    }


def _take(known: dict[str, dict[int, float]], candidate: Candidate, rung: int) -> None:
    for score in candidate.parts[rung].scores:
        known.setdefault(score.task, {}).update(zip(score.positions, score.item_scores, strict=True))


def _miss(
    known: Mapping[str, Mapping[int, float]], answers: Answers, sources: Sequence[Answers], weights: Mapping[str, float]
) -> tuple[float, bool]:
    found = estimate(known, sources, weights=weights)
    total = sum(weights[task] for task in answers)
    actual = sum(weights[task] * sum(values) / len(values) for task, values in answers.items()) / total
    return found.fitness - actual, found.low <= actual <= found.high


def _summary(found: Sequence[tuple[float, bool]]) -> dict[str, float]:
    count = len(found)
    return {
        "candidates": count,
        "mean_absolute_error": sum(abs(error) for error, _ in found) / count,
        "bias": sum(error for error, _ in found) / count,
        "inside_interval95": sum(inside for _, inside in found) / count,
    }
