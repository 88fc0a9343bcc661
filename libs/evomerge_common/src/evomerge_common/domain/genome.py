"""The genome: what evolution changes. `SearchSpace.recipe` turns one into a recipe, purely: two genomes with the same
recipe are one candidate.

Two shapes share the class, and the method's traits (`methods.Traits`) say which it has. A *parameter-space* genome has
a weight for each ingredient and a density in each row; row 0 is the embeddings, rows 1 … G are groups of consecutive
layers (where one ends and the next begins may evolve: `cuts`), and the head follows the last group. Its ingredients may
be masked before they are merged (`mask`). A *data-flow-space* genome has a path through the ingredients' layers, in any
order and with repeats (Akiba et al. 2024, "Evolutionary Optimization of Model Merging Recipes").
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

from evomerge_common.domain.methods import Traits, traits_of
from evomerge_common.domain.recipe import CrossDomain, Input, ModelReference, Recipe, Slice
from evomerge_common.errors import RecipeError

GENES = ("boundaries", "masks", "nesting")
"""Genes that a run may leave out; weights, densities, methods and paths always evolve."""
EMBEDDING_FILTERS = ("embed_tokens", "wte", "wpe", "embeddings")
"""Parts of tensor names that mean embeddings, over the architectures that we know."""


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
        ours, theirs = [w for row in self.weights for w in row], [w for row in other.weights for w in row]
        if len(ours) != len(theirs) or not ours:
            return 1.0
        if self.cuts != other.cuts or self.mask != other.mask:
            apart = min(0.25, apart + 0.1)
        return apart + 0.75 * min(1.0, sum(abs(a - b) for a, b in zip(ours, theirs, strict=True)) / len(ours))


def builds_differ(builds: Iterable[tuple[str, int, int]]) -> bool:
    """Tells whether models (architecture, layers, parameters; 0: unknown) cannot be merged tensor by tensor.

    A few tokens more or less are no other build.
    """
    found = list(builds)
    sizes = [parameters for _, _, parameters in found if parameters]
    return len({build[:2] for build in found}) > 1 or max(sizes, default=0) > 1.01 * min(sizes, default=0)


@dataclass(frozen=True)
class SearchSpace:
    """The models of a run, resolved, and how finely their layers are told apart.

    Attributes:
        models: what is merged, with digests.
        base: what task vectors are taken against, or None (the engine then uses the models' average).
        num_layers: transformer layers of each model, once all have one build.
        groups: layer groups, at most num_layers.
        genes: which of `GENES` evolve.
        cross_domain: how the models are fitted to one build, its target named; None where all have one.
        layers: what these models' layers allow: "" any order, "in_place" none but their own, "whole" no slices at all.
        fixed_scale: whether the hidden state cannot be scaled between layers.

    """

    models: tuple[ModelReference, ...]
    base: ModelReference | None
    num_layers: int
    groups: int
    methods: tuple[str, ...]
    dtype: str = ""
    genes: tuple[str, ...] = ()
    cross_domain: CrossDomain | None = None
    layers: str = ""
    fixed_scale: bool = False

    @property
    def rows(self) -> int:
        """Counts the rows of a weight table: the embeddings and the layer groups."""
        return 1 + self.spans_count

    @property
    def spans_count(self) -> int:
        """Counts the layer groups that there really are."""
        return 1 if self.layers == "whole" else max(1, min(self.groups, self.num_layers))

    @cached_property
    def even_cuts(self) -> tuple[int, ...]:
        """Returns the cuts of groups that are as even as can be."""
        count = self.spans_count
        return tuple(round(i * self.num_layers / count) for i in range(1, count))

    @property
    def has_movable_cuts(self) -> bool:
        """Tells whether groups can be cut in more than one way, and may be."""
        return "boundaries" in self.genes and 1 < self.spans_count < self.num_layers

    @property
    def has_masks(self) -> bool:
        """Tells whether changes can be masked: they are told from a base."""
        return "masks" in self.genes and self.base is not None

    def spans(self, cuts: tuple[int, ...] = ()) -> list[tuple[int, int]]:
        """Returns the half-open layer range of each group.

        Raises:
            RecipeError: the cuts leave the layers, or a group empty.

        """
        edges = (0, *(cuts or self.even_cuts), self.num_layers)
        if len(edges) != self.spans_count + 1 or any(start >= stop for start, stop in pairwise(edges)):
            raise RecipeError(f"cuts {list(cuts)} do not make {self.spans_count} groups of {self.num_layers} layers")
        return list(pairwise(edges))

    def source(self, model: ModelReference) -> Recipe:
        """Makes the recipe of a source as it is."""
        return Recipe.of_source(model, dtype=self.dtype)

    def recipe(self, genome: Genome) -> Recipe:
        """Makes the recipe that a genome stands for.

        Raises:
            RecipeError: the genome does not fit this space.

        """
        found = self._recipe(genome)
        return found if self.cross_domain is None else replace(found, cross_domain=self.cross_domain)

    def _recipe(self, genome: Genome) -> Recipe:
        ingredients: tuple[ModelReference | Recipe, ...] = genome.ingredients or self.models
        traits = genome.traits
        if traits.refusal:
            raise RecipeError(f"the search cannot draw {genome.method!r}: {traits.refusal}")
        if traits.is_path:
            return self._path(genome, ingredients)
        if len(genome.weights) != self.rows or any(len(row) != len(ingredients) for row in genome.weights):
            raise RecipeError(f"a genome of {self.rows} rows × {len(ingredients)} weights is needed")
        if traits.is_mean:
            # A row without any weight would be a tensor of zeros, which no model survives: all count alike in it.
            rows = tuple(row if any(row) else (1.0,) * len(row) for row in genome.weights)
            genome = replace(genome, weights=rows)
        ingredients = tuple(self._masked(genome, ingredients))
        if traits.is_pairwise:
            return self._pairwise(genome, ingredients)
        return Recipe(
            genome.method,
            tuple(self._slices(genome, ingredients)),
            base=self.base if traits.base == "derived" else None,
            parameters=dict(traits.settings),
            dtype=self.dtype,
            seed=genome.seed if traits.random else 0,
        )

    def _slices(self, genome: Genome, ingredients: Sequence[ModelReference | Recipe]) -> Iterator[Slice]:
        """All ingredients in each stretch of layers, with the weights and the density that the method reads."""
        traits = genome.traits
        weights = genome.weights if traits.weights else ((),) * self.rows
        density = [traits.density.clip(share) for share in genome.density] if traits.density else [1.0] * self.rows
        for span, row, at_bottom in self._stretches(genome.cuts, list(zip(weights, density, strict=True))):
            own: list[dict[str, Any]] = [{} for _ in ingredients]
            if traits.weights:
                own = [
                    {"weight": self._value([one[i] for one in weights], row, at_bottom)}
                    for i in range(len(ingredients))
                ]
            inputs = tuple(Input(model, span, each) for model, each in zip(ingredients, own, strict=True))
            shared = {traits.density.parameter: self._value(density, row, at_bottom)} if traits.density else {}
            yield Slice(inputs, shared)

    def _masked(self, genome: Genome, ingredients: Sequence[ModelReference | Recipe]) -> list[ModelReference | Recipe]:
        """Each ingredient with its mask around it: a nested recipe that drops a share of its changes."""
        if not genome.mask or self.base is None:
            return list(ingredients)
        if len(genome.mask) != len(ingredients):
            raise RecipeError(f"{len(genome.mask)} mask rates for {len(ingredients)} ingredients")
        masked: list[ModelReference | Recipe] = []
        for model, rate in zip(ingredients, genome.mask, strict=True):
            mask = Recipe("mask_delta", (Slice((Input(model),)),), self.base, {"rate": rate}, self.dtype)
            masked.append(replace(mask, seed=genome.seed) if rate else model)
        return masked

    def _stretches(
        self, cuts: tuple[int, ...], genes: Sequence[tuple[Any, ...]]
    ) -> list[tuple[tuple[int, int] | None, int, bool]]:
        """(layer range, row, whether the embeddings lie under it): neighbours of equal genes are one slice, so that
        models that are equal have equal recipes, wherever a cut between equals lies.
        """
        if self.layers == "whole":
            return [(None, 1, True)]
        found: list[tuple[tuple[int, int], int, bool]] = []
        for row, (start, stop) in enumerate(self.spans(cuts), start=1):
            if found and genes[found[-1][1]] == genes[row]:
                (first, _), earlier, at_bottom = found[-1]
                found[-1] = ((first, stop), earlier, at_bottom)
            else:
                found.append(((start, stop), row, row == 1))
        return [*found]

    def _value(self, rows: Sequence[float], row: int, at_bottom: bool) -> Any:
        """A slice's value of a gene; the lowest slice says by filter what the embeddings get."""
        if at_bottom and rows[0] != rows[row]:
            return [*({"filter": name, "value": rows[0]} for name in EMBEDDING_FILTERS), {"value": rows[row]}]
        return rows[row]

    def _pairwise(self, genome: Genome, ingredients: tuple[ModelReference | Recipe, ...]) -> Recipe:
        """A method of two models folds more in one by one: each newcomer has its share of the weight so far."""
        traits = genome.traits
        merged: ModelReference | Recipe = ingredients[0]
        for index, model in enumerate(ingredients[1:], start=1):
            shares = []
            for weights in genome.weights:
                total = sum(weights[: index + 1])
                shares.append(weights[index] / total if total > 0 else 1 / (index + 1))
            parts = []
            for span, row, at_bottom in self._stretches(genome.cuts, [(share,) for share in shares]):
                share = self._value(shares, row, at_bottom)
                if traits.share:
                    parts.append(Slice((Input(merged, span), Input(model, span)), {traits.share: share}))
                else:
                    rest = self._value([1.0 - one for one in shares], row, at_bottom)
                    parts.append(Slice((Input(merged, span, {"weight": rest}), Input(model, span, {"weight": share}))))
            # Without a base, that of slerp is the first input, and nuslerp has none.
            merged = Recipe(genome.method, tuple(parts), parameters=dict(traits.settings), dtype=self.dtype)
        if not isinstance(merged, Recipe):
            raise RecipeError(f"{genome.method} needs two models or more")
        return merged

    def _path(self, genome: Genome, ingredients: tuple[ModelReference | Recipe, ...]) -> Recipe:
        """Consecutive hops of one ingredient at one scale become one slice."""
        if not genome.path:
            raise RecipeError("a data-flow genome needs a path")
        runs: list[tuple[int, int, int, float]] = []
        for hop in genome.path:
            if not (0 <= hop.ingredient < len(ingredients) and 0 <= hop.layer < self.num_layers):
                raise RecipeError(f"{hop} leaves the models' layers")
            scale = hop.scale if genome.traits.scales == "hop" else 1.0
            if runs and runs[-1][0] == hop.ingredient and runs[-1][2] == hop.layer and runs[-1][3] == scale:
                runs[-1] = (hop.ingredient, runs[-1][1], hop.layer + 1, scale)
            else:
                runs.append((hop.ingredient, hop.layer, hop.layer + 1, scale))
        parts = tuple(
            Slice((Input(ingredients[i], (start, stop), {} if scale == 1.0 else {"scale": scale}),))
            for i, start, stop, scale in runs
        )
        return Recipe(genome.method, parts, dtype=self.dtype)

    # ---- genomes that every search starts from ----

    def uniform(self, method: str, *, weight: float, density: float = 1.0, seed: int = 0) -> Genome:
        """Gives every ingredient the same weight, everywhere."""
        traits = traits_of(method)
        return Genome(
            method,
            weights=tuple((weight,) * len(self.models) for _ in range(self.rows)),
            density=(density,) * self.rows if traits.density else (),
            seed=seed if traits.random else 0,
        )

    def fitted(self, genome: Genome, method: str) -> Genome:
        """Makes the same parameter-space genome under another method."""
        gene = traits_of(method).density
        if gene is None:
            return replace(genome, method=method)
        return replace(genome, method=method, density=genome.density or (gene.default,) * self.rows)
