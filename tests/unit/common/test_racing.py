"""Which items first, who has a chance, what the rest would give."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge_common.domain.racing import ItemModel, Order, item_order, shuffled, steps
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


def relatives(rng: Random, count: int, items: int = 80) -> list[dict[str, list[float]]]:
    """Models that mix the same three skills, as merges of three sources do: an item asks for one or two of them."""
    asks = {task: [[rng.random() for _ in range(3)] for _ in range(items)] for task in WEIGHTS}
    hard = {task: [rng.gauss(0.7, 0.3) for _ in range(items)] for task in WEIGHTS}
    models = []
    for _ in range(count):
        skill = [rng.random() for _ in range(3)]
        models.append(
            {
                task: [
                    float(sum(a * s for a, s in zip(ask, skill, strict=True)) + rng.gauss(0.0, 0.15) > limit)
                    for ask, limit in zip(asks[task], hard[task], strict=True)
                ]
                for task in WEIGHTS
            }
        )
    return models


def test_a_candidate_that_is_ahead_in_the_end_seldom_has_little_chance() -> None:
    """Over many pairs, from 15% and 40% of the items."""
    rng = Random(11)
    ahead = lost = behind = stopped = 0
    for place in range(400):
        ours, theirs, *others = relatives(rng, 10)
        jury = [*others, theirs]
        known = first(ours, order_of(jury, seed=rng.randrange(1000)), (0.15, 0.4)[place % 2])
        chance = ItemModel(jury, weights=WEIGHTS).estimate(known).chance(fitness(theirs))
        gap = fitness(ours) - fitness(theirs)
        if gap > 0.02:
            ahead, lost = ahead + 1, lost + (chance < 0.1)
        elif gap < -0.05:
            behind, stopped = behind + 1, stopped + (chance < 0.1)
    assert lost <= 0.05 * ahead
    assert stopped >= 0.75 * behind


def test_with_all_items_there_is_no_doubt() -> None:
    ours, theirs, *others = family(Random(2), 5)
    found = ItemModel([*others, theirs], weights=WEIGHTS).estimate({t: dict(enumerate(v)) for t, v in ours.items()})
    assert found.error == 0.0
    assert found.low == found.high == pytest.approx(fitness(ours))
    assert found.scores == pytest.approx({task: sum(values) / len(values) for task, values in ours.items()})
    assert found.chance(fitness(ours) - 0.01) == 1.0
    assert found.chance(fitness(ours) + 0.01) == 0.0
    assert found.chance(fitness(ours) - 1e-6, margin=0.5) == 0.0, "a lead below the items' own noise is none"


@pytest.mark.parametrize(("make", "most"), [(relatives, 0.07), (family, 0.08)])
def test_estimates_from_a_part_of_the_items_are_close_and_know_how_close(
    make: Callable[[Random, int], list[dict[str, list[float]]]], most: float
) -> None:
    """Whether candidates are relatives of the jury, as merges are, or strangers who share nothing but the items."""
    rng, errors, inside = Random(5), [], []
    for _ in range(300):
        ours, *jury = make(rng, 10)
        model = ItemModel(jury, weights=WEIGHTS)
        for share in (0.15, 0.4):
            found = model.estimate(first(ours, order_of(jury, seed=rng.randrange(1000)), share))
            errors.append(found.fitness - fitness(ours))
            inside.append(found.low <= fitness(ours) <= found.high)
    assert math.sqrt(sum(e * e for e in errors) / len(errors)) < most
    assert abs(sum(errors) / len(errors)) < 0.005
    assert 0.85 <= sum(inside) / len(inside) <= 0.98  # of real merges 95%: see the decision on items


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_estimates_of_any_answers_are_numbers(data: st.DataObject) -> None:
    """No answers, equal jurors, tasks that nobody passes: an estimate is a number with an error all the same."""
    size = data.draw(st.integers(1, 12))
    score = st.sampled_from([0.0, 1.0, 0.5, 1e-9])
    jury = data.draw(st.lists(st.lists(score, min_size=size, max_size=size), min_size=1, max_size=5))
    known = data.draw(st.dictionaries(st.integers(0, size - 1), score))
    found = ItemModel([{"a": one} for one in jury], weights={"a": 1.0}).estimate({"a": known})
    assert math.isfinite(found.fitness)
    assert (found.error > 0.0) == (len(known) < size)
    assert 0.0 <= found.low <= found.high <= 1.0


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
        ({"early": -1}, "from 0"),
        ({"early_confidence": 0.2}, "from 0.5 to 0.9999"),
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
