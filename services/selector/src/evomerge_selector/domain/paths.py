"""Operators on data-flow paths: which layer of which source comes after which, how often, and how strongly.

A path may take layers in any order, leave some out and repeat others, between three quarters and five quarters of the
sources' depth, where such a model can be: in others layers stay in their places and come from one source or another.
Where a method scales the hidden state at each hop (dfs), these scales vary too. The moves are those of
Akiba et al. 2024 (arXiv:2403.13187: an order of layers with repeats, and a scale at each) and of sequence-based
evolution (swap, move and copy of a stretch; Eiben & Smith 2015, chapter 4).
"""

from __future__ import annotations

from dataclasses import replace
from random import Random

from evomerge_common.domain.genome import Genome, Hop
from evomerge_common.domain.methods import traits_of
from evomerge_common.domain.search_space import SearchSpace

MIN_SCALE, MAX_SCALE = 0.5, 1.5

Path = tuple[Hop, ...]


def depths(space: SearchSpace) -> tuple[int, int]:
    """Returns the fewest and most layers that a path may have."""
    return max(1, space.num_layers * 3 // 4), max(space.num_layers, space.num_layers * 5 // 4)


def random_path(space: SearchSpace, rng: Random, method: str) -> Path:
    """Draws the sources' own order of layers, each stretch from one source; where hops scale, scales and a move."""
    hops = traits_of(method).scales == "hop"
    scales = hops and not space.fixed_scale
    path: list[Hop] = []
    source = rng.randrange(len(space.models))
    for layer in range(space.num_layers):
        if rng.random() < 0.4:
            source = rng.randrange(len(space.models))
        scale = round(rng.uniform(0.8, 1.2), 3) if scales else 1.0
        path.append(Hop(source, layer, scale))
    return mutate_path(Genome(method, path=tuple(path)), space, rng) if hops else tuple(path)


def mutate_path(genome: Genome, space: SearchSpace, rng: Random) -> Path:
    """Makes one move: another source, scale or order; what these models cannot hold becomes another source."""
    path = list(genome.path)
    choices = len(genome.ingredients or space.models)
    fewest, most = depths(space)
    start = rng.randrange(len(path))
    stop = min(len(path), start + 1 + int(rng.expovariate(1.0)))
    move = rng.random()
    scales = genome.traits.scales == "hop" and not space.fixed_scale
    if move < 0.5 or (space.layers and not (scales and move < 0.65)):  # a stretch from another source
        source = rng.randrange(choices)
        path[start:stop] = [replace(hop, ingredient=source) for hop in path[start:stop]]
    elif move < 0.65 and scales:
        scale = path[start].scale + rng.gauss(0.0, 0.1)
        path[start] = replace(path[start], scale=round(min(MAX_SCALE, max(MIN_SCALE, scale)), 3))
    elif move < 0.75 and len(path) > 1:  # two neighbours change places
        other = start + 1 if start + 1 < len(path) else start - 1
        path[start], path[other] = path[other], path[start]
    elif move < 0.82:  # a stretch moves
        stretch = path[start:stop]
        del path[start:stop]
        place = rng.randrange(len(path) + 1)
        path[place:place] = stretch
    elif move < 0.92 and len(path) < most:  # a stretch is passed twice
        path[stop:stop] = path[start : min(stop, start + most - len(path))]
    elif len(path) > fewest:
        del path[start : min(stop, start + len(path) - fewest)]
    else:
        path[start] = replace(path[start], layer=rng.randrange(space.num_layers))
    return tuple(path)


def cross_paths(first: Path, second: Path, space: SearchSpace, rng: Random) -> Path:
    """Puts the lower part of one under the upper part of the other, cut at one relative depth (one-point crossover)."""
    fewest, most = depths(space)
    cut = rng.random()
    path = first[: round(cut * len(first))] + second[round(cut * len(second)) :]
    return path if fewest <= len(path) <= most else first
