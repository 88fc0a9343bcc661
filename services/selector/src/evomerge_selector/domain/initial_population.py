"""The initial population: the sources, their average, and the 2³ combinations of the classic command line."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

from evomerge_common.domain.genome import Genome, Hop
from evomerge_common.domain.methods import DFS_TECHNIQUES, PS_TECHNIQUES_1, PS_TECHNIQUES_2, traits_of
from evomerge_common.domain.recipe import Recipe
from evomerge_common.domain.search_space import SearchSpace
from evomerge_common.domain.spec import ClassicSpec


def initial_population(space: SearchSpace, classic: ClassicSpec) -> list[tuple[str, Genome]]:
    """Makes the fixed first merges, as (operator, genome); the sources go before them, random genomes after."""
    found: list[tuple[str, Genome]] = [("average", space.uniform("linear", weight=1.0))]
    # Task vectors scaled together: 1/n is the average again, 1 is plain addition; what is best lies between.
    if "task_arithmetic" in space.methods:
        found.extend(("scaled", space.uniform("task_arithmetic", weight=weight)) for weight in (_weight(space), 1.0))
    if "ties" in space.methods:
        found.append(("scaled", space.uniform("ties", weight=1.0, density=0.7)))
    found.extend(("classic", genome) for genome in classic_population(space, classic))
    return found


def classic_population(space: SearchSpace, classic: ClassicSpec) -> list[Genome]:
    """Makes {linear, slerp} × {ties, dare} × {frankenmerge, dfs}.

    The first technique merges the models into one, the second into another; the third draws its layers from the
    two in turn. A technique that the spec names leaves the other of its kind out, and a method that the spec does
    not list leaves out the combinations that need it.
    """
    genomes = []
    firsts = (classic.ps_technique1,) if classic.ps_technique1 else PS_TECHNIQUES_1
    seconds = (classic.ps_technique2,) if classic.ps_technique2 else PS_TECHNIQUES_2
    thirds = (classic.dfs_technique,) if classic.dfs_technique else DFS_TECHNIQUES
    for first, second, third in product(firsts, seconds, thirds):
        needed = {PS_TECHNIQUES_1[first], PS_TECHNIQUES_2[second], DFS_TECHNIQUES[third]}
        if needed <= set(space.methods):
            ingredients = (_first(space, first, classic), _second(space, second, classic))
            genomes.append(Genome(DFS_TECHNIQUES[third], path=_path(space, third), ingredients=ingredients))
    return genomes


def _first(space: SearchSpace, technique: str, classic: ClassicSpec) -> Recipe:
    if classic.weight_mask_rate and technique == "linear":
        method = "dare_linear" if classic.mask_strategy == "random" else "ties"
        return _masked(space, method, classic)
    return space.recipe(space.uniform(PS_TECHNIQUES_1[technique], weight=1.0))


def _second(space: SearchSpace, technique: str, classic: ClassicSpec) -> Recipe:
    if classic.weight_mask_rate:
        return _masked(space, "dare_ties" if classic.mask_strategy == "random" else "ties", classic)
    return space.recipe(space.uniform(PS_TECHNIQUES_2[technique], weight=_weight(space), density=0.5, seed=1))


def _masked(space: SearchSpace, method: str, classic: ClassicSpec) -> Recipe:
    """Masking a share of each task vector is what density says; dare rescales what is left, unless told not to."""
    recipe = space.recipe(
        space.uniform(method, weight=_weight(space), density=round(1.0 - classic.weight_mask_rate, 4), seed=1)
    )
    if traits_of(method).random and not classic.use_weight_rescale:
        recipe = replace(recipe, parameters={**recipe.parameters, "rescale": False})
    return recipe


def _weight(space: SearchSpace) -> float:
    return round(0.5 + 0.5 / len(space.models), 4)


def _path(space: SearchSpace, technique: str) -> tuple[Hop, ...]:
    """Takes layers in turn from both (frankenmerge), or one's lower half under the other's upper half (dfs)."""
    half = space.num_layers // 2
    return tuple(
        Hop((layer % 2) if technique == "frankenmerge" else int(layer >= half), layer)
        for layer in range(space.num_layers)
    )
