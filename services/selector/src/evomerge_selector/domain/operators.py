"""Random, mutated and recombined genomes. Every function draws from the `random.Random` that it is given, alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from random import Random

from evomerge_common.domain.genome import Genome
from evomerge_common.domain.methods import traits_of
from evomerge_common.domain.search_space import SearchSpace
from evomerge_selector.domain.paths import cross_paths, mutate_path, random_path

MAX_WEIGHT = 2.0
MIN_SIGMA, MAX_SIGMA = 0.02, 0.6
MIN_DENSITY = 0.1
MAX_MASK = 0.9


def random_genome(space: SearchSpace, rng: Random, *, method: str = "") -> Genome:
    """Draws a genome from the whole space: a method, then weights that differ by ingredient more than by row."""
    method = method or rng.choice(space.methods)
    if traits_of(method).is_path:
        return Genome(method, path=random_path(space, rng, method))
    strength = [rng.uniform(0.1, 1.2) for _ in space.models]
    weights = tuple(
        tuple(_clip(value * math.exp(rng.gauss(0.0, 0.25)), MAX_WEIGHT) for value in strength)
        for _ in range(space.rows)
    )
    genome = Genome(
        method,
        weights=weights,
        density=_random_density(space, rng),
        cuts=_random_cuts(space, rng) if space.has_movable_cuts else (),
        mask=_random_mask(space, rng) if space.has_masks and rng.random() < 0.3 else (),
    )
    return _complete(genome, rng, space)


def mutate(genome: Genome, space: SearchSpace, rng: Random) -> Genome:
    """Steps (Gaussian) on about a third of the genes, rarely to another method; the step size evolves, too."""
    sigma = min(MAX_SIGMA, max(MIN_SIGMA, genome.sigma * math.exp(rng.gauss(0.0, 0.3))))
    if genome.traits.is_path:
        return replace(genome, path=mutate_path(genome, space, rng), sigma=sigma)
    gauss, draw = rng.gauss, rng.random
    # Ingredient by ingredient first: the whole column moves together, then single rows around it.
    shift = [gauss(0.0, sigma) if draw() < 0.5 else 0.0 for _ in genome.weights[0]]
    weights = tuple([
        tuple([
            _clip(value + moved + (gauss(0.0, sigma) if draw() < 0.3 else 0.0), MAX_WEIGHT)
            for value, moved in zip(row, shift, strict=True)
        ])
        for row in genome.weights
    ])  # fmt: skip
    density = tuple([
        _clip(value + gauss(0.0, sigma) if draw() < 0.3 else value, 1.0, low=MIN_DENSITY) for value in genome.density
    ])  # fmt: skip
    method = genome.method
    if any(m != method for m in space.weighted_methods) and draw() < 0.06:
        method = rng.choice([m for m in space.weighted_methods if m != method])
    cuts, mask = genome.cuts, genome.mask
    if space.has_movable_cuts and draw() < 0.15:
        cuts = _move_cut(cuts, space, rng)
    if space.has_masks and draw() < 0.1:
        mask = _mutate_mask(genome, space, rng, sigma)
    child = replace(genome, method=method, weights=weights, density=density, sigma=sigma, cuts=cuts, mask=mask)
    return _complete(child, rng, space)


def crossover(first: Genome, second: Genome, space: SearchSpace, rng: Random) -> Genome:
    """Breeds two: their union, rows exchanged (uniform crossover), or a blend (BLX-0.25, Eshelman & Schaffer 1993).

    Parents of different shape cannot exchange genes: the child is then a mutant of the first.
    """
    if first.traits.is_path and second.traits.is_path and first.ingredients == second.ingredients:
        path = cross_paths(first.path, second.path, space, rng)
        if first.traits.scales != "hop":  # the other parent may have scaled its layers
            path = tuple(replace(hop, scale=1.0) for hop in path)
        return replace(first, path=path)
    if (
        first.traits.is_path
        or second.traits.is_path
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
            [m for m in methods if traits_of(m).is_sum] or [m for m in space.methods if traits_of(m).is_sum] or methods
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
    cuts, mask = first.cuts, first.mask
    if first.cuts != second.cuts and rng.random() < 0.5:
        cuts = second.cuts
    if first.mask != second.mask and rng.random() < 0.5:
        mask = second.mask
    child = replace(
        first,
        cuts=cuts,
        mask=mask,
        method=rng.choice(methods),
        weights=weights,
        density=density or first.density or second.density,
        sigma=math.sqrt(first.sigma * second.sigma),
    )
    return _complete(child, rng, space)


def differential(target: Genome, first: Genome, second: Genome, space: SearchSpace, rng: Random) -> Genome | None:
    """Steps from the target along the difference of two others (differential evolution, Storn & Price 1997).

    The pool's own spread sets length and direction of the step. None when the three are not of one shape.
    """
    three = (target, first, second)
    if any(one.traits.is_path or one.ingredients for one in three) or len({len(o.weights) for o in three}) > 1:
        return None
    scale = rng.uniform(0.3, 1.0)
    weights = tuple(
        tuple(_clip(t + scale * (a - b), MAX_WEIGHT) for t, a, b in zip(*rows, strict=True))
        for rows in zip(target.weights, first.weights, second.weights, strict=True)
    )
    density = target.density
    if first.density and second.density and density:
        density = tuple(
            _clip(t + scale * (a - b), 1.0, low=MIN_DENSITY)
            for t, a, b in zip(density, first.density, second.density, strict=True)
        )
    return _complete(replace(target, weights=weights, density=density), rng, space)


def merge_of_merges(parents: Sequence[Genome], space: SearchSpace, rng: Random) -> Genome:
    """Breeds whole candidates: their recipes become the ingredients of a linear merge.

    Where the algebra is exact the child is flat: a weighted mean of weighted sums is a weighted sum.
    """
    weights = [rng.uniform(0.5, 1.5) for _ in parents]
    flat = flattened(parents, weights, space)
    if flat is not None:
        return flat
    recipes = tuple(space.recipe(parent) for parent in parents)
    return Genome("linear", weights=(tuple(_clip(w, MAX_WEIGHT) for w in weights),) * space.rows, ingredients=recipes)


def flattened(parents: Sequence[Genome], weights: Sequence[float], space: SearchSpace) -> Genome | None:
    """Returns the weighted mean of merges as one merge of the sources; None when a parent is no weighted sum of them.

    `linear` is a mean Σ cᵢmᵢ with Σ cᵢ = 1, `task_arithmetic` the sum b + Σ cᵢ(mᵢ − b): with a base, both are of the
    second form, and so is their mean.
    """
    if any(p.ingredients or any(p.mask) for p in parents) or len({p.cuts for p in parents}) > 1:
        return None
    kinds = {parent.method: parent.traits for parent in parents}
    if not all(traits.linear for traits in kinds.values()) or (space.base is None and len(kinds) > 1):
        return None
    total, rows = sum(weights), []
    for row in range(space.rows):
        terms = [parent.weights[row] for parent in parents]
        if any(p.traits.is_mean and sum(own) <= 0.0 for p, own in zip(parents, terms, strict=True)):
            return None
        terms = [
            tuple(w / sum(own) for w in own) if p.traits.is_mean else own for p, own in zip(parents, terms, strict=True)
        ]
        rows.append(
            tuple(_clip(sum(s * w for s, w in zip(weights, column, strict=True)) / total, MAX_WEIGHT)
                  for column in zip(*terms, strict=True))
        )  # fmt: skip
    method = next((name for name, traits in kinds.items() if traits.is_sum), parents[0].method)
    sigma = math.exp(sum(math.log(parent.sigma) for parent in parents) / len(parents))
    return Genome(method, weights=tuple(rows), cuts=parents[0].cuts, sigma=sigma)


def _complete(genome: Genome, rng: Random, space: SearchSpace) -> Genome:
    """Gives a genome what its method needs and takes what it does not read, so that equal models look equal."""
    traits = genome.traits
    weights = genome.weights if traits.weights else tuple((1.0,) * len(row) for row in genome.weights)
    density = genome.density if traits.density else ()
    if traits.density and not density:
        density = _random_density(space, rng)
    cuts = () if genome.cuts == space.even_cuts else genome.cuts
    mask = genome.mask if any(genome.mask) and not traits.random else ()
    seed = (genome.seed or rng.randrange(1, 2**31)) if traits.random or mask else 0
    found = (weights, density, seed, cuts, mask)
    if found == (genome.weights, genome.density, genome.seed, genome.cuts, genome.mask):
        return genome
    return replace(genome, weights=weights, density=density, seed=seed, cuts=cuts, mask=mask)


def _random_density(space: SearchSpace, rng: Random) -> tuple[float, ...]:
    level = rng.uniform(0.3, 1.0)
    return tuple(_clip(level + rng.gauss(0.0, 0.1), 1.0, low=MIN_DENSITY) for _ in range(space.rows))


def _random_cuts(space: SearchSpace, rng: Random) -> tuple[int, ...]:
    """Even groups as often as any others."""
    if rng.random() < 0.5:
        return ()
    return tuple(sorted(rng.sample(range(1, space.num_layers), space.spans_count - 1)))


def _move_cut(cuts: tuple[int, ...], space: SearchSpace, rng: Random) -> tuple[int, ...]:
    """One cut moves between its neighbours, by an eighth of the depth at most."""
    edges = [0, *(cuts or space.even_cuts), space.num_layers]
    place = rng.randrange(1, len(edges) - 1)
    reach = max(1, space.num_layers // 8)
    low, high = max(edges[place - 1] + 1, edges[place] - reach), min(edges[place + 1] - 1, edges[place] + reach)
    edges[place] = rng.randint(low, high)
    return tuple(edges[1:-1])


def _random_mask(space: SearchSpace, rng: Random) -> tuple[float, ...]:
    return tuple(_clip(rng.uniform(0.0, 0.6), MAX_MASK) if rng.random() < 0.5 else 0.0 for _ in space.models)


def _mutate_mask(genome: Genome, space: SearchSpace, rng: Random, sigma: float) -> tuple[float, ...]:
    """One ingredient's mask comes, goes or changes its rate."""
    mask = list(genome.mask or (0.0,) * len(genome.ingredients or space.models))
    place = rng.randrange(len(mask))
    if mask[place] and rng.random() < 0.3:
        mask[place] = 0.0
    else:
        mask[place] = _clip((mask[place] or 0.3) + rng.gauss(0.0, sigma), MAX_MASK)
    return tuple(mask)


def _clip(value: float, high: float, *, low: float = 0.0) -> float:
    # Four digits are finer than any score can tell, and keep recipes readable.
    return round(low if value < low else min(value, high), 4)
