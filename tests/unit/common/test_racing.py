"""Which items first, who has a chance, what the rest would give."""

from __future__ import annotations

import math
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge_common.domain.racing import Comparison, Order, compare, estimate, item_order, shuffled, steps, strata
from evomerge_common.domain.spec import RacingSpec, RunSpec
from evomerge_common.domain.strategies import STRATEGIES
from evomerge_common.errors import SpecError

WEIGHTS = {"a": 1.0, "b": 2.0}


def family(rng: Random, count: int, items: int = 80) -> list[dict[str, list[float]]]:
    """Models that answer by a Rasch model: each has an ability in each task, each item its difficulty."""
    hard = {task: [rng.gauss(0.0, 1.2) for _ in range(items)] for task in WEIGHTS}
    models = []
    for _ in range(count):
        ability = {task: rng.gauss(0.0, 0.8) for task in WEIGHTS}
        models.append(
            {
                task: [float(rng.random() < 1 / (1 + math.exp(d - ability[task]))) for d in hard[task]]
                for task in WEIGHTS
            }
        )
    return models


def fitness(answers: dict[str, list[float]]) -> float:
    return sum(w * sum(answers[t]) / len(answers[t]) for t, w in WEIGHTS.items()) / sum(WEIGHTS.values())


def first(answers: dict[str, list[float]], order: Order, share: float) -> dict[str, dict[int, float]]:
    asked = steps(order, [share], most=10**6)[0].items
    return {task: {place: answers[task][place] for place in places} for task, places in asked.items()}


def order_of(jury: list[dict[str, list[float]]], *, seed: int = 0) -> Order:
    return item_order(shuffled({task: len(values) for task, values in jury[0].items()}, seed=seed), jury)


def against(
    known: dict[str, dict[int, float]], rival: dict[str, list[float]], jury: list[dict[str, list[float]]],
    order: Order, *, margin: float = 0.0,
) -> Comparison:  # fmt: skip
    parts = strata(order, jury, rival, weights=WEIGHTS)
    assert sum(part.share for part in parts) == pytest.approx(1.0)
    return compare(known, rival, parts, margin=margin)


def test_items_on_which_the_jury_agrees_are_asked_one_in_four() -> None:
    jury = [{"a": [1, 0, 1, 0, 1.0]}, {"a": [1, 0, 0, 1, 1.0]}]
    differ, alike = order_of(jury, seed=3)["a"]
    assert (sorted(differ), sorted(alike)) == ([2, 3], [0, 1, 4])
    assert order_of(jury, seed=3) == order_of(jury, seed=3)
    long = [{"a": [1.0] * 50}, {"a": [0.0] * 40 + [1.0] * 10}]
    assert order_of(long, seed=1) != order_of(long, seed=2)
    asked = [place for step in steps(order_of(long), [0.25], most=100) for place in step.items["a"]]
    assert [place >= 40 for place in asked[:8]] == [False, False, False, True] * 2


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=3),
    shares=st.lists(st.floats(0.01, 0.99), max_size=3, unique=True),
    most=st.integers(1, 100),
)
def test_the_steps_of_a_race_score_every_item_once(sizes: list[int], shares: list[float], most: int) -> None:
    order = {f"t{i}": (tuple(range(0, n, 2)), tuple(range(1, n, 2))) for i, n in enumerate(sizes)}
    found = steps(order, sorted(shares), most=most)
    for task, groups in order.items():
        asked = [p for step in found for p in step.items.get(task, ())]
        assert [tuple(p for p in asked if p in group) for group in groups] == list(groups)
    slack = len(sizes)  # each task rounds for itself
    assert all(sum(map(len, step.items.values())) <= most + slack for step in found)
    assert not found[-1].asks
    assert sum(step.asks for step in found) <= len(shares)


def test_a_candidate_that_is_ahead_in_the_end_is_seldom_given_up() -> None:
    """Over many pairs: of those that all items put ahead by more than the margin, a tenth at most at each look."""
    rng = Random(11)
    ahead = lost = behind = stopped = 0
    for _ in range(400):
        ours, theirs, *sources = family(rng, 5)
        order = order_of(sources, seed=rng.randrange(1000))
        known = first(ours, order, 0.25)
        found = against(known, theirs, [*sources, theirs], order, margin=0.5)
        gap = fitness(ours) - fitness(theirs)
        if gap > 0.02:
            ahead, lost = ahead + 1, lost + (found.chance < 0.1)
        elif gap < -0.05:
            behind, stopped = behind + 1, stopped + (found.chance < 0.1)
    assert lost <= 0.06 * ahead
    assert stopped >= 0.7 * behind


def test_with_all_items_there_is_no_doubt() -> None:
    ours, theirs, *sources = family(Random(2), 5)
    order = order_of(sources)
    known = {task: dict(enumerate(values)) for task, values in ours.items()}
    found = against(known, theirs, [*sources, theirs], order)
    assert found.error == 0.0
    assert found.difference == pytest.approx(fitness(ours) - fitness(theirs))
    assert found.chance == float(found.difference > 0)


def test_estimates_from_a_quarter_of_the_items_are_close_and_know_how_close() -> None:
    rng, errors, inside = Random(5), [], 0
    for _ in range(200):
        ours, *sources = family(rng, 5)
        order = order_of(sources, seed=rng.randrange(1000))
        found = estimate(first(ours, order, 0.25), sources, weights=WEIGHTS)
        errors.append(abs(found.fitness - fitness(ours)))
        inside += found.low <= fitness(ours) <= found.high
    assert sum(errors) / len(errors) < 0.05
    assert inside >= 0.85 * len(errors)


def test_an_estimate_from_all_items_is_the_score() -> None:
    ours, *sources = family(Random(9), 4)
    found = estimate({task: dict(enumerate(v)) for task, v in ours.items()}, sources, weights=WEIGHTS)
    assert found.low == found.high == pytest.approx(fitness(ours))


def spec(**search: object) -> RunSpec:
    return RunSpec.from_dict({"models": ["x", "y"], "search": search})


def test_racing_in_a_spec() -> None:
    assert spec(racing=True).search.racing == spec(racing={}).search.racing == RacingSpec()
    assert spec().search.racing == spec(racing=False).search.racing == spec(racing={"rungs": []}).search.racing
    assert spec().search.racing.rungs == ()
    assert "racing" not in spec().to_json(), "a run without a race is written as it always was"
    assert spec(racing={"rungs": [0.1], "rank": 2}).search.racing == RacingSpec(rungs=(0.1,), rank=2)
    for one in (spec(), spec(racing=True), spec(racing={"unit": 7, "rungs": [0.2]}), spec(strategy="nsga2")):
        assert RunSpec.from_json(one.to_json()) == one


@pytest.mark.parametrize(
    ("racing", "words"),
    [
        ({"rung": []}, "did you mean 'rungs'"),
        ({"rungs": [0.5, 0.25]}, "growing shares"),
        ({"rungs": [0.5, 1.0]}, "growing shares"),
        ({"confidence": 1.5}, "from 0.5 to 0.9999"),
        ({"rank": 0}, "from 1"),
        ("yes", "keys and values"),
    ],
)
def test_mistakes_in_it(racing: object, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        spec(racing=racing)


@pytest.mark.parametrize("strategy", [name for name, its in STRATEGIES.items() if its.several_objectives])
def test_a_front_cannot_race(strategy: str) -> None:
    with pytest.raises(SpecError, match="has several"):
        spec(strategy=strategy, racing=True)
