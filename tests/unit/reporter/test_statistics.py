"""The paired bootstrap: right width, right coverage, right refusals."""

import random

import pytest

from evomerge_common.domain.statistics import Interval, mean_interval, paired_difference

ONE = {"t": 1.0}


def binary(seed: int, count: int, chance: float) -> list[float]:
    generator = random.Random(seed)
    return [float(generator.random() < chance) for _ in range(count)]


def test_width_is_that_of_the_binomial() -> None:
    found = mean_interval({"t": [1.0] * 140 + [0.0] * 60}, ONE, seed=0)
    half = 1.96 * (0.7 * 0.3 / 200) ** 0.5
    assert found.mean == pytest.approx(0.7)
    assert found.low == pytest.approx(0.7 - half, abs=0.012)
    assert found.high == pytest.approx(0.7 + half, abs=0.012)


def test_covers_the_truth_about_as_often_as_it_says() -> None:
    found = [mean_interval({"t": binary(seed, 100, 0.6)}, ONE, seed=seed, resamples=300) for seed in range(200)]
    assert 0.90 <= sum(interval.low <= 0.6 <= interval.high for interval in found) / 200 <= 0.985


def test_weighted_mean_of_task_means_not_of_items() -> None:
    tasks = {"long": [1.0] * 90, "short": [0.0] * 10}
    assert mean_interval(tasks, {"long": 1.0, "short": 1.0}, seed=0) == Interval(0.5, 0.5, 0.5)
    assert mean_interval(tasks, {"long": 3.0, "short": 1.0, "other": 9.0}, seed=0).mean == pytest.approx(0.75)
    assert mean_interval(tasks, {"long": 1.0, "short": 0.0}, seed=0).mean == 1.0


def test_same_seed_same_interval_in_any_order() -> None:
    tasks = {"a": binary(1, 50, 0.3), "b": binary(2, 70, 0.8)}
    weights = {"a": 1.0, "b": 2.0}
    first = mean_interval(tasks, weights, seed=3)
    assert mean_interval(dict(reversed(tasks.items())), weights, seed=3) == first
    assert mean_interval(tasks, weights, seed=4) != first


def test_pairing_sees_what_two_separate_intervals_cannot() -> None:
    hard = binary(5, 200, 0.5)
    better = [1.0 if i % 20 == 0 else item for i, item in enumerate(hard)]
    separate = mean_interval({"t": hard}, ONE, seed=0), mean_interval({"t": better}, ONE, seed=0)
    assert separate[0].high > separate[1].low
    assert paired_difference({"t": better}, {"t": hard}, ONE, seed=0).low > 0


def test_no_difference_includes_zero_and_sign_follows_order() -> None:
    a, b = {"t": binary(1, 300, 0.5)}, {"t": binary(2, 300, 0.5)}
    there, back = paired_difference(a, b, ONE, seed=0), paired_difference(b, a, ONE, seed=0)
    assert not there.excludes_zero
    assert there.mean == pytest.approx(-back.mean)
    assert paired_difference(a, a, ONE, seed=0) == Interval(0.0, 0.0, 0.0)
    assert not paired_difference(a, a, ONE, seed=0).excludes_zero


@pytest.mark.parametrize(
    ("low", "high", "excludes"), [(0.1, 0.2, True), (-0.2, -0.1, True), (-0.1, 0.1, False), (0, 1, False)]
)
def test_excludes_zero(low: float, high: float, excludes: bool) -> None:
    assert Interval(0.0, low, high).excludes_zero is excludes


@pytest.mark.parametrize(
    ("tasks", "weights", "level"),
    [({}, {}, 0.95), ({"t": []}, ONE, 0.95), ({"t": [1.0]}, {}, 0.95), ({"t": [1.0]}, {"t": 0.0}, 0.95),
     ({"t": [1.0]}, {"t": -1.0}, 0.95), ({"t": [1.0]}, {"t": float("nan")}, 0.95), ({"t": [1.0]}, ONE, 1.0)],
)  # fmt: skip
def test_refuses(tasks: dict[str, list[float]], weights: dict[str, float], level: float) -> None:
    with pytest.raises(ValueError, match=r"."):
        mean_interval(tasks, weights, seed=0, level=level)


def test_refuses_other_items() -> None:
    with pytest.raises(ValueError, match="same items"):
        paired_difference({"t": [1.0, 0.0]}, {"t": [1.0]}, ONE, seed=0)
    with pytest.raises(ValueError, match="same items"):
        paired_difference({"t": [1.0]}, {"u": [1.0]}, ONE, seed=0)
