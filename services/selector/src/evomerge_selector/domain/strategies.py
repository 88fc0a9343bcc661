"""Strategies behind one interface: `tell` results in proposal order, `ask` for the next genome.

A strategy is deterministic: what it answers depends on what it was told and on the `random.Random` that comes with
the question, which the state machine seeds with (run seed, place in the sequence).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Protocol

from evomerge_common.domain.genome import Genome, SearchSpace
from evomerge_common.domain.spec import SearchSpec
from evomerge_common.errors import SpecError
from evomerge_selector.domain.operators import crossover, merge_of_merges, mutate, random_genome


@dataclass(frozen=True)
class Individual:
    """A scored genome; `fitness` is −inf for a candidate that failed."""

    digest: str
    genome: Genome
    fitness: float
    index: int

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
    """Ask / tell."""

    def tell(self, individual: Individual) -> None: ...
    def ask(self, index: int, rng: Random) -> Proposal: ...


@dataclass
class RandomSearch:
    """Independent draws from the whole space: the yardstick."""

    space: SearchSpace
    spec: SearchSpec

    def tell(self, individual: Individual) -> None:
        """Learns nothing."""

    def ask(self, index: int, rng: Random) -> Proposal:
        return Proposal(random_genome(self.space, rng), "random")


@dataclass
class TournamentSearch:
    """(μ+λ) evolution with tournament selection (Goldberg & Deb 1991), elites, and fresh blood on stagnation.

    The pool keeps the best `population` individuals, so elites never leave it. Parents win tournaments of
    `tournament_size`. `breeding: classic` makes children as the original did: the top two have three mutants each, and
    the bottom six are merged in two triples.
    """

    space: SearchSpace
    spec: SearchSpec
    pool: list[Individual] = field(default_factory=list)
    best: float = float("-inf")
    stale: int = 0

    def tell(self, individual: Individual) -> None:
        self.pool = sorted([*self.pool, individual], key=lambda one: one.rank)[: self.spec.population]
        if individual.fitness > self.best + self.spec.min_delta:
            self.best, self.stale = individual.fitness, 0
        else:
            self.stale += 1

    def elites(self) -> list[Individual]:
        """The best of the pool, best first."""
        return self.pool[: self.spec.elites]

    def ask(self, index: int, rng: Random) -> Proposal:
        if not self.pool:
            return Proposal(random_genome(self.space, rng), "random")
        if self.spec.breeding == "classic":
            return self._classic(index, rng)
        if self.stale > 2 * self.spec.population and rng.random() < 0.25:
            return Proposal(random_genome(self.space, rng), "fresh")
        first = self._tournament(rng)
        draw = rng.random()
        if draw < 0.55:
            second = self._tournament(rng)
            if second.digest != first.digest:
                child = crossover(first.genome, second.genome, self.space, rng)
                if rng.random() < 0.5:
                    child = mutate(child, self.space, rng)
                return Proposal(child, "crossover", (first.digest, second.digest))
        return Proposal(mutate(first.genome, self.space, rng), "mutation", (first.digest,))

    def _tournament(self, rng: Random) -> Individual:
        return min((rng.choice(self.pool) for _ in range(self.spec.tournament_size)), key=lambda one: one.rank)

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


def make_strategy(space: SearchSpace, spec: SearchSpec) -> Strategy:
    """The strategy that the spec names.

    Raises:
        SpecError: it names none.

    """
    if spec.strategy == "random":
        return RandomSearch(space, spec)
    if spec.strategy == "tournament":
        return TournamentSearch(space, spec)
    raise SpecError(f"unknown strategy {spec.strategy!r}", ("search", "strategy"))
