"""Racing in the state machine: who is stopped, and what that means for everybody else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from evomerge_common.domain.messages import (
    CandidateEvaluated,
    CandidateFailed,
    ChampionChanged,
    Event,
    RunFinished,
    SearchEnded,
)
from evomerge_common.domain.racing import cost
from evomerge_common.domain.spec import RacingSpec
from evomerge_selector.domain.run import Phase
from helpers.simulation import ITEMS, Simulation, adapters_spec, answers, make_spec


def whole(recipe_json: str) -> float:
    """What all items give."""
    scores = answers(recipe_json, ())
    return sum(one.score for one in scores) / len(scores)


def reads(index: int) -> int:
    """Of how many candidates the rival of this one may be some: the sources, and those before the ones in flight."""
    return max(4, index - make_spec().search.in_flight + 1)


def spent_after(simulation: Simulation) -> list[float]:
    """How many evaluations the first n candidates took, for every n."""
    size, found = 3 * ITEMS, [0.0]
    for one in simulation.run.candidates:
        found.append(found[-1] + (cost(one.raced.items, size) if one.raced else size) / size)
    return found


@pytest.fixture(scope="module")
def raced() -> Simulation:
    return Simulation(make_spec(evaluations=60, population=10, racing=True), workers=3, order=4, items=True)


def test_what_a_race_saves_goes_into_more_candidates(raced: Simulation) -> None:
    """A budget of 60 evaluations is one of the items of 60: never more, and less than one of them is left."""
    size = 3 * ITEMS
    spent = 4 * size + sum(cost(told.items, size) for told in raced.raced)
    assert 59 * size < spent <= 60 * size
    assert len(raced.run.candidates) > 2 * 60
    whole_ones = [one for one in raced.run.candidates if one.is_whole]
    assert len(whole_ones) < 0.7 * 60
    true = {one.proposed.recipe_digest: whole(one.proposed.recipe_json) for one in raced.run.candidates}
    assert true[raced.champion] >= max(true.values()) - 0.025
    assert raced.run.champion.fitness == pytest.approx(true[raced.champion])
    full = Simulation(make_spec(evaluations=60, population=10), workers=3, order=4, items=True)
    assert true[raced.champion] >= whole(full.run.champion.proposed.recipe_json) - 0.01


@pytest.mark.parametrize("racing", [True, False])
def test_patience_and_budget_are_counted_in_evaluations(racing: bool) -> None:
    """So much scoring without a better one: of candidates that are stopped early it takes more of them."""
    spec = make_spec(evaluations=200, population=8, patience=20, racing=racing)
    simulation = Simulation(spec, workers=4, order=1, items=True)
    board, size = simulation.run._leaderboard, 3 * ITEMS if racing else 1
    assert board.unit == size
    ended = simulation.run.ended
    assert ended is not None
    assert ended.reason == "patience"
    assert 20 * size <= board.spent - board.spent_on_best < 21 * size
    waited = board.seen - 1 - board.champion
    assert waited > 40 if racing else waited == 20


def test_a_suite_too_small_for_a_race_has_as_many_candidates_as_ever() -> None:
    spec = make_spec(evaluations=20, racing={"rungs": [0.1]})  # of 120 items: fewer than a question needs
    simulation = Simulation(spec, workers=3, order=0, items=True)
    assert simulation.raced == []
    assert len(simulation.run.candidates) == 20


def test_nobody_who_was_stopped_is_ever_compared_as_if_whole(raced: Simulation) -> None:
    stopped = {told.recipe_digest: told for told in raced.raced if told.stopped}
    assert stopped
    for event in raced.events:
        if isinstance(event.payload, ChampionChanged | SearchEnded | RunFinished):
            assert getattr(event.payload, "recipe_digest", "") not in stopped
            assert getattr(event.payload, "champion_digest", "") not in stopped
    by_digest = {one.proposed.recipe_digest: one for one in raced.run.candidates}
    rules, spent = RacingSpec(), spent_after(raced)
    for told in stopped.values():
        rival = by_digest[told.against]
        assert rival.is_whole
        assert not by_digest[told.recipe_digest].is_whole
        assert told.fitness < (rival.fitness or 0.0), "it lost: its estimate ranks below its rival"
        assert told.low <= told.high
        assert told.items < 3 * ITEMS
        is_early = spent[reads(told.index)] < rules.early
        assert told.chance < 1.0 - (rules.early_confidence if is_early else rules.confidence)


def test_a_race_is_hasty_early_and_careful_later(raced: Simulation) -> None:
    """Early, any candidate that is rather not the best is stopped; later, only one that has hardly a chance to be."""
    rules, spent = RacingSpec(), spent_after(raced)
    between = [
        told.index for told in raced.raced if told.stopped and told.chance >= 1.0 - rules.confidence
    ]  # so much chance that later they would have gone on
    assert between
    assert all(spent[reads(index)] < rules.early for index in between)
    careful = {"early": 0}
    simulation = Simulation(make_spec(evaluations=30, population=10, racing=careful), workers=3, order=4, items=True)
    stopped = [told for told in simulation.raced if told.stopped]
    assert stopped
    assert all(told.chance < 1.0 - rules.confidence for told in stopped)


def test_what_came_of_each_race_is_told_once_in_the_order_of_proposal(raced: Simulation) -> None:
    assert [told.index for told in raced.raced] == list(range(4, len(raced.run.candidates)))
    for told in raced.raced:
        parts = [
            e.payload for e in raced.events
            if isinstance(e.payload, CandidateEvaluated) and e.payload.recipe_digest == told.recipe_digest
            and e.payload.partial
        ]  # fmt: skip
        first = {part.rung: sum(len(one.item_scores) for one in part.scores) for part in parts}
        assert sum(first.values()) == told.items


def test_nobody_races_unless_the_spec_asks() -> None:
    simulation = Simulation(make_spec(evaluations=20), workers=2, order=0, items=True)
    assert simulation.raced == []
    results = [e.payload for e in simulation.events if isinstance(e.payload, CandidateEvaluated)]
    assert not any(one.partial for one in results)
    assert all(len(score.item_scores) == ITEMS for one in results for score in one.scores)


def test_no_job_scores_more_than_its_unit_of_items() -> None:
    spec = make_spec(evaluations=20, racing={"unit": 16})
    simulation = Simulation(spec, workers=2, order=0, items=True)
    sizes = [
        sum(len(one.item_scores) for one in e.payload.scores)
        for e in simulation.events
        if isinstance(e.payload, CandidateEvaluated) and e.payload.partial
    ]
    assert max(sizes) <= 16 + 2
    assert simulation.run.phase is Phase.FINISHED


def test_sources_that_do_not_say_item_by_item_make_a_run_without_a_race() -> None:
    simulation = Simulation(make_spec(evaluations=20, racing=True), workers=2, order=0, items=True, tells_items=False)
    assert simulation.raced == []
    assert isinstance(simulation.events[-1].payload, RunFinished)


def test_a_failure_in_the_middle_of_a_race_is_that_candidates_alone() -> None:
    simulation = Simulation(make_spec(evaluations=60, racing=True), workers=2, order=0, items=True, fail_at_rung=1)
    failed = [e.payload for e in simulation.events if isinstance(e.payload, CandidateFailed)]
    assert failed
    assert not {one.recipe_digest for one in failed} & {told.recipe_digest for told in simulation.raced}
    assert isinstance(simulation.events[-1].payload, RunFinished)


def test_merged_weights_live_as_long_as_their_race() -> None:
    simulation = Simulation(make_spec(evaluations=24, racing=True), workers=2, order=0, items=True)
    merged = {f"file:///{told.recipe_digest}" for told in simulation.raced}
    assert set(simulation.run.discarded) == merged  # and none too early: the simulation looks at each event


def test_adapters_that_the_evaluator_makes_race_as_well() -> None:
    spec = adapters_spec(*["org/base"] * 3)
    spec = replace(spec, search=replace(spec.search, racing=RacingSpec()))
    simulation = Simulation(spec, workers=3, order=1, items=True, replay_every=7)
    assert [told.index for told in simulation.raced] == list(range(4, len(simulation.run.candidates)))
    assert any(told.stopped for told in simulation.raced)
    assert isinstance(simulation.events[-1].payload, RunFinished)


def test_a_rung_that_comes_late_or_twice_changes_nothing() -> None:
    simulation = Simulation(make_spec(evaluations=24, racing=True), workers=2, order=0, items=True)
    before = list(simulation.run.candidates)
    for event in list(simulation.events):
        if isinstance(event.payload, CandidateEvaluated):
            simulation.run.apply(Event(run_id="r", payload=replace(event.payload, fitness=9.0)))
    assert simulation.run.candidates == before
