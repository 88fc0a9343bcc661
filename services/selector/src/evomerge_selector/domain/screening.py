"""Asks a cheap model of the landscape before an expensive one: of several children the most promising is proposed.

Surrogate-assisted evolution (Jin 2011, "Surrogate-assisted evolutionary computation"): a Gaussian process (Rasmussen &
Williams 2006) over the scored genomes, judged by an upper confidence bound (Srinivas et al. 2010), so that the search
still looks where the model knows little. Its length scale is the most likely of four. Plain floats in a fixed order, so
that the same log gives the same choice; a window keeps the cost of a question at some milliseconds however long the run
is. What is answered depends on what was told alone, never on how often was asked.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from heapq import nlargest, nsmallest
from itertools import zip_longest
from math import dist, exp
from operator import itemgetter, mul
from statistics import median

from evomerge_common.domain.genome import Genome
from evomerge_common.domain.methods import traits_of
from evomerge_common.domain.search_space import SearchSpace
from evomerge_common.domain.triangles import cholesky, solve_forward
from evomerge_selector.domain.operators import MAX_WEIGHT, MIN_DENSITY
from evomerge_selector.domain.strategy import ScoredCandidate

BEST, LATEST = 20, 10
"""How many of the fittest and of the newest candidates the model is made of."""
NOISE = 0.02
"""Variance of a score that the genes do not explain, in variances of fitness."""
CURIOSITY = 0.6
"""Worth of one standard deviation of doubt."""
SCALES = (0.5, 0.8, 1.2, 2.0)
"""Length scales to choose from, in median distances of the window."""
METHOD_APART = 0.5
DENSITY_APART = 0.5
ENOUGH = 8
"""Points below which nothing is said."""
STRIDE, STEPS = 0.3, 6
"""Length of the first step of a climb, in widths of the kernel, and how many steps it takes."""

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
class Screen:
    """The model of what it was told; `choose` picks among genomes."""

    space: SearchSpace
    window: Window = Window()
    _results_count: int = 0
    _earlier: list[Window] = field(default_factory=lambda: [Window() for _ in SCALES])
    _likelihood: dict[int, float] = field(default_factory=dict)
    _fitted: tuple[int, Process | None] = (0, None)  # after how many tells, and the model

    def __post_init__(self) -> None:
        # Linear ones are told apart by their weights.
        self._apart = [name for name in self.space.methods if not traits_of(name).linear]

    def tell(self, genome: Genome, fitness: float, index: int, error: float = 0.0) -> None:
        """Learns one more scored genome; one without weights teaches nothing.

        `error` is the standard error of the fitness: 0 where every item was seen, more where it is an estimate, of
        which the model then believes the less (Goldberg, Williams & Bishop 1998, input-dependent noise).
        """
        vector = self._vector(genome)
        if vector is None or fitness == float("-inf"):
            return
        self.window = self.window.following((-fitness, index, vector), error)
        # A length scale is judged on every eighth state of the window, each on another, so that a question costs one
        # or two decompositions and not four.
        turn, is_between = divmod(self._results_count % (2 * len(SCALES)), 2)
        self._results_count += 1
        if not is_between:
            self._earlier[turn] = self.window
            self._likelihood.pop(turn, None)

    def tell_all(self, candidates: Sequence[ScoredCandidate]) -> None:
        """Learns many at once: the same as `tell` for each, but only the last states of the window are made.

        Each of `2 · len(SCALES)` states in a row replaces another one that is judged, so of those before only the
        window itself is left: the newest points, and of the others the fittest.
        """
        teaching = [one for one in candidates if one.mixes_models and one.fitness > float("-inf")]
        passed, rest = teaching[: -2 * len(SCALES)], teaching[-2 * len(SCALES) :]
        if passed:
            self._pass_over(passed)
        for one in rest:
            self.tell(one.genome, one.fitness, one.index, one.error)

    def _pass_over(self, candidates: Sequence[ScoredCandidate]) -> None:
        """Makes the window that these leave, at once: it has the newest points, and of the others the fittest."""
        known = zip(self.window.points, self.window.errors, strict=True)
        found: list[tuple[float, int, float, Vector | ScoredCandidate]] = [
            *((negative, index, error, vector) for (negative, index, vector), error in known),
            *((-one.fitness, one.index, one.error, one) for one in candidates),
        ]
        newest = set(nlargest(LATEST, (index for _, index, _, _ in found)))
        fittest = nsmallest(BEST, (one for one in found if one[1] not in newest), key=itemgetter(0, 1))
        left = sorted([*fittest, *(one for one in found if one[1] in newest)], key=itemgetter(0, 1))
        points: list[Point] = []
        for negative, index, _, seen in left:
            vector = self._vector(seen.genome) if isinstance(seen, ScoredCandidate) else seen
            assert vector is not None
            points.append((negative, index, vector))
        self.window = Window.of(points, [error for _, _, error, _ in left])
        self._results_count += len(candidates)

    def choose(self, genomes: Sequence[Genome]) -> int:
        """Picks the most promising genome, as an index; the first when nothing can be said."""
        vectors = [self._vector(genome) for genome in genomes]
        if len(self.window.points) < ENOUGH or len(genomes) == 1:
            return 0
        model = self._model()
        if model is None:
            return 0
        places = [(place, model.at(vector)) for place, vector in enumerate(vectors) if vector is not None]
        # The likeliest first, so that few need their whole variance; of equals the first stays the choice.
        best, promise = 0, -math.inf
        for place, view in sorted(places, key=lambda one: -one[1].mean):
            if view.exceeds(promise):
                best, promise = place, view.promise
        return best

    def climb(self, genome: Genome) -> Genome:
        """Takes a genome some steps up the model's slope; returns it as it was where there is none.

        Weights and densities move, within their bounds; the weights of a mean as shares.
        """
        vector = self._vector(genome)
        model = self._model() if vector and len(self.window.points) >= ENOUGH else None
        if vector is None or model is None:
            return genome
        columns = len(genome.weights[0])
        weights = len(genome.weights) * columns
        free = weights + len(genome.density)
        stride = STRIDE / math.sqrt(-model.steepness)
        view = model.at(vector)
        for _ in range(STEPS):
            best, slope = view.vector, view.slope(free)
            steepest = math.hypot(*slope)
            if steepest <= 0.0:
                break
            reach = stride / steepest
            moved = [min(MAX_WEIGHT, max(0.0, x + reach * s)) for x, s in zip(best[:weights], slope, strict=False)]
            density = [
                min(DENSITY_APART, max(DENSITY_APART * MIN_DENSITY, x + reach * s))
                for x, s in zip(best[weights:free], slope[weights:], strict=True)
            ]
            if genome.traits.is_mean:
                moved = [w / total for row in _rows(moved, columns) for total in [sum(row) or 1.0] for w in row]
            ahead = model.at((*moved, *density, *best[free:]))
            if ahead.exceeds(view.promise):
                view = ahead
            else:
                stride *= 0.4
        best = view.vector
        return replace(
            genome,
            weights=tuple(tuple(round(w, 4) for w in row) for row in _rows(best[:weights], columns)),
            density=tuple(round(d / DENSITY_APART, 4) for d in best[weights:free]),
        )

    def smoothed(self) -> dict[int, float]:
        """Returns, by index, the fitness that each point of the window has once its relatives are heard, too.

        It is the model's mean at the point; where every item was seen, the fitness stays as it was told.
        """
        model = self._model() if len(self.window.points) >= ENOUGH else None
        if model is None:
            return {}
        points = zip(self.window.points, self.window.errors, model.weights, strict=True)
        # With (kernel + noise)·weights = fitness, the mean at a point, kernel·weights, is the fitness − noise·weight.
        return {index: -negative - error**2 * weight / model.spread for (negative, index, _), error, weight in points}

    def _model(self) -> Process | None:
        if self._fitted[0] != self._results_count:
            self._fitted = (self._results_count, self._fit())
        return self._fitted[1]

    def judge(self) -> dict[int, Process | None]:
        """Judges the length scales that are due; returns what was fitted to the whole window, by turn.

        A question does so first; called where none is asked, it leaves the next one less to do.
        """
        newest: dict[int, Process | None] = {}
        for turn, window in enumerate(self._earlier):
            if turn not in self._likelihood and len(window.points) >= ENOUGH:
                fitted = Process.fit(window, SCALES[turn])
                self._likelihood[turn] = -math.inf if fitted is None else fitted.likelihood
                if window is self.window:
                    newest[turn] = fitted
        return newest

    def _fit(self) -> Process | None:
        newest = self.judge()
        if not self._likelihood:
            return None
        best = max(self._likelihood, key=lambda turn: (self._likelihood[turn], turn))
        return newest[best] if best in newest else Process.fit(self.window, SCALES[best])

    def _vector(self, genome: Genome) -> Vector | None:
        """Genes as they act: a mean knows only shares, and is otherwise a sum of task vectors."""
        if not genome.weights or genome.ingredients:
            return None
        rows: Sequence[Sequence[float]] = genome.weights
        if genome.traits.is_mean:
            rows = [[w / (sum(row) or 1.0) for w in row] for row in rows]
        density = genome.density or (1.0,) * len(genome.weights)
        cuts = genome.cuts or self.space.even_cuts
        mask = genome.mask or (0.0,) * len(self.space.models)
        return (
            *(w for row in rows for w in row),
            *(DENSITY_APART * d for d in density),
            *(cut / self.space.num_layers for cut in cuts),
            *(DENSITY_APART * rate for rate in mask),
            *(METHOD_APART if genome.method == name else 0.0 for name in self._apart),
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


def _rows(weights: Sequence[float], columns: int) -> list[Sequence[float]]:
    return [weights[start : start + columns] for start in range(0, len(weights), columns)]
