"""Random search."""

from __future__ import annotations

from random import Random

from evomerge_selector.domain.operators import random_genome
from evomerge_selector.domain.strategy import Proposal, ScoredCandidate, Strategy


class RandomSearch(Strategy):
    """Draws independently from the whole space: the yardstick."""

    def tell(self, candidate: ScoredCandidate) -> None:
        """Learns nothing."""

    def ask(self, index: int, rng: Random) -> Proposal:
        """Answers with any genome."""
        return Proposal(random_genome(self.space, rng), "random")
