"""The models of a run, resolved, and how a genome over them becomes a recipe."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

from evomerge_common.domain.cross_domain import CrossDomain
from evomerge_common.domain.genome import Genome
from evomerge_common.domain.methods import traits_of
from evomerge_common.domain.recipe import Input, Recipe, Slice
from evomerge_common.domain.reference import ModelReference
from evomerge_common.errors import RecipeError

EMBEDDING_FILTERS = ("embed_tokens", "wte", "wpe", "embeddings")
"""Parts of tensor names that mean embeddings, over the architectures that we know."""


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

    @cached_property
    def weighted_methods(self) -> tuple[str, ...]:
        """Lists the methods whose genomes have weights, and no path."""
        return tuple(name for name in self.methods if not traits_of(name).is_path)

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
