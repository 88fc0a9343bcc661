"""MAP-Elites: the best of every skill."""

from __future__ import annotations

from random import Random

from evomerge_common.domain.pareto import Point
from evomerge_common.domain.search_space import SearchSpace
from evomerge_common.domain.spec import SearchSpec
from evomerge_selector.domain.strategies.evolution import Evolution
from evomerge_selector.domain.strategy import ScoredCandidate


class MapElitesSearch(Evolution):
    """MAP-Elites (Mouret & Clune 2015): the best candidate of every skill cell stays, and every cell breeds alike.

    A cell is the set of tasks at which a candidate is better than the average source; the first candidates, which are
    the sources, set that measure. Of more than eight tasks the first eight count.
    """

    def __init__(self, space: SearchSpace, spec: SearchSpec, *, seed: int = 0) -> None:
        """Begins without cells."""
        super().__init__(space, spec, seed=seed)
        self.cells: dict[tuple[bool, ...], ScoredCandidate] = {}
        self.measure: list[Point] = []  # task scores of the sources

    def tell(self, candidate: ScoredCandidate) -> None:
        """Puts it into its cell, if it is better than who is there."""
        if not candidate.scores:
            return
        if len(self.measure) < len(self.space.models):
            self.measure.append(candidate.scores)
        means = [sum(column) / len(column) for column in zip(*self.measure, strict=True)]
        cell = tuple(score > mean for score, mean in zip(candidate.scores[:8], means, strict=False))
        if cell not in self.cells or candidate.rank < self.cells[cell].rank:
            self.cells[cell] = candidate
        self.pool = sorted(self.cells.values(), key=lambda one: one.index)

    def _parent(self, rng: Random) -> ScoredCandidate:
        return rng.choice(self.pool)
