"""The genome and its operators: what they promise of every child, and that equal models have equal recipes."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge_common.domain.genome import GENES, Genome, Hop
from evomerge_common.domain.methods import DEFAULT_METHODS as METHODS
from evomerge_common.domain.methods import DFS_TECHNIQUES
from evomerge_common.domain.recipe import Recipe
from evomerge_common.domain.reference import ModelReference
from evomerge_common.domain.search_space import SearchSpace
from evomerge_common.errors import RecipeError
from evomerge_selector.domain.operators import crossover, flattened, merge_of_merges, mutate, random_genome
from evomerge_selector.domain.paths import depths

MODELS = tuple(ModelReference(name, digest=f"sha256:{name}") for name in "abc")
BASE = ModelReference("base", digest="sha256:base")


def space_of(layers: int = 9, groups: int = 3, base: ModelReference | None = BASE) -> SearchSpace:
    return SearchSpace(MODELS, base, layers, groups, METHODS, genes=GENES)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), layers=st.integers(1, 24), groups=st.integers(1, 6), method=st.sampled_from(METHODS))
def test_every_child_is_a_valid_recipe_and_survives_json(seed: int, layers: int, groups: int, method: str) -> None:
    """Mutants, children of two and merges of merges, a few generations deep, with every gene."""
    space, rng = space_of(layers, groups), Random(seed)
    pool = [random_genome(space, rng, method=method), random_genome(space, rng)]
    for _ in range(6):
        first, second = rng.choice(pool), rng.choice(pool)
        pool += [mutate(first, space, rng), crossover(first, second, space, rng)]
        if not first.ingredients and not second.ingredients:
            pool.append(merge_of_merges([first, second], space, rng))
    fewest, most = depths(space)
    for genome in pool:
        recipe = space.recipe(genome)
        assert Recipe.from_json(recipe.to_json()).digest == recipe.digest
        assert Genome.from_json(genome.to_json()) == genome
        assert 0.0 <= genome.distance(pool[0]) <= 1.0
        if genome.path:
            assert fewest <= len(genome.path) <= most
        if genome.method == "frankenmerge":
            assert all(hop.scale == 1.0 for hop in genome.path)


def test_a_path_evolves_order_repeats_and_scales() -> None:
    space, rng = space_of(), Random(5)
    found = {"order": False, "repeat": False, "skip": False, "scale": False, "depth": False}
    for method in DFS_TECHNIQUES:
        genome = random_genome(space, rng, method=method)
        for _ in range(80):
            genome = mutate(genome, space, rng)
            layers = [hop.layer for hop in genome.path]
            found["order"] |= layers != sorted(layers)
            found["repeat"] |= len(set(layers)) < len(layers)
            found["skip"] |= len(set(layers)) < space.num_layers
            found["scale"] |= any(hop.scale != 1.0 for hop in genome.path)
            found["depth"] |= len(layers) != space.num_layers
    assert all(found.values()), found


def test_cuts_move_masks_come_and_go_and_only_where_they_may() -> None:
    space, rng = space_of(), Random(1)
    children = [mutate(space.uniform("ties", weight=0.5, density=0.5), space, rng) for _ in range(200)]
    assert len({one.cuts for one in children}) > 3
    assert any(any(one.mask) for one in children)
    plain = replace(space, genes=())
    for still in (plain, replace(space, groups=9), replace(space, groups=1)):
        parent = still.uniform("ties", weight=0.5, density=0.5)
        assert {mutate(parent, still, rng).cuts for _ in range(50)} == {()}
    without_base = replace(space, base=None)
    parent = without_base.uniform("ties", weight=0.5, density=0.5)
    assert not any(mutate(parent, without_base, rng).mask for _ in range(100))


def test_where_equal_groups_are_cut_makes_no_other_candidate() -> None:
    space = space_of()
    uniform = space.uniform("task_arithmetic", weight=0.5)
    assert space.recipe(replace(uniform, cuts=(1, 7))).digest == space.recipe(uniform).digest
    assert len(space.recipe(uniform).slices) == 1
    weights = ((0.2,) * 3, (0.5,) * 3, (0.5,) * 3, (0.9,) * 3)
    first, second = replace(uniform, weights=weights, cuts=(1, 7)), replace(uniform, weights=weights, cuts=(4, 7))
    assert space.recipe(first).digest == space.recipe(second).digest
    assert [part.inputs[0].layer_range for part in space.recipe(first).slices] == [(0, 7), (7, 9)]
    moved = space.recipe(replace(uniform, weights=weights, cuts=(4, 6)))
    assert moved.digest != space.recipe(first).digest
    filters = moved.slices[0].inputs[0].parameters["weight"]
    assert filters[0]["value"] == 0.2
    assert filters[-1] == {"value": 0.5}


def test_a_mask_is_a_nested_recipe_and_none_is_the_same_as_no_mask() -> None:
    space = space_of()
    genome = space.uniform("task_arithmetic", weight=0.5)
    assert space.recipe(replace(genome, mask=(0.0, 0.0, 0.0))).digest == space.recipe(genome).digest
    masked = space.recipe(replace(genome, mask=(0.0, 0.3, 0.0), seed=5))
    inner = masked.slices[0].inputs[1].model
    assert isinstance(inner, Recipe)
    assert (inner.method, inner.base, dict(inner.parameters), inner.seed) == ("mask_delta", BASE, {"rate": 0.3}, 5)
    assert masked.slices[0].inputs[0].model == MODELS[0]


def test_a_mean_of_weighted_sums_is_flat_and_anything_else_nests() -> None:
    space = space_of()
    linear, arithmetic = space.uniform("linear", weight=1.0), space.uniform("task_arithmetic", weight=0.6)
    flat = flattened([linear, arithmetic], [1.0, 1.0], space)
    assert flat is not None
    assert flat.method == "task_arithmetic"
    assert flat.weights[0] == pytest.approx([(1 / 3 + 0.6) / 2] * 3, abs=1e-4)
    assert flattened([linear, arithmetic], [1.0, 1.0], replace(space, base=None)) is None
    ties = space.uniform("ties", weight=0.6, density=0.5)
    nested = merge_of_merges([linear, ties], space, Random(0))
    assert len(nested.ingredients) == 2
    assert not merge_of_merges([linear, linear], space, Random(0)).ingredients


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cuts": (0, 5)}, "do not make 3 groups"),
        ({"cuts": (5,)}, "do not make 3 groups"),
        ({"mask": (0.5,)}, "1 mask rates for 3"),
        ({"weights": ((1.0,),)}, "4 rows"),
        ({"method": "frankenmerge", "path": (Hop(3, 0),)}, "leaves the models' layers"),
    ],
)
def test_a_genome_that_does_not_fit_is_refused(change: dict[str, object], words: str) -> None:
    genome = replace(space_of().uniform("task_arithmetic", weight=0.5), **change)  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match=words):
        space_of().recipe(genome)


def test_a_row_without_weights_counts_all_alike_rather_than_making_zeros() -> None:
    space = space_of()
    even = space.uniform("linear", weight=0.5)
    none = replace(even, weights=((0.0,) * len(MODELS), *even.weights[1:]))
    ones = replace(even, weights=((1.0,) * len(MODELS), *even.weights[1:]))
    assert space.recipe(none).digest == space.recipe(ones).digest


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), method=st.sampled_from(("frankenmerge", "dfs")))
def test_layers_that_cannot_be_moved_are_drawn_in_their_places(seed: int, method: str) -> None:
    space, rng = replace(space_of(), layers="in_place", fixed_scale=True), Random(seed)
    pool = [random_genome(space, rng, method=method) for _ in range(2)]
    for _ in range(8):
        first, second = rng.choice(pool), rng.choice(pool)
        pool += [mutate(first, space, rng), crossover(first, second, space, rng)]
    for genome in pool:
        assert [hop.layer for hop in genome.path] == list(range(space.num_layers))
        assert all(hop.scale == 1.0 for hop in genome.path)


def test_models_whose_layers_cannot_be_told_apart_are_merged_whole() -> None:
    space = replace(space_of(), layers="whole", methods=("linear", "ties", "slerp"))
    for seed in range(30):
        recipes = [space.recipe(random_genome(space, Random(seed)))]
        while recipes:
            items = [item for part in recipes.pop().slices for item in part.inputs]
            assert all(item.layer_range is None for item in items)
            recipes += [item.model for item in items if isinstance(item.model, Recipe)]
