"""Where a champion stands against its run's controls, with its selection accounted for.

The champion is the best of N candidates on the items that it was chosen by, so what it scores there is set against the
best of N controls: of N draws from a normal distribution the largest is expected at the quantile (N − 3/8) / (N + 1/4)
(Blom, Statistical Estimates and Transformed Beta-Variables, 1958; exact within 1% of a standard deviation), and with
probability 0.95 it stays below the quantile 0.95^(1/N). Mean and spread are those of the controls of one kind, the
spread pooled over kinds, at least what the sampling of items alone gives, and widened for a mean of few. On held-out
items nothing was chosen: there the champion is compared with each control by paired bootstrap, and only a lead on all
of them counts, which needs no correction for their number (intersection-union test, Berger 1982).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from math import sqrt
from statistics import NormalDist, fmean, variance
from typing import Any

from evomerge_common.domain import messages as m
from evomerge_common.domain.controls import NOISED, PERMUTED, UNIFORM
from evomerge_common.domain.statistics import paired_error
from evomerge_common.domain.suite import Suite
from evomerge_report.history import Candidate, History
from evomerge_report.specialists import bounds, difference, items_of

KINDS = {PERMUTED: "task vectors in disorder", NOISED: "noise of equal size", UNIFORM: "the uniform merge"}
"""What each kind of control is, for people."""
CHANCE = 0.95
"""Share of searches among controls that the champion has to be ahead of."""


def controls_of(history: History, suite: Suite, seed: int) -> dict[str, Any] | None:
    """Gathers plain data for result.json; None for a run without controls, or before any is scored.

    Intervals are 95%, of champion minus control, by paired bootstrap over items with the run's seed.
    """
    champion = history.champion
    scored = [one for one in history.controls.values() if one.fitness is not None]
    if champion is None or champion.fitness is None or not scored:
        return None
    weights = {task.name: task.weight for task in suite.tasks}
    selection = _selection(history, champion, scored, weights)
    holdout = _holdout(champion, scored, weights, seed)
    ahead = selection["ahead"] if holdout is None else holdout["better_than"] == holdout["of"]
    found = {
        "champion_is_source": champion.is_source,
        "candidates": [
            {"kind": one.operator, "recipe_digest": one.digest, "search": one.fitness, "holdout": _fitness(one)}
            for one in scored
        ],
        "failed": len(history.controls) - len(scored),
        "selection": selection,
        "holdout": holdout,
        "stands_out": ahead and not champion.is_source,
        "method": "search: the best of N draws from a normal distribution with the controls' mean and spread (Blom "
        "1958); holdout: paired bootstrap against each control, 2000 resamples, percentile interval",
    }  # fmt: skip
    return {**found, "statement": _statement(found)}


def expected_best(count: int) -> float:
    """Computes the expected largest of `count` draws from the standard normal distribution, by Blom's formula."""
    return NormalDist().inv_cdf((count - 0.375) / (count + 0.25))


def _fitness(one: Candidate) -> float | None:
    held = one.results.get("holdout")
    return None if held is None else held.fitness


def _selection(
    history: History, champion: Candidate, controls: Sequence[Candidate], weights: Mapping[str, float]
) -> dict[str, Any]:
    """The champion's search score against the best that as many controls would reach, of the strongest kind."""
    compared = len(history.scored) + len(history.stopped)
    kinds: dict[str, list[float]] = {}
    for one in controls:
        kinds.setdefault(one.operator, []).append(one.fitness or 0.0)
    spread = _spread(kinds, champion, controls, weights)
    height, height95 = expected_best(compared), NormalDist().inv_cdf(CHANCE ** (1 / compared))
    best, best95, kind = max(
        (fmean(values) + height * wide, fmean(values) + height95 * wide, kind)
        for kind, values in kinds.items()
        for wide in (spread * sqrt(1 + 1 / len(values)),)
    )
    return {
        "champion": champion.fitness,
        "compared": compared,
        "kind": kind,
        "mean": fmean(kinds[kind]),
        "spread": spread,
        "expected_best": best,
        "best95": best95,
        "ahead": (champion.fitness or 0.0) > best95,
    }


def _spread(
    kinds: Mapping[str, Sequence[float]],
    champion: Candidate,
    controls: Sequence[Candidate],
    weights: Mapping[str, float],
) -> float:
    """Standard deviation of one control's score: what controls of one kind show, or the items alone if that is more."""
    degrees = sum(len(values) - 1 for values in kinds.values())
    squares = sum(variance(values) * (len(values) - 1) for values in kinds.values() if len(values) > 1)
    pairs = list(combinations(controls, 2)) or [(champion, controls[0])]
    errors = list(_item_errors(pairs, weights))
    by_items = fmean(error**2 / 2 for error in errors) if errors else 0.0
    return sqrt(max(squares / degrees if degrees else 0.0, by_items))


def _item_errors(pairs: Sequence[tuple[Candidate, Candidate]], weights: Mapping[str, float]) -> Iterator[float]:
    """Standard errors of differences on the search split, as far as item scores are there."""
    for one, other in pairs:
        a, b = _search(one), _search(other)
        if a is not None and b is not None:
            try:
                yield paired_error(items_of(a), items_of(b), weights)
            except ValueError:
                continue


def _search(one: Candidate) -> m.CandidateEvaluated | None:
    return one.results.get("search") or one.results.get("all")


def _holdout(
    champion: Candidate, controls: Sequence[Candidate], weights: Mapping[str, float], seed: int
) -> dict[str, Any] | None:
    """The champion against each control on held-out items; None without any."""
    ours = champion.results.get("holdout")
    rows: list[dict[str, Any]] = []
    for one in controls:
        theirs = one.results.get("holdout")
        if ours is None or theirs is None:
            continue
        if (found := difference(items_of(ours), items_of(theirs), weights, seed)) is not None:
            rows.append({"kind": one.operator, "recipe_digest": one.digest, "difference": found.mean,
                         "interval95": bounds(found), "better": found.low > 0})  # fmt: skip
    if not rows:
        return None
    return {
        "better_than": sum(bool(row["better"]) for row in rows),
        "of": len(rows),
        "nearest": min(rows, key=lambda row: row["difference"]),
        "differences": rows,
    }


def _statement(found: Mapping[str, Any]) -> str:
    """Says in a few sentences how the champion stands; the first is the verdict."""
    selection, holdout, count = found["selection"], found["holdout"], len(found["candidates"])
    others = f"{count} null candidate{'s' if count > 1 else ''}"
    if found["champion_is_source"]:
        return (
            f"The best model found is a source as it is, so there is no merge to set against {others}: nothing shows "
            "that merging did more than chance."
        )
    verdict = (
        f"The champion stands out from {others}: merging did something here that changes of equal size and averaging "
        "do not."
        if found["stands_out"]
        else f"The champion does not stand out from {others}: nothing shows that merging did more than chance."
    )
    where = "above" if selection["ahead"] else "not above"
    kind = KINDS.get(selection["kind"], selection["kind"])
    searched = (
        f"On search items it has {selection['champion']:.3f}; the best of {selection['compared']} candidates like the "
        f"strongest of them ({kind}) is expected at {selection['expected_best']:.3f} by selection alone, and the "
        f"champion is {where} the {selection['best95']:.3f} below which it stays in 95 of 100 searches."
    )
    if holdout is None:
        return f"{verdict} {searched} No items are held out, so this is all that is known."
    nearest = holdout["nearest"]
    held = (
        f"On held-out items it is better than {holdout['better_than']} of {holdout['of']} beyond the 95% interval; the "
        f"nearest ({KINDS.get(nearest['kind'], nearest['kind'])}) is {nearest['difference']:+.3f} away "
        f"({nearest['interval95'][0]:+.3f} to {nearest['interval95'][1]:+.3f})."
    )
    return f"{verdict} {searched} {held}"
