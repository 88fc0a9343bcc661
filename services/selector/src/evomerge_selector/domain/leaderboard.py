"""The leaderboard: results counted in proposal order; champion, elites, generations, and whether the search ends."""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

from evomerge_common.domain.history import mean_fitness
from evomerge_common.domain.messages import CandidateSelected, ChampionChanged, Decision, GenerationCompleted
from evomerge_common.domain.racing import cost
from evomerge_common.domain.spec import SearchSpec
from evomerge_selector.domain.candidate import FAILED, Candidate

LATER = -1.0
"""Stands for a diversity that is not measured yet: a fold of the log, which has it, never needs to."""


def is_decided(pending: Decision, decision: Decision) -> bool:
    """Tells whether a decision in the log is the one that was due."""
    if isinstance(pending, GenerationCompleted) and isinstance(decision, GenerationCompleted):
        return replace(pending, diversity=decision.diversity) == decision
    return pending == decision


@dataclass
class Leaderboard:
    """Who leads after the first `seen` candidates, all of which have results.

    Attributes:
        champion: index of the best; −1 before the first score.
        fitness: its fitness; FAILED before the first score.
        violation: of the constraints by the champion; infinite before the first score.
        elites: (violation, −fitness, index), best first.
        generations: how many are complete.
        unit: items of one evaluation: of the whole search split in a race, else 1.
        spent: what the candidates cost so far, in items.
        spent_on_best: what they had cost when one last brought a step of `min_delta`.

    """

    seen: int = 0
    champion: int = -1
    fitness: float = FAILED
    violation: float = math.inf
    elites: list[tuple[float, float, int]] = field(default_factory=list)
    generations: int = 0
    unit: int = 1
    spent: int = 0
    spent_on_best: int = 0

    def count(self, candidate: Candidate, search: SearchSpec) -> ChampionChanged | None:
        """Takes in the next candidate; tells of a new champion. One that was stopped is never compared as if whole.

        Who meets all constraints goes before who does not, and of those who do not the one that is nearer (Deb 2000).
        """
        index = self.seen
        self.seen += 1
        self.spent += cost(candidate.raced.items, self.unit) if candidate.raced else self.unit
        fitness = candidate.fitness
        if fitness is None or not candidate.is_whole:
            return None
        violation = candidate.violation
        insort(self.elites, (violation, -fitness, index))
        del self.elites[search.elites :]
        if (violation, -fitness) >= (self.violation, -self.fitness):
            return None
        # Only a step of min_delta resets patience, but any better candidate is the champion.
        if violation < self.violation or fitness > self.fitness + search.min_delta:
            self.spent_on_best = self.spent
        self.champion, self.fitness, self.violation = index, fitness, violation
        return ChampionChanged(recipe_digest=candidate.proposed.recipe_digest, fitness=fitness, index=index)

    def complete_generation(self, candidates: Sequence[Candidate], search: SearchSpec) -> list[Decision]:
        """Closes the generation that ends here; what the log says of it."""
        decisions: list[Decision] = [
            GenerationCompleted(
                generation=self.generations,
                evaluated=self.seen,
                best_fitness=self.fitness if self.champion >= 0 else 0.0,
                mean_fitness=self.mean_fitness(candidates, search),
                diversity=LATER,
            )
        ]
        if self.elites:
            digests = tuple(candidates[index].proposed.recipe_digest for _, _, index in self.elites)
            decisions.append(CandidateSelected(generation=self.generations, recipe_digests=digests))
        self.generations += 1
        return decisions

    @staticmethod
    def measured(decision: Decision, candidates: Sequence[Candidate], search: SearchSpec) -> Decision:
        """Measures the diversity of a generation that is complete, where `decision` says that one is."""
        if not isinstance(decision, GenerationCompleted):
            return decision
        seen = decision.evaluated
        members = candidates[max(0, seen - search.population) : seen]
        pairs = list(combinations([one.genome for one in members[:24]], 2))
        return replace(decision, diversity=sum(a.distance(b) for a, b in pairs) / len(pairs) if pairs else 0.0)

    def mean_fitness(self, candidates: Sequence[Candidate], search: SearchSpec) -> float:
        """Computes the mean over the last generation's places (see `history.mean_fitness`); 0 without a score."""
        places = range(max(0, self.seen - search.population), self.seen)
        results = ((i, candidates[i].fitness) for i in places)
        scored = ((i, fitness) for i, fitness in results if fitness is not None and fitness > FAILED)
        return mean_fitness(scored, last=self.seen - 1, population=search.population) or 0.0

    def allows(self, index: int, search: SearchSpec) -> bool:
        """Tells whether the budget has room for the candidate of this index, if each one in flight needs all items.

        What they save makes room for more once they are counted; so no order of arrival shows in who is proposed.
        """
        return self.spent + (index - self.seen + 1) * self.unit <= search.evaluations * self.unit

    def stop_reason(self, search: SearchSpec, first_generation: int) -> str:
        """Tells why the search ends after the candidate counted last; empty: it goes on."""
        index = self.seen - 1
        if search.target is not None and not self.violation and self.fitness >= search.target:
            return "target"
        if not self.allows(self.seen, search):
            return "budget"
        waited = self.spent - self.spent_on_best
        if search.patience and index >= first_generation and waited >= search.patience * self.unit:
            return "patience"
        return ""
