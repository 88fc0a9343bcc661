"""The cheap model of the landscape: its window, its slope, and that a climb on it never goes down."""

from __future__ import annotations

import math
from dataclasses import replace
from random import Random

import pytest

from evomerge_common.domain.genome import GENES, Genome
from evomerge_common.domain.methods import DEFAULT_METHODS as METHODS
from evomerge_common.domain.reference import ModelReference
from evomerge_common.domain.search_space import SearchSpace
from evomerge_selector.domain.gaussian_process import BEST, CURIOSITY, LATEST, NOISE, Process, Window
from evomerge_selector.domain.operators import MAX_WEIGHT, MIN_DENSITY, random_genome
from evomerge_selector.domain.screening import Screen

SPACE = SearchSpace(
    tuple(ModelReference(name, digest=f"sha256:{name}") for name in "abc"),
    ModelReference("base", digest="sha256:base"),
    8,
    3,
    METHODS,
    genes=GENES,
)
WEIGHTED = [name for name in METHODS if name not in {"frankenmerge", "dfs"}]


def fitness(genome: Genome) -> float:
    return -sum((w - goal) ** 2 for row in genome.weights for w, goal in zip(row, (0.7, 0.4, 0.5), strict=True))


def told(count: int, *, questions: bool = False) -> Screen:
    """A screen that knows `count` random genomes; with `questions` it was asked after each."""
    screen, rng = Screen(SPACE), Random(1)
    for index in range(count):
        genome = random_genome(SPACE, rng, method=rng.choice(WEIGHTED))
        screen.tell(genome, fitness(genome), index)
        if questions:
            screen.choose([genome, random_genome(SPACE, Random(index))])
    return screen


def test_a_window_keeps_the_fittest_and_the_newest_and_their_distances() -> None:
    rng, window = Random(2), Window()
    points = [(-round(rng.random(), 1), index, (rng.random(), rng.random())) for index in range(90)]
    for count, point in enumerate(points, start=1):
        window = window.following(point)
        newest = {index for _, index, _ in points[:count][-LATEST:]}
        assert newest <= {index for _, index, _ in window.points}
        assert len(window.points) == min(count, BEST + LATEST)
        assert list(window.points) == sorted(window.points)
        assert [len(row) for row in window.apart] == list(range(len(window.points)))
        for (_, _, here), row in zip(window.points, window.apart, strict=True):
            assert list(row) == [math.dist(here, there) for _, _, there in window.points[: len(row)]]
    assert min(points) in window.points


def test_the_model_is_certain_where_it_was_told_and_doubts_far_from_there() -> None:
    window = Window()
    for index in range(12):
        window = window.following((-math.sin(index), index, (float(index),)))
    model = Process.fit(window, 0.5)
    assert model is not None
    near, far = model.at((3.0,)), model.at((500.0,))
    assert far.promise == pytest.approx(CURIOSITY * math.sqrt(1.0 + NOISE))  # the mean of all, and all of the doubt
    assert near.promise - near.mean < 0.25 * (far.promise - far.mean)


def test_a_view_exceeds_what_its_promise_exceeds() -> None:
    """However early it could tell."""
    model = told(40)._model()
    assert model is not None
    vectors = [told(1)._vector(random_genome(SPACE, Random(seed), method="linear")) for seed in range(30)]
    for vector in vectors:
        assert vector is not None
        promise = model.at(vector).promise
        for limit in (-math.inf, promise - 1.0, promise - 1e-6, promise, promise + 1e-6, promise + 0.3, promise + 5.0):
            view = model.at(vector)
            assert view.exceeds(limit) == (promise > limit)
            assert view.promise == promise


def test_a_slope_points_where_the_promise_grows_fastest() -> None:
    """Against finite differences."""
    screen = told(40)
    model = screen._model()
    assert model is not None
    place = screen._vector(random_genome(SPACE, Random(7), method="ties"))
    assert place is not None
    slope = model.at(place).slope(len(place))
    step = 1e-5
    differences = []
    for i in range(len(place)):
        up, down = ([*place[:i], place[i] + d, *place[i + 1 :]] for d in (step, -step))
        rise = model.at(tuple(up)).promise - model.at(tuple(down)).promise
        differences.append(rise / (2 * step))
    factor = math.hypot(*differences) / math.hypot(*slope)
    assert [factor * s for s in slope] == pytest.approx(differences, abs=1e-5)


@pytest.mark.parametrize("method", WEIGHTED)
def test_a_climb_never_goes_down_and_stays_within_bounds(method: str) -> None:
    screen = told(40)
    model = screen._model()
    assert model is not None
    gained = 0
    for seed in range(20):
        before = random_genome(SPACE, Random(seed), method=method)
        after = screen.climb(before)
        start, end = screen._vector(before), screen._vector(after)
        assert start is not None
        assert end is not None
        gain = model.at(end).promise - model.at(start).promise
        assert gain > -1e-3  # four digits are kept of each gene
        gained += gain > 0.01
        assert all(0.0 <= w <= MAX_WEIGHT for row in after.weights for w in row)
        assert all(MIN_DENSITY <= d <= 1.0 for d in after.density)
        assert (after.method, after.cuts, after.mask, after.seed) == (method, before.cuts, before.mask, before.seed)
    assert gained >= 15


def test_nothing_is_climbed_before_enough_is_known_nor_without_weights() -> None:
    genome = random_genome(SPACE, Random(1), method="ties")
    assert told(3).climb(genome) is genome
    path = random_genome(SPACE, Random(1), method="frankenmerge")
    assert told(40).climb(path) is path


def test_how_often_it_was_asked_changes_no_answer() -> None:
    """After a fold of the log it is told all results at once, and must answer as if it had been asked each time."""
    asked, quiet = told(50, questions=True), told(50)
    genomes = [random_genome(SPACE, Random(seed), method="linear") for seed in range(12)]
    assert asked.choose(genomes) == quiet.choose(genomes)
    assert asked.climb(genomes[0]) == quiet.climb(genomes[0])


def test_an_estimate_with_an_error_is_believed_less() -> None:
    """The same scores, one of them high: certain, it draws the mean up more than as a guess."""
    exact, guessed = Window(), Window()
    for index in range(12):
        point = (-5.0 if index == 6 else -math.sin(index), index, (float(index),))
        exact = exact.following(point, 0.0)
        guessed = guessed.following(point, 4.0 if index == 6 else 0.0)
    sure, unsure = Process.fit(exact, 0.2), Process.fit(guessed, 0.2)
    assert sure is not None
    assert unsure is not None
    assert unsure.at((6.0,)).mean < 0.5 * sure.at((6.0,)).mean
    assert unsure.at((6.0,)).promise - unsure.at((6.0,)).mean > sure.at((6.0,)).promise - sure.at((6.0,)).mean


def test_the_errors_stay_with_their_points() -> None:
    rng, window = Random(3), Window()
    for index in range(90):
        window = window.following((-round(rng.random(), 1), index, (rng.random(),)), index / 100)
        assert window.errors == tuple(index / 100 for _, index, _ in window.points)


def settle(seed: int) -> tuple[float, float]:
    """Squared errors of noisy estimates of a smooth fitness, and of what the model makes of them."""
    screen, rng = Screen(SPACE), Random(seed)
    true, noisy = {}, {}
    centre = random_genome(SPACE, rng, method="task_arithmetic")
    for index in range(BEST + LATEST):
        rows = tuple(tuple(max(0.0, w + rng.gauss(0.0, 0.15)) for w in row) for row in centre.weights)
        genome = replace(centre, weights=rows)
        error = 0.0 if index % 5 == 0 else 0.3
        true[index] = fitness(genome)
        noisy[index] = true[index] + rng.gauss(0.0, error)
        screen.tell(genome, noisy[index], index, error)
    settled = screen.smoothed()
    assert settled.keys() == true.keys()
    assert all(settled[index] == pytest.approx(noisy[index]) for index in range(0, len(true), 5))
    return sum((noisy[i] - true[i]) ** 2 for i in true), sum((settled[i] - true[i]) ** 2 for i in true)


def test_estimates_are_settled_by_their_relatives_and_whole_results_stay() -> None:
    before, after = zip(*map(settle, range(12)), strict=True)
    assert sum(after) < 0.7 * sum(before)


def test_nothing_is_settled_before_enough_is_known() -> None:
    assert told(7).smoothed() == {}
