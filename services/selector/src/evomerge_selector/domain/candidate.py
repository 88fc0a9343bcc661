"""A candidate of a run: what was proposed, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass

from evomerge_common.domain.genome import Genome
from evomerge_common.domain.messages import CandidateProposed, CandidateRaced, ErrorInfo
from evomerge_common.domain.pareto import Point
from evomerge_common.domain.racing import LEVEL

FAILED = float("-inf")
"""Fitness of a candidate that could not be merged or scored: the worst there is."""


@dataclass(frozen=True)
class Candidate:
    """A proposal with what became of it. Of one that was stopped, fitness and scores are estimates.

    `credits`: of each task the sum of its items' partial credit, and of how many items; empty where none is known.
    `violation`: how far the scores are below the run's bounds, summed over its constraints; 0: all are met.
    """

    proposed: CandidateProposed
    fitness: float | None = None
    scores: Point = ()
    error: ErrorInfo | None = None
    raced: CandidateRaced | None = None
    violation: float = 0.0
    credits: tuple[tuple[float, int], ...] = ()

    @property
    def is_whole(self) -> bool:
        """Tells whether all items were scored: only then may it be compared with others."""
        return self.fitness is not None and self.fitness > FAILED and not (self.raced and self.raced.stopped)

    @property
    def fitness_error(self) -> float:
        """Returns the standard error of the fitness: 0 unless the candidate was stopped."""
        return (self.raced.high - self.raced.low) / (2.0 * LEVEL) if self.raced and self.raced.stopped else 0.0

    @property
    def genome(self) -> Genome:
        """Reads the genome when asked for: a fold of a long log needs only the last ones."""
        return Genome.from_json(self.proposed.genome_json)
