"""How the evolving strategies make children of those whom they pick as parents."""

from __future__ import annotations

from abc import abstractmethod
from random import Random

from evomerge_common.domain.search_space import SearchSpace
from evomerge_common.domain.spec import SearchSpec
from evomerge_selector.domain.operators import crossover, differential, merge_of_merges, mutate, random_genome
from evomerge_selector.domain.strategy import Proposal, ScoredCandidate, Strategy

CROSSOVER_RATE = 0.35
DIFFERENTIAL_RATE = 0.35
NESTING_RATE = 0.03


class Evolution(Strategy):
    """What the evolving strategies share: two parents make a child, one a mutant.

    Attributes:
        pool: who may become a parent; a strategy fills it in `tell`.

    """

    def __init__(self, space: SearchSpace, spec: SearchSpec, *, seed: int = 0) -> None:
        """Begins with nobody in the pool."""
        super().__init__(space, spec, seed=seed)
        self.pool: list[ScoredCandidate] = []

    def ask(self, index: int, rng: Random) -> Proposal:
        """Answers with a child of one, two or three parents; with any genome while there are none."""
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

    @abstractmethod
    def _parent(self, rng: Random) -> ScoredCandidate:
        """Picks one of the pool to have a child. Called by `ask`, once for each parent it needs."""
