"""A run that goes on with another budget: the same candidates and champion as with that budget from the start."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from evomerge_common.domain.messages import ArtifactExported, CandidateEvaluated, SearchEnded
from evomerge_common.domain.spec import RunSpec
from evomerge_common.domain.strategies import STRATEGIES
from evomerge_selector.domain.run import Phase
from helpers.simulation import Simulation, make_spec

SMALL: dict[str, Any] = {"population": 8}


def continued(first: RunSpec, second: RunSpec, **how: Any) -> Simulation:
    simulation = Simulation(first, **how)
    assert simulation.run.phase is Phase.FINISHED
    simulation.go_on(second)
    return simulation


def hold_against_whole(simulation: Simulation, spec: RunSpec, *, items: bool = False) -> None:
    """The run against one that had the last budget from the start."""
    whole = Simulation(spec, workers=1, order=0, items=items)
    counted = next(e.payload.evaluated for e in whole.events if isinstance(e.payload, SearchEnded))
    assert simulation.proposals[:counted] == whole.proposals[:counted]  # of who counts no more there may be some
    assert simulation.raced == whole.raced
    assert simulation.events[-1] == whole.events[-1]  # RunFinished: the champion's digest and fitness, the reason


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "gp"])
@pytest.mark.parametrize("schedule", ["steady", "generational"])
@settings(max_examples=1, deadline=None)
@given(
    first=st.integers(6, 21), workers=st.integers(1, 8), order=st.integers(0, 10_000), replay=st.sampled_from([0, 7])
)
@example(first=5, workers=3, order=1, replay=0)  # less than a population
def test_more_evaluations_are_those_of_the_larger_run(
    schedule: str, strategy: str, first: int, workers: int, order: int, replay: int
) -> None:
    racing = not STRATEGIES[strategy].several_objectives
    short, long = (
        make_spec(schedule=schedule, strategy=strategy, evaluations=count, racing=racing, **SMALL)
        for count in (first, 22)
    )
    how: dict[str, Any] = {"workers": workers, "order": order, "replay_every": replay, "items": True}
    hold_against_whole(continued(short, long, **how), long, items=True)


@settings(max_examples=4, deadline=None)
@given(order=st.integers(0, 10_000), patience=st.integers(3, 8), racing=st.booleans())
@example(order=2, patience=3, racing=False)  # an old merge's result comes before the new merge is asked for
def test_what_was_under_way_at_an_early_end_begins_again(order: int, patience: int, racing: bool) -> None:
    short, long = (
        make_spec(evaluations=30, patience=count, racing=racing, **SMALL) for count in (patience, 3 * patience)
    )
    hold_against_whole(continued(short, long, workers=6, order=order, items=True), long, items=True)


def test_a_higher_target_goes_on_where_the_lower_one_was_reached() -> None:
    short, long = (make_spec(evaluations=60, target=goal, **SMALL) for goal in (0.96, 0.99))
    simulation = continued(short, long, workers=4, order=2)
    ends = [one.payload for one in simulation.events if isinstance(one.payload, SearchEnded)]
    assert ends[0].reason == "target"
    assert ends[0].evaluated < ends[1].evaluated
    hold_against_whole(simulation, long)


def test_what_is_proven_is_not_proven_again() -> None:
    short, long, longer = (make_spec(evaluations=count, **SMALL) for count in (20, 60, 61))
    simulation = continued(short, long, workers=4, order=2)
    simulation.go_on(longer)
    payloads = [one.payload for one in simulation.events]
    ends = [one.champion_digest for one in payloads if isinstance(one, SearchEnded)]
    assert ends[0] != ends[1] == ends[2]
    scored = [one for one in payloads if isinstance(one, CandidateEvaluated)]
    held = {one.job_id: one.recipe_digest for one in scored if one.split == "holdout"}
    assert sorted(held.values()) == sorted(set(held.values()))  # sources and two champions, once each
    exported = {one.job_id: one.recipe_digest for one in payloads if isinstance(one, ArtifactExported)}
    assert list(exported.values()) == ends[:2]


def test_a_budget_that_ends_at_once_ends_with_the_same_champion() -> None:
    short, long = (make_spec(evaluations=count, patience=5, **SMALL) for count in (60, 80))
    simulation = Simulation(short, workers=4, order=2)
    champion, proposed = simulation.champion, len(simulation.proposals)
    assert proposed < 60
    simulation.go_on(long)
    assert (simulation.champion, len(simulation.proposals)) == (champion, proposed)


def test_only_the_budget_may_differ() -> None:
    spec = make_spec(evaluations=20)
    assert make_spec(evaluations=30, patience=4, target=0.5, hours=1.0).differs_in_budget_alone(spec)
    assert not make_spec(evaluations=30, population=8).differs_in_budget_alone(spec)
    assert not make_spec(evaluations=30, seed=8).differs_in_budget_alone(spec)
