"""A fold of a long log passes over what leaves no trace, and comes out where the run was."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import pytest

from evomerge_common.domain.messages import GenerationCompleted
from evomerge_common.domain.reference import ModelReference
from evomerge_common.domain.search_space import SearchSpace
from evomerge_common.domain.spec import SearchSpec
from evomerge_selector.domain.operators import merge_of_merges, random_genome
from evomerge_selector.domain.run import Run
from evomerge_selector.domain.strategies.tournament import EvolutionaryTournament
from evomerge_selector.domain.strategy import ScoredCandidate
from helpers.simulation import Simulation, make_spec

SPACE = SearchSpace(
    models=tuple(ModelReference.parse(f"org/m{i}") for i in range(3)),
    base=ModelReference.parse("org/base"),
    num_layers=6,
    groups=3,
    methods=("linear", "slerp", "ties", "dare_linear", "frankenmerge"),
)
SPEC = SearchSpec(population=8, min_delta=0.02, niche=0.1)


def results(seed: int, count: int) -> list[ScoredCandidate]:
    """Candidates of every kind: sums and paths, merges of merges, failures, ties, estimates, violations."""
    rng = Random(seed)
    found: list[ScoredCandidate] = []
    first = -rng.randrange(20)  # below 0: of earlier runs
    for index in range(first, first + count):
        genome = random_genome(SPACE, rng)
        if rng.random() < 0.1:
            genome = merge_of_merges([random_genome(SPACE, rng, method="linear") for _ in range(2)], SPACE, rng)
        fitness = float("-inf") if rng.random() < 0.1 else rng.randrange(30) / 30 + index / 1000
        fields: dict[str, Any] = {"violation": float(rng.random() < 0.1), "error": 0.01 * (rng.random() < 0.2)}
        made = ScoredCandidate.unread(genome.to_json(), digest=f"{index}", fitness=fitness, index=index, **fields)
        assert made.mixes_models == bool(genome.weights and not genome.ingredients)
        assert made == ScoredCandidate(f"{index}", genome, fitness, index, **fields)
        found.append(made if rng.random() < 0.9 else ScoredCandidate(f"{index}", genome, fitness, index, **fields))
    rng.shuffle(early := found[:10])  # earlier runs' come after the sources
    return [*early, *found[10:]]


@pytest.mark.parametrize("seed", range(12))
def test_all_at_once_is_one_after_another(seed: int) -> None:
    one, all_at_once = (EvolutionaryTournament(SPACE, SPEC) for _ in range(2))
    rng = Random(f"parts {seed}")
    left: Sequence[ScoredCandidate] = results(seed, rng.randrange(9, 200))
    while left:
        count = rng.randrange(1, len(left) + 1)
        for candidate in left[:count]:
            one.tell(candidate)
        all_at_once.tell_all(left[:count])
        left = left[count:]
        assert vars(one.screen) == vars(all_at_once.screen)
        for name in ("pool", "best", "stale", "shares"):
            assert getattr(one, name) == getattr(all_at_once, name), name
        assert one.ask(500, Random(seed)) == all_at_once.ask(500, Random(seed))


def test_a_fold_at_any_event_decides_as_the_run_did() -> None:
    spec = make_spec(seed=4, evaluations=90, population=8)
    whole = Simulation(spec, workers=4, order=2)
    asked = 0
    for place in range(1, len(whole.events), 7):
        run = Run("r")
        for event in whole.events[:place]:
            run.apply(event)
        decision = run.next_decision()
        if decision is not None:  # what comes next in the log is that, or a result that came before it was asked
            decided = [e.payload for e in whole.events[place:] if not e.is_result]
            assert decision == decided[0]
            asked += 1
    assert asked > 10


def test_a_diversity_is_measured_when_it_is_decided_and_not_in_a_fold() -> None:
    whole = Simulation(make_spec(seed=4, evaluations=40, population=8), workers=4, order=2)
    decided = [e.payload for e in whole.events if isinstance(e.payload, GenerationCompleted)]
    assert decided
    assert all(0.0 < one.diversity <= 1.0 for one in decided)
    place = next(i for i, e in enumerate(whole.events) if isinstance(e.payload, GenerationCompleted))
    run = Run("r")
    for event in whole.events[:place]:
        run.apply(event)
    while (decision := run.next_decision()) is not None and not isinstance(decision, GenerationCompleted):
        run.apply(whole.events[0].__class__(run_id="r", payload=decision))
    assert decision == decided[0]
