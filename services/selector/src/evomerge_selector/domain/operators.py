"""Random, mutated and recombined genomes. Every function draws from the `random.Random` that it is given, alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from random import Random

from evomerge_common.domain.genome import (
    DENSITY_METHODS,
    PARAMETER_METHODS,
    PATH_METHODS,
    RANDOM_METHODS,
    TASK_VECTOR_METHODS,
    Genome,
    Hop,
    SearchSpace,
)

MAX_WEIGHT = 2.0
MIN_SIGMA, MAX_SIGMA = 0.02, 0.6


def random_genome(space: SearchSpace, rng: Random, *, method: str = "") -> Genome:
    """A genome from the whole space: a method, then weights that differ by ingredient more than by row."""
    method = method or rng.choice(space.methods)
    if method in PATH_METHODS:
        return _random_path(space, rng, method)
    strength = [rng.uniform(0.1, 1.2) for _ in space.models]
    weights = tuple(
        tuple(_clip(value * math.exp(rng.gauss(0.0, 0.25)), MAX_WEIGHT) for value in strength)
        for _ in range(space.rows)
    )
    return _complete(Genome(method, weights=weights, density=_random_density(space, rng)), rng, space)


def mutate(genome: Genome, space: SearchSpace, rng: Random) -> Genome:
    """Gaussian steps on about a third of the genes, a rare change of method; the step size evolves with the genome."""
    sigma = min(MAX_SIGMA, max(MIN_SIGMA, genome.sigma * math.exp(rng.gauss(0.0, 0.3))))
    if genome.method in PATH_METHODS:
        return replace(genome, path=_mutate_path(genome, space, rng), sigma=sigma)
    columns = len(genome.weights[0])
    # Ingredient by ingredient first: the whole column moves together, then single rows around it.
    shift = [rng.gauss(0.0, sigma) if rng.random() < 0.5 else 0.0 for _ in range(columns)]
    weights = tuple(
        tuple(
            _clip(value + shift[i] + (rng.gauss(0.0, sigma) if rng.random() < 0.3 else 0.0), MAX_WEIGHT)
            for i, value in enumerate(row)
        )
        for row in genome.weights
    )
    density = tuple(
        _clip(value + rng.gauss(0.0, sigma) if rng.random() < 0.3 else value, 1.0, low=0.1) for value in genome.density
    )
    method = genome.method
    others = [m for m in space.methods if m in PARAMETER_METHODS and m != method]
    if others and rng.random() < 0.06:
        method = rng.choice(others)
    return _complete(replace(genome, method=method, weights=weights, density=density, sigma=sigma), rng, space)


def crossover(first: Genome, second: Genome, space: SearchSpace, rng: Random) -> Genome:
    """A child of two: their union, rows exchanged (uniform crossover), or a blend (BLX-0.25, Eshelman & Schaffer 1993).

    Parents of different shape cannot exchange genes: the child is then a mutant of the first.
    """
    if first.method in PATH_METHODS and second.method in PATH_METHODS and first.ingredients == second.ingredients:
        cut = rng.random()
        head = first.path[: round(cut * len(first.path))]
        return replace(first, path=(head + second.path[round(cut * len(second.path)) :]) or first.path)
    if (
        first.method in PATH_METHODS
        or second.method in PATH_METHODS
        or first.ingredients != second.ingredients
        or len(first.weights) != len(second.weights)
    ):
        return mutate(first, space, rng)
    draw = rng.random()
    methods = [first.method, second.method]
    if draw < 1 / 3:
        # Union: of each ingredient the larger weight. What one parent can do is added to what the other can, which
        # only a sum of task vectors can express; an average would halve both.
        weights = tuple(
            tuple(max(a, b) for a, b in zip(ours, theirs, strict=True))
            for ours, theirs in zip(first.weights, second.weights, strict=True)
        )
        methods = (
            [m for m in methods if m in TASK_VECTOR_METHODS]
            or [m for m in space.methods if m in TASK_VECTOR_METHODS]
            or methods
        )
    elif draw < 2 / 3:
        picks = [rng.random() < 0.5 for _ in first.weights]
        weights = tuple(a if pick else b for a, b, pick in zip(first.weights, second.weights, picks, strict=True))
    else:
        alpha = rng.uniform(-0.25, 1.25)
        weights = tuple(
            tuple(_clip(a + alpha * (b - a), MAX_WEIGHT) for a, b in zip(ours, theirs, strict=True))
            for ours, theirs in zip(first.weights, second.weights, strict=True)
        )
    density = first.density if rng.random() < 0.5 else second.density
    child = replace(
        first,
        method=rng.choice(methods),
        weights=weights,
        density=density or first.density or second.density,
        sigma=math.sqrt(first.sigma * second.sigma),
    )
    return _complete(child, rng, space)


def differential(target: Genome, first: Genome, second: Genome, space: SearchSpace, rng: Random) -> Genome | None:
    """A step from the target along the difference of two others (differential evolution, Storn & Price 1997).

    The pool's own spread sets length and direction of the step. None when the three are not of one shape.
    """
    three = (target, first, second)
    if any(one.method in PATH_METHODS or one.ingredients for one in three) or len({len(o.weights) for o in three}) > 1:
        return None
    scale = rng.uniform(0.3, 1.0)
    weights = tuple(
        tuple(_clip(t + scale * (a - b), MAX_WEIGHT) for t, a, b in zip(*rows, strict=True))
        for rows in zip(target.weights, first.weights, second.weights, strict=True)
    )
    density = target.density
    if first.density and second.density and density:
        density = tuple(
            _clip(t + scale * (a - b), 1.0, low=0.1)
            for t, a, b in zip(density, first.density, second.density, strict=True)
        )
    return _complete(replace(target, weights=weights, density=density), rng, space)


def merge_of_merges(parents: Sequence[Genome], space: SearchSpace, rng: Random) -> Genome:
    """Breeds whole candidates: their recipes become the ingredients of a linear merge."""
    recipes = tuple(space.recipe(parent) for parent in parents)
    weights = [rng.uniform(0.5, 1.5) for _ in recipes]
    return Genome("linear", weights=(tuple(weights),) * space.rows, ingredients=recipes)


def _complete(genome: Genome, rng: Random, space: SearchSpace) -> Genome:
    """Gives a genome what its method needs and takes what it does not read, so that equal models look equal."""
    density = genome.density if genome.method in DENSITY_METHODS else ()
    if genome.method in DENSITY_METHODS and not density:
        density = _random_density(space, rng)
    seed = (genome.seed or rng.randrange(1, 2**31)) if genome.method in RANDOM_METHODS else 0
    return replace(genome, density=density, seed=seed)


def _random_density(space: SearchSpace, rng: Random) -> tuple[float, ...]:
    level = rng.uniform(0.3, 1.0)
    return tuple(_clip(level + rng.gauss(0.0, 0.1), 1.0, low=0.1) for _ in range(space.rows))


def _random_path(space: SearchSpace, rng: Random, method: str) -> Genome:
    """Depth kept, each stretch of layers from one source; dfs also scales, and may skip or repeat a layer."""
    path: list[Hop] = []
    source = rng.randrange(len(space.models))
    for layer in range(space.num_layers):
        if rng.random() < 0.4:
            source = rng.randrange(len(space.models))
        scale = 1.0 if method == "frankenmerge" else round(rng.uniform(0.8, 1.2), 3)
        path.append(Hop(source, layer, scale))
    genome = Genome(method, path=tuple(path))
    return replace(genome, path=_mutate_path(genome, space, rng)) if method == "dfs" else genome


def _mutate_path(genome: Genome, space: SearchSpace, rng: Random) -> tuple[Hop, ...]:
    path = list(genome.path)
    choices = len(genome.ingredients or space.models)
    position = rng.randrange(len(path))
    hop = path[position]
    move = rng.random()
    if move < 0.6 or genome.method == "frankenmerge":
        path[position] = replace(hop, ingredient=rng.randrange(choices))
    elif move < 0.8:
        path[position] = replace(hop, scale=round(_clip(hop.scale + rng.gauss(0.0, 0.1), 1.5, low=0.5), 3))
    elif move < 0.9 and len(path) < space.num_layers * 5 // 4:
        path.insert(position, hop)
    elif len(path) > max(1, space.num_layers * 3 // 4):
        del path[position]
    return tuple(path)


def _clip(value: float, high: float, *, low: float = 0.0) -> float:
    # Four digits are finer than any score can tell, and keep recipes readable.
    return round(min(high, max(low, value)), 4)
