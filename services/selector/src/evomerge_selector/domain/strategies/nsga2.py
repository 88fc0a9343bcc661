"""NSGA-II: every task is an objective."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from evomerge_common.domain.pareto import crowding, fronts, knee
from evomerge_common.domain.search_space import SearchSpace
from evomerge_common.domain.spec import SearchSpec
from evomerge_selector.domain.candidate import Candidate
from evomerge_selector.domain.strategies.evolution import Evolution
from evomerge_selector.domain.strategy import ScoredCandidate, Strategy


class ParetoSearch(Evolution):
    """NSGA-II (Deb et al. 2002) in its steady-state form: every task is an objective.

    The pool is what survives non-dominated sorting and, within the last layer that fits in part, crowding. Parents win
    binary tournaments of layer, then crowding. The run's champion is the front's knee. With constraints, feasible ones
    dominate the others, and those each other by what they violate.
    """

    def __init__(self, space: SearchSpace, spec: SearchSpec, *, seed: int = 0) -> None:
        """Begins with an empty front."""
        super().__init__(space, spec, seed=seed)
        self.layer: dict[str, int] = {}  # digest → front that it is on, 0 the best
        self.room: dict[str, float] = {}  # digest → crowding distance on its front

    def tell(self, candidate: ScoredCandidate) -> None:
        """Sorts the pool anew, and lets go of the last and most crowded."""
        if not candidate.scores:
            return  # a failed candidate has no place among the objectives
        members = [*self.pool, candidate]
        survivors: list[ScoredCandidate] = []
        self.layer.clear()
        self.room.clear()
        for rank, indices in enumerate(_layers(members)):
            one_layer = [members[i] for i in indices]
            room = dict(zip(indices, crowding([one.scores for one in one_layer]), strict=True))
            order = sorted(indices, key=lambda i: (-room[i], members[i].index))
            for i in order[: self.spec.population - len(survivors)]:
                survivors.append(members[i])
                self.layer[members[i].digest], self.room[members[i].digest] = rank, room[i]
            if len(survivors) == self.spec.population:
                break
        self.pool = sorted(survivors, key=lambda one: one.index)

    @staticmethod
    def champion(candidates: Sequence[Candidate]) -> int:
        """Answers with the knee of the front; with the fittest where no task scores are known."""
        places = [i for i, one in enumerate(candidates) if one.scores]
        if not places:
            return Strategy.champion(candidates)
        return places[knee([candidates[i].scores for i in places])]

    def _parent(self, rng: Random) -> ScoredCandidate:
        pair = (rng.choice(self.pool), rng.choice(self.pool))
        return min(pair, key=lambda one: (self.layer[one.digest], -self.room[one.digest], one.index))


def _layers(members: Sequence[ScoredCandidate]) -> list[list[int]]:
    feasible = [i for i, one in enumerate(members) if not one.violation]
    layers = [[feasible[i] for i in layer] for layer in fronts([members[i].scores for i in feasible])]
    for level in sorted({one.violation for one in members if one.violation}):
        layers.append([i for i, one in enumerate(members) if one.violation == level])
    return layers
