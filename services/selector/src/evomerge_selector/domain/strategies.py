"""Strategies behind one interface: `tell` results in proposal order, `ask` for the next genome.

A strategy is deterministic: what it answers depends on what it was told and on the `random.Random` that comes with
the question, which the state machine seeds with (run seed, place in the sequence).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from random import Random
from typing import Protocol

from evomerge_common.domain.genome import Genome, SearchSpace
from evomerge_common.domain.pareto import Point, crowding, fronts
from evomerge_common.domain.spec import SearchSpec
from evomerge_selector.domain.operators import crossover, differential, merge_of_merges, mutate, random_genome
from evomerge_selector.domain.screening import Screen

CROSSOVER_RATE = 0.35
DIFFERENTIAL_RATE = 0.35
NESTING_RATE = 0.03
CHILDREN = 12
"""How many children are made for each that is proposed."""
SCREENED_RATE = 0.95


@dataclass(frozen=True)
class Individual:
    """A scored genome; of a candidate that failed, `fitness` is −inf and `scores` (one a task) is empty."""

    digest: str
    genome: Genome
    fitness: float
    index: int
    scores: Point = ()

    @property
    def rank(self) -> tuple[float, int]:
        """Sort key, best first; the earlier proposal wins a tie."""
        return (-self.fitness, self.index)


@dataclass(frozen=True)
class Proposal:
    """A genome with how it came about."""

    genome: Genome
    operator: str
    parents: tuple[str, ...] = ()


class Strategy(Protocol):
    """Ask / tell.

    Attributes:
        is_stateful: whether asking changes what it answers next, so that past questions must be asked again.

    """

    is_stateful: bool

    def tell(self, individual: Individual) -> None: ...
    def ask(self, index: int, rng: Random) -> Proposal: ...


@dataclass
class RandomSearch:
    """Independent draws from the whole space: the yardstick."""

    space: SearchSpace
    spec: SearchSpec
    is_stateful: bool = False

    def tell(self, individual: Individual) -> None:
        """Learns nothing."""

    def ask(self, index: int, rng: Random) -> Proposal:
        return Proposal(random_genome(self.space, rng), "random")


@dataclass
class Evolution:
    """What the evolving strategies share: two parents make a child, one a mutant. `_parent` says who becomes one."""

    space: SearchSpace
    spec: SearchSpec
    pool: list[Individual] = field(default_factory=list)
    is_stateful: bool = False

    def ask(self, index: int, rng: Random) -> Proposal:
        if not self.pool:
            return Proposal(random_genome(self.space, rng), "random")
        first = self._parent(rng)
        draw = rng.random()
        if draw < CROSSOVER_RATE:
            second = self._parent(rng)
            if second.digest != first.digest:
                child = crossover(first.genome, second.genome, self.space, rng)
                if rng.random() < 0.5:
                    child = mutate(child, self.space, rng)
                return Proposal(child, "crossover", (first.digest, second.digest))
        elif draw < CROSSOVER_RATE + DIFFERENTIAL_RATE and len(self.pool) > 2:
            second, third = rng.sample([one for one in self.pool if one.digest != first.digest], 2)
            step = differential(first.genome, second.genome, third.genome, self.space, rng)
            if step is not None:
                return Proposal(step, "differential", (first.digest, second.digest, third.digest))
        elif draw > 1.0 - NESTING_RATE and "nesting" in self.space.genes:
            second = self._parent(rng)
            # A merge of merges of merges would grow without end: only first-hand genomes are bred.
            if second.digest != first.digest and not (first.genome.ingredients or second.genome.ingredients):
                child = merge_of_merges([first.genome, second.genome], self.space, rng)
                return Proposal(child, "breed", (first.digest, second.digest))
        return Proposal(mutate(first.genome, self.space, rng), "mutation", (first.digest,))

    def _parent(self, rng: Random) -> Individual:
        raise NotImplementedError


@dataclass
class TournamentSearch(Evolution):
    """(μ+λ) evolution with tournament selection (Goldberg & Deb 1991), elites, and fresh blood on stagnation.

    The pool keeps the best `population` individuals, so elites never leave it. Parents win tournaments of
    `tournament_size`; with `niche`, by what their place in the pool is worth once all who are alike have shared it
    (fitness sharing, Goldberg & Richardson 1987; on ranks, since scores have no natural zero). `breeding: classic`
    makes children as the original did: the top two have three mutants each, the bottom six are merged in two triples.
    """

    best: float = float("-inf")
    stale: int = 0
    screen: Screen = field(init=False)
    shares: dict[str, float] = field(default_factory=dict)
    """Of each in the pool: the share of its place that its niche leaves it."""

    def __post_init__(self) -> None:
        self.screen = Screen(self.space)

    def tell(self, individual: Individual) -> None:
        self.pool = sorted([*self.pool, individual], key=lambda one: one.rank)[: self.spec.population]
        if self.spec.niche:
            self.shares = {one.digest: place for one, place in zip(self.pool, self._shared(), strict=True)}
        if individual.fitness > self.best + self.spec.min_delta:
            self.best, self.stale = individual.fitness, 0
        else:
            self.stale += 1
        self.screen.tell(individual.genome, individual.fitness, individual.index)

    def ask(self, index: int, rng: Random) -> Proposal:
        if self.pool and self.spec.breeding == "classic":
            return self._classic(index, rng)
        if self.pool and self.stale > 2 * self.spec.population and rng.random() < 0.25:
            return Proposal(random_genome(self.space, rng), "fresh")
        # One question in twenty goes unscreened: the model may be wrong everywhere that it has not seen.
        if rng.random() >= SCREENED_RATE:
            return super().ask(index, rng)
        children = [super(TournamentSearch, self).ask(index, rng) for _ in range(CHILDREN)]
        best = children[self.screen.choose([child.genome for child in children])]
        # A climb on the model costs a millisecond, where one on the landscape would cost merges.
        return replace(best, genome=self.screen.climb(best.genome))

    def _parent(self, rng: Random) -> Individual:
        drawn = [rng.choice(self.pool) for _ in range(self.spec.tournament_size)]
        return min(drawn, key=lambda one: (-self.shares.get(one.digest, 0.0), one.rank))

    def _shared(self) -> Iterator[float]:
        """Each one's worth, 1 for the best … 1 ∕ n for the last, over how crowded its niche is."""
        count, radius = len(self.pool), self.spec.niche
        for place, one in enumerate(self.pool):
            crowd = sum(max(0.0, 1.0 - one.genome.distance(other.genome) / radius) for other in self.pool)
            yield (count - place) / count / crowd

    def _classic(self, index: int, rng: Random) -> Proposal:
        place = index % 8
        if place < 6:
            parent = self.pool[min(place // 3, len(self.pool) - 1)]
            return Proposal(mutate(parent.genome, self.space, rng), "mutation", (parent.digest,))
        bottom = self.pool[-6:]
        triple = bottom[:3] if place == 6 else bottom[3:]
        # A merge of merges of merges would grow without end: only first-hand genomes are bred.
        parents = [one for one in triple if not one.genome.ingredients] or self.pool[:1]
        if len(parents) < 2:
            return Proposal(mutate(parents[0].genome, self.space, rng), "mutation", (parents[0].digest,))
        child = merge_of_merges([one.genome for one in parents], self.space, rng)
        return Proposal(child, "breed", tuple(one.digest for one in parents))


@dataclass
class ParetoSearch(Evolution):
    """NSGA-II (Deb et al. 2002) in its steady-state form: every task is an objective.

    The pool is what survives non-dominated sorting and, within the last layer that fits in part, crowding. Parents win
    binary tournaments of layer, then crowding. The run's champion is the front's knee.
    """

    layer: dict[str, int] = field(default_factory=dict)
    room: dict[str, float] = field(default_factory=dict)

    def tell(self, individual: Individual) -> None:
        if not individual.scores:
            return  # a failed candidate has no place among the objectives
        members = [*self.pool, individual]
        kept: list[Individual] = []
        self.layer.clear()
        self.room.clear()
        for rank, indices in enumerate(fronts([one.scores for one in members])):
            one_layer = [members[i] for i in indices]
            room = dict(zip(indices, crowding([one.scores for one in one_layer]), strict=True))
            order = sorted(indices, key=lambda i: (-room[i], members[i].index))
            for i in order[: self.spec.population - len(kept)]:
                kept.append(members[i])
                self.layer[members[i].digest], self.room[members[i].digest] = rank, room[i]
            if len(kept) == self.spec.population:
                break
        self.pool = sorted(kept, key=lambda one: one.index)

    def _parent(self, rng: Random) -> Individual:
        pair = (rng.choice(self.pool), rng.choice(self.pool))
        return min(pair, key=lambda one: (self.layer[one.digest], -self.room[one.digest], one.index))


@dataclass
class MapElitesSearch(Evolution):
    """MAP-Elites (Mouret & Clune 2015): the best candidate of every skill cell stays, and every cell breeds alike.

    A cell is the set of tasks at which a candidate is better than the average source; the first candidates, which are
    the sources, set that measure. Of more than eight tasks the first eight count.
    """

    sources: int = 2
    cells: dict[tuple[bool, ...], Individual] = field(default_factory=dict)
    measure: list[Point] = field(default_factory=list)

    def tell(self, individual: Individual) -> None:
        if not individual.scores:
            return
        if len(self.measure) < self.sources:
            self.measure.append(individual.scores)
        means = [sum(column) / len(column) for column in zip(*self.measure, strict=True)]
        cell = tuple(score > mean for score, mean in zip(individual.scores[:8], means, strict=False))
        if cell not in self.cells or individual.rank < self.cells[cell].rank:
            self.cells[cell] = individual
        self.pool = sorted(self.cells.values(), key=lambda one: one.index)

    def _parent(self, rng: Random) -> Individual:
        return rng.choice(self.pool)
