"""Fronts, knees and volumes, against their definitions."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge_common.domain.pareto import crowding, dominates, front, fronts, hypervolume, knee

number = st.integers(0, 6).map(float)
points = st.lists(st.tuples(number, number, number), min_size=1, max_size=14)


@given(points)
def test_the_front_is_exactly_what_nobody_dominates(found: list[tuple[float, ...]]) -> None:
    wanted = [i for i, p in enumerate(found) if not any(dominates(q, p) for q in found)]
    assert front(found) == wanted


@given(points)
def test_sorting_puts_every_point_in_one_layer_behind_its_dominators(found: list[tuple[float, ...]]) -> None:
    layers = fronts(found)
    assert sorted(itertools.chain(*layers)) == list(range(len(found)))
    place = {i: rank for rank, layer in enumerate(layers) for i in layer}
    for i, j in itertools.permutations(range(len(found)), 2):
        if dominates(found[i], found[j]):
            assert place[i] < place[j]


@given(points)
def test_volume_equals_counting_unit_cubes_and_never_shrinks(found: list[tuple[float, ...]]) -> None:
    cubes = sum(
        any(all(c < x for c, x in zip(cube, p, strict=True)) for p in found)
        for cube in itertools.product(range(6), repeat=3)
    )
    assert hypervolume(found, (0.0, 0.0, 0.0)) == pytest.approx(cubes)
    assert hypervolume(found[:-1], (0.0,) * 3) <= hypervolume(found, (0.0,) * 3) + 1e-9


@given(points)
def test_the_knee_is_on_the_front(found: list[tuple[float, ...]]) -> None:
    assert knee(found) in front(found)


def test_the_knee_is_the_balanced_point() -> None:
    assert knee([(1.0, 0.0), (0.8, 0.8), (0.0, 1.0)]) == 1


def test_ends_are_never_crowded() -> None:
    assert crowding([(0.0, 1.0), (0.5, 0.5), (1.0, 0.0)]) == [math.inf, 2.0, math.inf]
