"""Racing: a candidate is scored on a part of the items first, and on all of them only if it has a chance.

Two questions, answered by plain arithmetic on item scores, so that the same log gives the same answers. What is known
of the items comes from the jury: models that have answered all of them (the sources, and the best candidates so far).

* Which items first? `item_order`: mostly those that tell the jury apart, shuffled, and some of those that all of it
  passes or fails, since a new candidate seldom differs there. `steps` cuts the order into jobs.
* How good is it on all items? `ItemModel`: candidates are relatives of the jury, so a candidate's answers are regressed
  on the jury's (a Bayesian linear regression for each task: Rasmussen & Williams, Gaussian Processes for Machine
  Learning, 2006, 2.1). What was asked is kept, what was not is predicted, and the error of the prediction has both
  parts: the coefficients' and the unasked items' own (Cochran, Sampling Techniques, 1977, 7.8: regression estimates of
  a finite population). Estimating merged models from a subset of the items by a model of the items is the idea of
  MERGE3 (Mencattini et al., 2025, arXiv:2502.10436), which takes item response theory for it.

Racing goes back to Maron and Moore (Hoeffding races, 1993) and to F-Race (Birattari et al., 2002).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import mul

from evomerge_common.domain.triangles import cholesky, solve_forward

__all__ = ["Estimate", "ItemModel", "Step", "cost", "item_order", "shuffled", "steps"]

Answers = Mapping[str, Sequence[float]]
"""Task → score of every item of the split, in its order."""
Known = Mapping[str, Mapping[int, float]]
"""Task → place in the split's order → score, of some items."""
Order = Mapping[str, tuple[Sequence[int], Sequence[int]]]
"""Task → places of the items that tell the jury apart, and of those on which all of it agrees."""

FEWEST = 20
"""Answers, at least, before a question is put: of fewer, no standard error is to be believed."""
TELLING = 3
"""Items that tell the jury apart for each one on which it agrees, in the order in which they are asked."""
ABILITY = 0.1
"""Standard deviation, in score, by which a candidate is thought to be better or worse at a task than its like."""
NOISES = (0.15, 0.45, 1.35)
"""How much of the jury's spread on an item no regression explains: each is weighed by how well it explains answers."""
LEAST = 1e-6
"""Variance of an item at least, in score squared."""
LEAST_COST = 0.1
"""Evaluations that a candidate costs at least: however few its items were, it has been merged."""
LEVEL = 1.959964
"""Standard errors on either side of a 95% interval."""


@dataclass(frozen=True)
class Step:
    """Items that one job scores; after it the race asks whether to go on, if `asks`."""

    items: Mapping[str, tuple[int, ...]]
    asks: bool


@dataclass(frozen=True)
class Estimate:
    """What all items would give: task → score, and their weighted mean, the fitness.

    Attributes:
        error: standard error of the fitness.
        noise: standard deviation of the fitness over other items of the same kinds, as many as all.

    """

    scores: Mapping[str, float]
    fitness: float
    error: float
    noise: float

    @property
    def low(self) -> float:
        """Returns the lower end of the 95% interval."""
        return max(0.0, self.fitness - LEVEL * self.error)

    @property
    def high(self) -> float:
        """Returns the upper end of the 95% interval."""
        return min(1.0, self.fitness + LEVEL * self.error)

    def chance(self, fitness: float, *, margin: float = 0.0) -> float:
        """Returns the chance to be ahead of a model of this fitness once all items are scored.

        Args:
            fitness: of the other, from all items.
            margin: a lead counts only beyond so many times the noise: less says nothing about other items.

        """
        lead = self.fitness - fitness - margin * self.noise
        if self.error <= 0.0:
            return 1.0 if lead > 0 else 0.0 if lead < 0 else 0.5
        return 0.5 * math.erfc(-lead / self.error / math.sqrt(2.0))


def cost(items: int, size: int) -> int:
    """Returns what a candidate takes from the budget, in items, of whose `size` items so many were scored."""
    return max(items, math.ceil(LEAST_COST * size))


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


class ItemModel:
    """What a jury's answers tell of the items; made once for a jury, asked for every candidate that it judges."""

    def __init__(self, jury: Sequence[Answers], *, weights: Mapping[str, float]) -> None:
        """Calibrates the model to a jury; `weights`: of the tasks in the fitness."""
        total = sum(weights.values())
        self._tasks = {
            task: _TaskModel([one[task] for one in jury], weight / total) for task, weight in weights.items()
        }

    def estimate(self, known: Known) -> Estimate:
        """Estimates what all items would give a model that has answered some of them."""
        scores: dict[str, float] = {}
        fitness = variance = noise = 0.0
        for task, model in self._tasks.items():
            mean, doubt, spread = model.predict(known.get(task, {}))
            scores[task] = mean
            fitness += model.weight * mean
            variance += model.weight**2 * doubt
            noise += model.weight**2 * spread
        return Estimate(scores, fitness, math.sqrt(variance), math.sqrt(noise))


class _TaskModel:
    """The regression of one task: score − usual score = ability + Σ coefficient · (a juror's score − usual) + noise.

    The noise of an item has the variance `doubt` · ν, and ν is one of `NOISES`.
    """

    def __init__(self, jury: Sequence[Sequence[float]], weight: float) -> None:
        self.weight = weight
        self._usual = [sum(column) / len(jury) for column in zip(*jury, strict=True)]
        self._features = [[1.0] * len(self._usual)]
        self._features += [[a - u for a, u in zip(one, self._usual, strict=True)] for one in jury]
        self._spread = [sum(map(mul, column, column)) for column in zip(*self._features[1:], strict=True)]
        # A candidate is thought to differ from the usual as one juror more would: that is what the jury's spread says.
        self._precision = [1.0 / ABILITY**2] + [max(1.0, len(jury) - 1.0)] * len(jury)
        self._sums = [sum(one) for one in self._features]

    def predict(self, known: Mapping[int, float]) -> tuple[float, float, float]:
        """Returns the expected mean over all items, its variance, and that of a mean over as many other items."""
        places, size = sorted(known), len(self._usual)
        differences = [known[place] - self._usual[place] for place in places]
        doubts = self._doubts(differences)
        asked = [[one[place] for place in places] for one in self._features]
        doubted = [doubts[place] for place in places]
        unasked = [total - sum(one) for total, one in zip(self._sums, asked, strict=True)]
        fits = self._fits(asked, differences, doubted, unasked)
        most = max(likelihood for likelihood, *_ in fits)
        odds = [math.exp(likelihood - most) for likelihood, *_ in fits]
        odds = [one / sum(odds) for one in odds]
        lead = sum(share * rest for share, (_, rest, _) in zip(odds, fits, strict=True))
        noise = sum(map(mul, odds, NOISES))
        variance = sum(s * (doubt + (rest - lead) ** 2) for s, (_, rest, doubt) in zip(odds, fits, strict=True))
        variance += noise * (sum(doubts) - sum(doubted))
        answered = sum(known.values()) + sum(self._usual) - sum(self._usual[place] for place in places)
        is_whole = len(places) == size
        return (answered + lead) / size, 0.0 if is_whole else variance / size**2, noise * sum(doubts) / size**2

    def _doubts(self, differences: Sequence[float]) -> list[float]:
        """How far each item's score may lie from a prediction, squared.

        As far as the jury differs there, and for one item as in all of the task: as the jury does on average, or the
        candidate from the jury, whichever is more, since neither has shown everything.
        """
        jurors = len(self._features) - 1
        general = sum(self._spread) / jurors / len(self._spread)
        general = max(general, sum(map(mul, differences, differences)) / (len(differences) + 1), LEAST)
        return [(spread + general) / (jurors + 1) for spread in self._spread]

    def _fits(
        self,
        asked: Sequence[Sequence[float]],
        differences: Sequence[float],
        doubts: Sequence[float],
        unasked: Sequence[float],
    ) -> list[tuple[float, float, float]]:
        """Fits the coefficients, for each noise: log-likelihood, expected sum over the unasked items, its variance."""
        scaled = [[value / doubt for value, doubt in zip(one, doubts, strict=True)] for one in asked]
        square = [[sum(map(mul, one, other)) for other in scaled[: row + 1]] for row, one in enumerate(asked)]
        right = [sum(map(mul, one, differences)) for one in scaled]
        length = sum(difference * difference / doubt for difference, doubt in zip(differences, doubts, strict=True))
        found = []
        for noise in NOISES:
            rows = [[value / noise for value in row] for row in square]
            for row, precision in zip(rows, self._precision, strict=True):
                row[-1] += precision
            lower = cholesky(rows)
            explained = solve_forward(lower, [value / noise for value in right])
            wanted = solve_forward(lower, unasked)
            likelihood = 0.5 * (sum(map(mul, explained, explained)) - length / noise - len(doubts) * math.log(noise))
            likelihood -= sum(math.log(row[-1]) for row in lower)
            found.append((likelihood, sum(map(mul, wanted, explained)), sum(map(mul, wanted, wanted))))
        return found
