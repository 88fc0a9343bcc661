"""A Gaussian process over some scored points, and what it says of a place.

Rasmussen & Williams 2006, "Gaussian Processes for Machine Learning"; judged by an upper confidence bound (Srinivas et
al. 2010). Plain floats in a fixed order, so that the same points give the same answer on every machine.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from math import dist, exp
from operator import mul
from statistics import median

from evomerge_common.domain.triangles import cholesky, solve_forward

BEST, LATEST = 20, 10
"""How many of the fittest and of the newest candidates the model is made of."""
NOISE = 0.02
"""Variance of a score that the genes do not explain, in variances of fitness."""
CURIOSITY = 0.6
"""Worth of one standard deviation of doubt."""

Vector = tuple[float, ...]
Point = tuple[float, int, Vector]
"""(−fitness, index, genes): sorts best first."""


@dataclass(frozen=True)
class Window:
    """The points that the model is made of, fittest first, and how far apart they are (a lower triangle, no diagonal).

    Of two windows that follow each other nearly all distances are the same: only the new point's are computed.
    """

    points: tuple[Point, ...] = ()
    apart: tuple[tuple[float, ...], ...] = ()
    errors: tuple[float, ...] = ()  # standard error of each point's fitness

    @classmethod
    def of(cls, points: Sequence[Point], errors: Sequence[float]) -> Window:
        """Makes the window of these points, fittest first, from nothing."""
        apart = (tuple(dist(one[2], other[2]) for other in points[:place]) for place, one in enumerate(points))
        return cls(tuple(points), tuple(apart), tuple(errors))

    @cached_property
    def median(self) -> float:
        """Returns the median distance."""
        return median([d for row in self.apart for d in row])

    def following(self, point: Point, error: float = 0.0) -> Window:
        """Returns this window with one more point, and, if that is too long, one less: of those that are not among
        the newest the least fit. `error` is the standard error of the point's fitness.
        """
        place = bisect(self.points, point)
        away = [dist(point[2], vector) for _, _, vector in self.points]
        later = zip(self.apart[place:], away[place:], strict=True)
        whole = Window(
            (*self.points[:place], point, *self.points[place:]),
            (*self.apart[:place], tuple(away[:place]), *((*row[:place], d, *row[place:]) for row, d in later)),
            (*self.errors[:place], error, *self.errors[place:]),
        )
        return whole._without_one() if len(whole.points) > BEST + LATEST else whole

    def _without_one(self) -> Window:
        newest = sorted(index for _, index, _ in self.points)[-LATEST]
        place = next(i for i in range(len(self.points) - 1, -1, -1) if self.points[i][1] < newest)
        return Window(
            self.points[:place] + self.points[place + 1 :],
            (*self.apart[:place], *(row[:place] + row[place + 1 :] for row in self.apart[place + 1 :])),
            self.errors[:place] + self.errors[place + 1 :],
        )


@dataclass
class Process:
    """A Gaussian process with a squared exponential kernel, fitted; fitness is told in its own standard deviations."""

    points: list[Vector]
    steepness: float  # −1 ∕ width²
    lower: list[list[float]]
    forward: list[float]  # the x with lower·x = fitness
    likelihood: float
    spread: float = 1.0  # standard deviation of the points' fitness

    @classmethod
    def fit(cls, window: Window, scale: float) -> Process | None:
        """Fits the process to the points; None when every point is the same."""
        width = scale * window.median
        if width <= 0.0:
            return None
        steepness = -1.0 / (width * width)
        scores = [-negative for negative, _, _ in window.points]
        mean = sum(scores) / len(scores)
        spread = math.sqrt(sum((s - mean) ** 2 for s in scores) / len(scores)) or 1.0
        noises = [NOISE + (error / spread) ** 2 for error in window.errors]
        lower = cholesky(
            [
                [exp(d * d * steepness) for d in row] + [1.0 + noise]
                for row, noise in zip(window.apart, noises, strict=True)
            ]
        )
        forward = solve_forward(lower, [(s - mean) / spread for s in scores])
        likelihood = -0.5 * sum(map(mul, forward, forward)) - sum(math.log(row[-1]) for row in lower)
        return cls([vector for _, _, vector in window.points], steepness, lower, forward, likelihood, spread)

    @cached_property
    def weights(self) -> list[float]:
        """Returns how much of the fitness each point stands for: the mean at a place is their sum, by nearness."""
        return self.backward(self.forward)

    @cached_property
    def genes(self) -> list[Vector]:
        """Returns the points' coordinates, one by one."""
        return list(zip(*self.points, strict=True))

    @cached_property
    def _columns(self) -> list[tuple[float, ...]]:
        """Columns of `lower`, last first, each from its lowest row up."""
        return list(zip_longest(*reversed(self.lower), fillvalue=0.0))[::-1]

    def backward(self, right: Sequence[float]) -> list[float]:
        """Returns the x with lowerᵀ·x = right."""
        negated: list[float] = []
        for column, row, value in zip(self._columns, reversed(self.lower), reversed(right), strict=True):
            negated.append(-sum(map(mul, negated, column), value) / row[-1])
        return [-x for x in reversed(negated)]

    def at(self, vector: Vector) -> View:
        """Returns what the model says of a place."""
        return View(self, vector)


class View:
    """What a model says of one place; only what is asked for costs."""

    def __init__(self, model: Process, vector: Vector) -> None:
        """Finds the mean of the fitness there."""
        self.vector = vector
        self._model = model
        self._near = [exp((d := dist(vector, point)) * d * model.steepness) for point in model.points]
        self._forward: list[float] = []  # the first entries of the x with lower·x = near
        self._explained = 0.0  # their squares' sum: what the points take of the variance
        self.mean: float = sum(map(mul, self._near, model.weights))

    def exceeds(self, promise: float) -> bool:
        """Tells whether the promise here is greater than another, from as much of the variance as that takes."""
        needed = max(0.0, (promise - self.mean) / CURIOSITY)
        return self._explain(1.0 + NOISE - needed * needed + 1e-9) and self.promise > promise

    def _explain(self, limit: float = math.inf) -> bool:
        """Goes on until the variance is known (True), or more than `limit` of it is explained (False)."""
        found, explained, lower = self._forward, self._explained, self._model.lower
        for place in range(len(found), len(lower)):
            if explained > limit:
                break
            row = lower[place]
            x = (self._near[place] - sum(map(mul, row, found))) / row[-1]
            explained += x * x
            found.append(x)
        self._explained = explained
        return len(found) == len(lower)

    @cached_property
    def promise(self) -> float:
        """Returns the upper confidence bound."""
        return self.mean + CURIOSITY * self._doubt

    def slope(self, count: int) -> list[float]:
        """Returns the gradient of the promise in the first `count` genes, but for a positive factor."""
        model, share = self._model, CURIOSITY / self._doubt
        solved = model.backward(self._forward)
        pull = [n * (w - share * b) for n, w, b in zip(self._near, model.weights, solved, strict=True)]
        total = sum(pull)
        genes = zip(model.genes[:count], self.vector, strict=False)
        return [sum(map(mul, pull, gene)) - total * x for gene, x in genes]

    @cached_property
    def _doubt(self) -> float:
        """Standard deviation of a score that would be measured here."""
        self._explain()
        return math.sqrt(max(1e-9, 1.0 + NOISE - self._explained))
