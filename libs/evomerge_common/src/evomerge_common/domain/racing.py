"""Racing: a candidate is scored on a part of the items first, and on all of them only if it has a chance.

Three questions, answered by plain arithmetic on item scores, so that the same log gives the same answers. What is known
of the items comes from the jury: models that have answered all of them.

* Which items first? `item_order`: mostly those that tell the jury apart, shuffled, and some of those that all of it
  passes or fails, since a new candidate seldom differs there. `steps` cuts the order into jobs.
* Has it a chance? `compare`: a paired comparison with one other model on the items that both have answered. What is
  asked is who is ahead once *all* items are scored, which is what selection would ask; so only the items still to come
  are uncertain (finite population correction, Cochran, Sampling Techniques, 1977, 2.6): the other's luck on the items
  that made it the best is luck that counts, and no bias. Racing algorithms go back to Maron and Moore (Hoeffding races,
  1993) and to F-Race (Birattari et al., 2002).
* How good is it on all items? `estimate`: the Rasch model of item response theory, difficulties taken from the jury's
  answers, ability from the candidate's own; what was not asked is predicted, what was asked is kept. Estimating merged
  models from a subset by item response theory is the idea of MERGE3 (Mencattini et al., 2025, arXiv:2502.10436).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

__all__ = [
    "Comparison",
    "Estimate",
    "Step",
    "Stratum",
    "compare",
    "estimate",
    "item_order",
    "shuffled",
    "steps",
    "strata",
]

Answers = Mapping[str, Sequence[float]]
"""Task → score of every item of the split, in its order."""
Known = Mapping[str, Mapping[int, float]]
"""Task → place in the split's order → score, of some items."""
Order = Mapping[str, tuple[Sequence[int], Sequence[int]]]
"""Task → places of the items that tell the jury apart, and of those on which all of it agrees."""

PRIOR = 1.0
"""Observations that the jury's own spread counts for in a variance: ten equal answers prove no certainty."""
FEWEST = 30
"""Answers, at least, before a question is put: of fewer, no standard error is to be believed."""
TELLING = 3
"""Items that tell the jury apart for each one on which it agrees, in the order in which they are asked."""
ABILITY_SPREAD = 2.0
"""Standard deviation, in logits, of the prior of a candidate's ability around the jury's."""
LEVEL = 1.959964
"""Standard errors on either side of a 95% interval."""


@dataclass(frozen=True)
class Step:
    """Items that one job scores; after it the race asks whether to go on, if `asks`."""

    items: Mapping[str, tuple[int, ...]]
    asks: bool


@dataclass(frozen=True)
class Comparison:
    """One model against another on all items: expected difference, its standard error, chance of a lead that counts."""

    difference: float
    error: float
    chance: float


@dataclass(frozen=True)
class Estimate:
    """What all items would give: task → score, their weighted mean, and its 95% interval."""

    scores: Mapping[str, float]
    fitness: float
    low: float
    high: float


def shuffled(sizes: Mapping[str, int], *, seed: int) -> dict[str, tuple[int, ...]]:
    """Returns, for each task, all its places, in an order that follows from the seed alone."""

    def drawn(task: str, place: int) -> bytes:
        return hashlib.sha256(json.dumps([seed, task, place]).encode()).digest()

    return {task: tuple(sorted(range(size), key=partial(drawn, task))) for task, size in sizes.items()}


def item_order(places: Mapping[str, Sequence[int]], jury: Sequence[Answers]) -> Order:
    """Orders every task's places, as given: those on which the jury differs, and those on which all of it agrees."""
    order = {}
    for task, known in places.items():
        columns = list(zip(*(one[task] for one in jury), strict=True))
        alike = {place for place, column in enumerate(columns) if max(column) - min(column) <= 1e-9}
        order[task] = (
            tuple(place for place in known if place not in alike),
            tuple(place for place in known if place in alike),
        )
    return order


def steps(order: Order, shares: Sequence[float], *, most: int) -> list[Step]:
    """Plans the jobs of a whole race: one at each share of the items, and no job with more than `most` items.

    Shares with fewer than `FEWEST` items are left out.
    Every task gives its share to every step, so that a part of the items weighs the tasks as the whole does.
    """
    queues = {task: _queue(differ, alike) for task, (differ, alike) in order.items()}
    found: list[Step] = []
    done = dict.fromkeys(queues, 0)
    total = sum(map(len, queues.values()))
    for share in (*(share for share in shares if share * total >= FEWEST), 1.0):
        start = dict(done)
        goal = {task: max(start[task], math.ceil(share * len(queue) - 1e-9)) for task, queue in queues.items()}
        parts = max(1, -(-sum(goal[task] - start[task] for task in queues) // most))
        for part in range(1, parts + 1):
            upto = {task: start[task] + (goal[task] - start[task]) * part // parts for task in queues}
            items = {task: tuple(queue[done[task] : upto[task]]) for task, queue in queues.items()}
            done = upto
            found.append(Step(items, asks=part == parts and share < 1.0))
    found = [step for step in found if any(step.items.values())]
    return [*found[:-1], replace(found[-1], asks=False)]


def _queue(differ: Sequence[int], alike: Sequence[int]) -> list[int]:
    """`TELLING` of the first for each of the second, as long as there are both."""
    queue: list[int] = []
    for number, place in enumerate(alike):
        queue += [*differ[number * TELLING : (number + 1) * TELLING], place]
    return queue + list(differ[len(alike) * TELLING :])


@dataclass(frozen=True)
class Stratum:
    """Items of one task that are alike for the comparison with a rival.

    Attributes:
        share: what they weigh in the fitness.
        spread: squared difference from the rival's answer that is expected on an item before any is seen.

    """

    task: str
    places: tuple[int, ...]
    share: float
    spread: float


def strata(order: Order, jury: Sequence[Answers], rival: Answers, *, weights: Mapping[str, float]) -> list[Stratum]:
    """Sorts every task's items by whether the jury differs on them, and the rival answers them better than its mean.

    Where the rival does, one can only lose; where it does not, only win: no variance between these counts. What is
    expected of a stratum is what the jury did there, and one item as in all of the task: the jury does not know all.
    """
    total = sum(weights.values())
    found = []
    for task, groups in order.items():
        answers = rival[task]
        usual = sum(answers) / len(answers)
        squares = [
            sum((one[task][place] - answer) ** 2 for one in jury) / len(jury) for place, answer in enumerate(answers)
        ]
        general = sum(squares) / len(squares)
        for group in groups:
            for places in ([p for p in group if answers[p] > usual], [p for p in group if answers[p] <= usual]):
                if places:
                    spread = (sum(squares[place] for place in places) + general) / (len(places) + 1)
                    share = weights[task] / total * len(places) / len(answers)
                    found.append(Stratum(task, tuple(places), share, spread))
    return found


def compare(ours: Known, theirs: Answers, parts: Sequence[Stratum], *, margin: float = 0.0) -> Comparison:
    """Returns our chance to be ahead of a model that has answered everything, once we have too.

    Of a stratum that has not been touched no difference is expected.

    Args:
        ours: our answers so far, taken in the order of `steps`.
        theirs: all answers of the other.
        parts: see `strata`.
        margin: a lead counts only beyond so many standard errors of a whole comparison: what is less than the items'
            own noise says nothing about other items.

    """
    mean = variance = noise = 0.0
    for part in parts:
        known, answers = ours.get(part.task, {}), theirs[part.task]
        differences = [known[place] - answers[place] for place in part.places if place in known]
        size, seen = len(part.places), len(differences)
        average = sum(differences) / seen if seen else 0.0
        squares = sum((d - average) ** 2 for d in differences) + PRIOR * part.spread
        unit = squares / (max(seen, 1) - 1 + PRIOR)
        mean += part.share * average
        noise += part.share**2 * unit / size
        variance += part.share**2 * unit * (1.0 / seen - 1.0 / size if seen else 1.0 / size)
    lead = mean - margin * math.sqrt(noise)
    error = math.sqrt(max(0.0, variance))
    if error <= 0.0:
        return Comparison(mean, 0.0, 1.0 if lead > 0 else 0.0 if lead < 0 else 0.5)
    return Comparison(mean, error, 0.5 * math.erfc(-lead / error / math.sqrt(2.0)))


def estimate(ours: Known, jury: Sequence[Answers], *, weights: Mapping[str, float]) -> Estimate:
    """Estimates what all items would give a model that has answered some of them; see the module's text.

    Rasch model: P(item answered) = σ(ability − difficulty), with σ the logistic function. A score between 0 and 1 that
    is no yes or no counts as a share of an answer (the quasi-likelihood of a fractional response).
    """
    total = sum(weights.values())
    scores: dict[str, float] = {}
    fitness = variance = 0.0
    for task in jury[0]:
        columns = list(zip(*(one[task] for one in jury), strict=True))
        usual = sum(map(sum, columns)) / max(1, len(columns) * len(jury))
        # Half an answer of the usual kind is added, so that what nobody has answered yet is not impossible.
        easiness = [_logit((sum(column) + 0.5 * usual) / (len(column) + 0.5)) for column in columns]
        known = ours.get(task, {})
        ability = _ability([(easiness[place], score) for place, score in known.items()])
        rest = [_logistic(ability + easiness[place]) for place in range(len(columns)) if place not in known]
        scores[task] = (sum(known.values()) + sum(rest)) / len(columns)
        residual = sum((score - _logistic(ability + easiness[place])) ** 2 for place, score in known.items())
        unit = (residual + 0.25) / (len(known) + 1)
        weight = weights[task] / total
        fitness += weight * scores[task]
        # Items to come vary by themselves, and all of them with the error of the ability.
        variance += (weight / len(columns)) ** 2 * (len(rest) * unit + len(rest) ** 2 * unit / max(1, len(known)))
    margin = LEVEL * math.sqrt(variance)
    return Estimate(scores, fitness, max(0.0, fitness - margin), min(1.0, fitness + margin))


def _ability(answers: Sequence[tuple[float, float]]) -> float:
    """Maximum a posteriori by Newton's method; pairs of (easiness, score)."""
    groups: dict[float, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for easiness, score in answers:
        group = groups[round(easiness, 2)]
        group[0] += 1.0
        group[1] += score
    ability = 0.0
    for _ in range(12):
        slope, curve = -ability / ABILITY_SPREAD**2, 1.0 / ABILITY_SPREAD**2
        for easiness, (count, score) in groups.items():
            chance = _logistic(ability + easiness)
            slope += score - count * chance
            curve += count * chance * (1.0 - chance)
        step = max(-1.0, min(1.0, slope / curve))
        ability += step
        if abs(step) < 1e-6:
            break
    return ability


def _logit(share: float) -> float:
    share = min(1.0 - 1e-6, max(1e-6, share))
    return math.log(share / (1.0 - share))


def _logistic(value: float) -> float:
    return 1.0 / (1.0 + math.exp(-max(-40.0, min(40.0, value))))
