"""Asks a cheap model of the landscape before an expensive one: of several children the most promising is proposed.

Surrogate-assisted evolution (Jin 2011, "Surrogate-assisted evolutionary computation"): a Gaussian process (Rasmussen &
Williams 2006) over the scored genomes, judged by an upper confidence bound (Srinivas et al. 2010), so that the search
still looks where the model knows little. Its length scale is the most likely of four. Plain floats in a fixed order, so
that the same log gives the same choice; a window keeps the cost of a question at some milliseconds however long the run
is. What is answered depends on what was told alone, never on how often was asked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from heapq import nlargest, nsmallest
from operator import itemgetter

from evomerge_common.domain.genome import Genome
from evomerge_common.domain.methods import traits_of
from evomerge_common.domain.search_space import SearchSpace
from evomerge_selector.domain.gaussian_process import BEST, LATEST, Point, Process, Vector, Window
from evomerge_selector.domain.operators import MAX_WEIGHT, MIN_DENSITY
from evomerge_selector.domain.strategy import ScoredCandidate

SCALES = (0.5, 0.8, 1.2, 2.0)
"""Length scales to choose from, in median distances of the window."""
METHOD_APART = 0.5
DENSITY_APART = 0.5
ENOUGH = 8
"""Points below which nothing is said."""
STRIDE, STEPS = 0.3, 6
"""Length of the first step of a climb, in widths of the kernel, and how many steps it takes."""


@dataclass
class Screen:
    """The model of what it was told; `choose` picks among genomes."""

    space: SearchSpace
    window: Window = field(default_factory=Window)
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


def _rows(weights: Sequence[float], columns: int) -> list[Sequence[float]]:
    return [weights[start : start + columns] for start in range(0, len(weights), columns)]
