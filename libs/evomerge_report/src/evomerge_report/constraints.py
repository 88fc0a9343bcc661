"""Whether a champion keeps what a run's constraints ask for: on search items, which decided, and on held-out ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evomerge_common.domain.constraints import Constraint, read_constraints, shortfall
from evomerge_common.domain.spec import sources_of
from evomerge_common.domain.statistics import share_at_least
from evomerge_common.domain.suite import Suite
from evomerge_common.errors import SpecError
from evomerge_report.history import Candidate, History, short_name
from evomerge_report.specialists import bounds, difference, score_of


def constraints_of(history: History, suite: Suite, seed: int) -> list[dict[str, Any]]:
    """Says of each constraint whether the champion meets it.

    Returns:
        For each: `task`, `not_below` as written, `against` (the source whose score is the measure, by search items; ""
        for a number), `violations` (candidates that were below it on search items), `search` and `holdout`, each None
        or with `score`, `bound`, `holds`; on the holdout also the `margin` (score minus bound) with its paired 95%
        interval and `confidence`, the share of bootstrap samples in which it holds; `holds`, on held-out items where
        there are any; and `statement`.

    """
    spec = history.spec
    base, models = str(spec.get("base", "")), [str(one) for one in spec.get("models", ())]
    try:
        found = read_constraints(spec.get("constraints"), (), sources=sources_of(models, base), base=base)
    except SpecError:
        return []  # a log of another version: what it asked for cannot be read any more
    tasks = {task.name: task for task in suite.tasks}
    return [_checked(one, history, base, suite, seed) for one in found if one.task in tasks]


def _checked(one: Constraint, history: History, base: str, suite: Suite, seed: int) -> dict[str, Any]:
    task = next(task for task in suite.tasks if task.name == one.task)
    scores: dict[str, float] = {}
    by_name: dict[str, Candidate] = {}
    for source in history.sources:
        name = history.model_of(source).reference
        by_name[name] = source
        if (score := score_of(source, task, "search")) is not None:
            scores[name] = score.score
    against, bound = one.source(scores, base), one.bound(scores, base)
    entry: dict[str, Any] = {
        "task": one.task, "not_below": one.value, "against": against or "", "search": None, "holdout": None,
        "violations": 0,
    }  # fmt: skip
    if bound is not None:
        measured = [score.score for c in history.scored if (score := score_of(c, task, "search")) is not None]
        entry["violations"] = sum(shortfall(score, bound) > 0 for score in measured)
    ours = history.champion and score_of(history.champion, task, "search")
    if ours and bound is not None:
        entry["search"] = {"score": ours.score, "bound": bound, "holds": not shortfall(ours.score, bound)}
    if history.champion is not None:
        entry["holdout"] = _on_holdout(one, history.champion, by_name.get(against or ""), task, seed)
    known = entry["holdout"] or entry["search"]
    return {**entry, "holds": known["holds"] if known else None, "statement": statement(entry)}


def _on_holdout(one: Constraint, champion: Candidate, source: Candidate | None, task: Any, seed: int) -> Any:
    ours = score_of(champion, task)
    theirs = score_of(source, task) if source is not None else None
    if ours is None or (one.anchor and theirs is None):
        return None
    measure = theirs.item_scores if theirs is not None else (0.0,) * len(ours.item_scores)
    apart = difference({"": ours.item_scores}, {"": measure}, {"": 1.0}, seed)
    if apart is None:
        return None
    margins = [a - b for a, b in zip(ours.item_scores, measure, strict=True)]
    return {
        "score": ours.score,
        "bound": (theirs.score if theirs is not None else 0.0) + one.offset,
        "margin": apart.mean - one.offset,
        "interval95": [end - one.offset for end in bounds(apart)],
        "holds": not shortfall(apart.mean, one.offset),
        "confidence": share_at_least(margins, one.offset, seed=seed),
    }


def statement(entry: Mapping[str, Any]) -> str:
    """Says in a sentence whether a constraint is met."""
    asked = f"{entry['task']} not below {_in_words(entry)}"
    held, search = entry["holdout"], entry["search"]
    violated = (
        ""
        if search is None or search["holds"]
        else "; on search items it was violated: no candidate met all constraints"
    )
    if held is None:
        known = "not checked" if search is None else "holds" if search["holds"] else "does not hold"
        return f"{asked}: {known} on search items, not checked on held-out ones"
    low, high = held["interval95"]
    word = "holds" if held["holds"] else "does not hold"
    return (
        f"{asked}: {word} on held-out items, {held['score']:.3f} against {held['bound']:.3f} (margin "
        f"{held['margin']:+.3f}, 95% interval {low:+.3f} to {high:+.3f}; it holds with {held['confidence']:.0%} "
        f"confidence){violated}"
    )


def _in_words(entry: Mapping[str, Any]) -> str:
    written = entry["not_below"]
    if not isinstance(written, str):
        return f"{written:g}"
    name = short_name(entry["against"])
    text = written.replace(entry["against"], name) if entry["against"] else written
    return text if name in text or not name else f"{text} ({name})"
