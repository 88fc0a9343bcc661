"""The tournament: EvoMerge's own strategy, and the default."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from heapq import nsmallest
from random import Random

from evomerge_common.domain.search_space import SearchSpace
from evomerge_common.domain.spec import SearchSpec
from evomerge_selector.domain.operators import merge_of_merges, mutate, random_genome
from evomerge_selector.domain.screening import Screen
from evomerge_selector.domain.strategies.evolution import Evolution
from evomerge_selector.domain.strategy import Proposal, ScoredCandidate

CHILDREN = 12
"""How many children are made for each that is proposed."""
SCREENED_RATE = 0.95


class EvolutionaryTournament(Evolution):
    """(μ+λ) evolution with tournament selection (Goldberg & Deb 1991), elites, and fresh blood on stagnation.

    The pool keeps the best `population` candidates, so elites never leave it. Parents win tournaments of
    `tournament_size`; with `niche`, by what their place in the pool is worth once all who are alike have shared it
    (fitness sharing, Goldberg & Richardson 1987; on ranks, since scores have no natural zero). `breeding: classic`
    makes children as the original did: the top two have three mutants each, the bottom six are merged in two triples.
    Where a race leaves estimates, the pool goes by what the screening model makes of them: of many estimates the
    highest are the luckiest, and relatives know better (ranking under noise: Jin & Branke 2005, "Evolutionary
    optimization in uncertain environments").
    """

    def __init__(self, space: SearchSpace, spec: SearchSpec, *, seed: int = 0) -> None:
        """Begins without a best one and without a model of the landscape."""
        super().__init__(space, spec, seed=seed)
        self.best = float("-inf")
        self.stale = 0
        self.screen = Screen(space)
        self.known: list[ScoredCandidate] = []  # of whom the pool is picked: twice as many, as they were told
        self.shares: dict[str, float] = {}  # digest → the part of its place in the pool that its niche leaves it

    def tell(self, candidate: ScoredCandidate) -> None:
        """Keeps the best in the pool, and shows the result to the screening model."""
        self.known = sorted([*self.known, candidate], key=lambda one: one.rank)[: 2 * self.spec.population]
        self._fill_pool(self.known)
        self._watch(candidate.fitness)
        self.screen.tell(candidate.genome, candidate.fitness, candidate.index, candidate.error)

    def tell_all(self, candidates: Sequence[ScoredCandidate]) -> None:
        """Learns many results at once: most of a long log leave no trace in the pool or in the model."""
        if len(candidates) <= self.spec.population:
            super().tell_all(candidates)
            return
        self.known = nsmallest(2 * self.spec.population, [*self.known, *candidates], key=lambda one: one.rank)
        self._fill_pool(self.known)
        for one in candidates:
            self._watch(one.fitness)
        self.screen.tell_all(candidates)

    def ask(self, index: int, rng: Random) -> Proposal:
        """Answers with the child that the screening model likes best, or with fresh blood when the search is stale."""
        if any(one.error for one in self.known):
            smooth = self.screen.smoothed()
            settled = (replace(one, fitness=smooth.get(one.index, one.fitness)) for one in self.known)
            self._fill_pool(sorted(settled, key=lambda one: one.rank))
        if self.pool and self.spec.breeding == "classic":
            return self._classic(index, rng)
        if self.pool and self.stale > 2 * self.spec.population and rng.random() < 0.25:
            self.screen.judge()
            return Proposal(random_genome(self.space, rng), "fresh")
        # One proposal in twenty goes unscreened: the model may be wrong everywhere that it has not seen.
        if rng.random() >= SCREENED_RATE:
            self.screen.judge()
            return super().ask(index, rng)
        children = [super(EvolutionaryTournament, self).ask(index, rng) for _ in range(CHILDREN)]
        best = children[self.screen.choose([child.genome for child in children])]
        # A climb on the model costs a millisecond, where one on the landscape would cost merges.
        return replace(best, genome=self.screen.climb(best.genome))

    def _watch(self, fitness: float) -> None:
        """Counts the results since the last step of `min_delta`."""
        if fitness > self.best + self.spec.min_delta:
            self.best, self.stale = fitness, 0
        else:
            self.stale += 1

    def _fill_pool(self, ranked: list[ScoredCandidate]) -> None:
        self.pool = ranked[: self.spec.population]
        if self.spec.niche:
            self.shares = {one.digest: place for one, place in zip(self.pool, self._shared(), strict=True)}

    def _parent(self, rng: Random) -> ScoredCandidate:
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
