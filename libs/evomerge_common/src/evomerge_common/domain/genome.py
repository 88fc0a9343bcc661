"""The genome: what evolution changes. `search_space.SearchSpace.recipe` turns one into a recipe, purely: two genomes
with the same recipe are one candidate.

Two shapes share the class, and the method's traits (`methods.Traits`) say which it has. A *parameter-space* genome has
a weight for each ingredient and a density in each row; row 0 is the embeddings, rows 1 … G are groups of consecutive
layers (where one ends and the next begins may evolve: `cuts`), and the head follows the last group. Its ingredients may
be masked before they are merged (`mask`). A *data-flow-space* genome has a path through the ingredients' layers, in any
order and with repeats (Akiba et al. 2024, "Evolutionary Optimization of Model Merging Recipes").
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from operator import sub
from typing import Any

from evomerge_common.domain.methods import Traits, traits_of
from evomerge_common.domain.recipe import Recipe

GENES = ("boundaries", "masks", "nesting")
"""Genes that a run may leave out; weights, densities, methods and paths always evolve."""


@dataclass(frozen=True)
class Hop:
    """One layer of a data-flow path: layer `layer` of ingredient `ingredient`, its output projections times `scale`."""

    ingredient: int
    layer: int
    scale: float = 1.0


@dataclass(frozen=True)
class Genome:
    """What evolution changes; the method's traits say which of the two shapes it has.

    Attributes:
        weights: row → ingredient → weight.
        density: row → share of each task vector that is kept, 0 … 1.
        cuts: first layer of the second group, of the third …; empty: groups as even as can be.
        mask: ingredient → share of its changes that is dropped at random, the rest scaled up; empty: none.
        ingredients: what is merged, when it is not the run's models: recipes, for merges of merges.
        sigma: mutation strength, itself inherited and mutated (self-adaptation, Schwefel 1981).
        seed: of random masks.

    """

    method: str
    weights: tuple[tuple[float, ...], ...] = ()
    density: tuple[float, ...] = ()
    path: tuple[Hop, ...] = ()
    ingredients: tuple[Recipe, ...] = ()
    sigma: float = 0.2
    seed: int = 0
    cuts: tuple[int, ...] = ()
    mask: tuple[float, ...] = ()

    @cached_property
    def traits(self) -> Traits:
        """Returns what is known of its method.

        Raises:
            RecipeError: nobody declares such a method.

        """
        return traits_of(self.method)

    def to_json(self) -> str:
        """Returns canonical JSON."""
        data: dict[str, Any] = {"method": self.method, "sigma": self.sigma}
        if self.weights:
            data["weights"] = [list(row) for row in self.weights]
        if self.density:
            data["density"] = list(self.density)
        if self.path:
            data["path"] = [[hop.ingredient, hop.layer, hop.scale] for hop in self.path]
        if self.ingredients:
            data["ingredients"] = [recipe.to_dict() for recipe in self.ingredients]
        if self.seed:
            data["seed"] = self.seed
        if self.cuts:
            data["cuts"] = list(self.cuts)
        if self.mask:
            data["mask"] = list(self.mask)
        return json.dumps(data, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Genome:
        """Reads what `to_json` wrote."""
        data: Mapping[str, Any] = json.loads(text)
        return cls(
            method=data["method"],
            weights=tuple(tuple(row) for row in data.get("weights", [])),
            density=tuple(data.get("density", [])),
            path=tuple(Hop(*hop) for hop in data.get("path", [])),
            ingredients=tuple(Recipe.from_dict(recipe) for recipe in data.get("ingredients", [])),
            sigma=data["sigma"],
            seed=data.get("seed", 0),
            cuts=tuple(data.get("cuts", [])),
            mask=tuple(data.get("mask", [])),
        )

    @cached_property
    def _all_weights(self) -> tuple[float, ...]:
        """Row by row; a genome is compared with many."""
        return tuple(chain.from_iterable(self.weights))

    def distance(self, other: Genome) -> float:
        """Says how different two genomes are: 0 (same) … 1."""
        is_path = self.traits.is_path
        if is_path != other.traits.is_path:
            return 1.0
        apart = 0.0 if self.method == other.method else 0.25
        if is_path:
            length = max(len(self.path), len(other.path), 1)
            same = sum(
                a.ingredient == b.ingredient and a.layer == b.layer for a, b in zip(self.path, other.path, strict=False)
            )
            return apart + 0.75 * (1 - same / length)
        ours, theirs = self._all_weights, other._all_weights
        if len(ours) != len(theirs) or not ours:
            return 1.0
        if self.cuts != other.cuts or self.mask != other.mask:
            apart = min(0.25, apart + 0.1)
        total: float = sum(map(abs, map(sub, ours, theirs)))
        return apart + 0.75 * min(1.0, total / len(ours))
