"""What each source gives to each layer of a merge, from its recipe alone: the heat map of a candidate.

Of a method that takes a weighted mean the numbers are shares, of one that adds up what sources changed of a base they
are the factors of these changes, and the base has what is left of one. Both multiply through merges of merges. What
such a table cannot hold is said beside it: changes that are thinned out, signs that are elected, angles, and methods
that find their factors in the tensors themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from evomerge_common.domain.methods import Traits, find_traits
from evomerge_common.domain.parameters import value_at
from evomerge_common.domain.recipe import Input, Recipe, Slice
from evomerge_common.domain.reference import ModelReference
from evomerge_report.history import short_name

BASE = "their base"
"""Names what a recipe without a base takes changes against: the sources' ancestor, else their average."""
_Place = tuple[str, int]
_Shares = dict[str, float]
_TENSORS = {
    "embeddings": ("model.embed_tokens.weight",),
    "layer": ("model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.down_proj.weight"),
    "head": ("lm_head.weight",),
}
"""Of each kind of place some tensors by name, of whose shares the mean is shown: filters of a recipe see names."""


@dataclass(frozen=True)
class Row:
    """Neighbouring layers that are put together alike, or the embeddings, or the head.

    Attributes:
        name: "embeddings", "layers 0–3", "head".
        shares: of each source, in the order of `Table.sources`; None: cannot be told.
        origin: of a path through the layers, where these come from: "expert-math 4–7".

    """

    name: str
    shares: tuple[float | None, ...]
    origin: str = ""


@dataclass(frozen=True)
class Table:
    """Rows from the bottom of the model up; `is_exact` tells whether the numbers are all that the merge does."""

    sources: tuple[str, ...]
    rows: tuple[Row, ...]
    is_exact: bool


def shares_of(recipe: Recipe, num_layers: int) -> Table:
    """Computes the table of a recipe; `num_layers` of each source, 0: not known, all layers are one row."""
    reader = _Reader(max(1, num_layers))
    named = {source.key: short_name(str(source.public)) for source in recipe.sources()}
    count = _length(recipe, max(1, num_layers))
    places: list[_Place] = [("embeddings", 0), *(("layer", layer) for layer in range(count)), ("head", 0)]
    found = [(place, reader.at(recipe, place)) for place in places]
    if any(BASE in shares for _, shares in found):
        named[BASE] = BASE
    spread = [
        (place, _origin(recipe, place, named), tuple(round(shares.get(key, 0.0), 4) for key in named))
        for place, shares in found
    ]
    rows = []
    for _, group in groupby(spread, key=lambda one: (one[0][0], _run(one[1], one[0][1]), one[2])):
        members = list(group)
        (place, first, shares), (end, last, _) = members[0], members[-1]
        name = place[0]
        if name == "layer":
            name = f"layer {place[1]}" if place == end else f"layers {place[1]}–{end[1]}"
            name = name if num_layers else "layers"
        rows.append(Row(name, tuple(None for _ in named) if reader.blind else shares, _joined(first, last)))
    return Table(tuple(named.values()), tuple(rows), reader.is_exact)


class _Reader:
    """Walks through an expression, and remembers whether plain factors are all that it does."""

    def __init__(self, num_layers: int) -> None:
        self._num_layers = num_layers
        self.is_exact = True
        self.blind = False

    def at(self, model: ModelReference | Recipe, place: _Place) -> _Shares:
        """Source → factor at a place of a model's own."""
        if isinstance(model, ModelReference):
            return {model.key: 1.0}
        part, offset, length = _slice(model, place, self._num_layers)
        traits = find_traits(model.method)
        depth = offset / (length - 1) if place[0] == "layer" and length > 1 else 0.0
        total: _Shares = {}
        tensors = _TENSORS[place[0]]
        for tensor in tensors:
            for item, factor in self._factors(model, part, traits, tensor, depth):
                inner = self.at(item.model, _inside(item, place, offset))
                for key, share in inner.items():
                    total[key] = total.get(key, 0.0) + factor * share / len(tensors)
        return total

    def _factors(
        self, recipe: Recipe, part: Slice, traits: Traits | None, tensor: str, depth: float
    ) -> list[tuple[Input, float]]:
        """Each input of a slice with its factor; the base among them."""

        def value(name: str, item: Input | None, default: float) -> float:
            levels = (item.parameters if item else {}, part.parameters, recipe.parameters)
            settings = (value_at(level[name], tensor, depth) for level in levels if name in level)
            found = next((one for one in settings if one is not None), default)
            return float(found)

        inputs = part.inputs
        if len(inputs) == 1 and not (traits and traits.is_sum):
            self.is_exact &= traits is not None and traits.is_path  # a mask around one model: its changes are thinned
            return [(inputs[0], 1.0)]
        if traits is None or traits.refusal or not (traits.weights or traits.base == "none"):
            self.blind, self.is_exact = True, False
            return [(item, 1.0 / len(inputs)) for item in inputs]
        self.is_exact &= traits.linear
        if traits.share and len(inputs) == 2:
            share = value(traits.share, None, 0.5)
            return [(inputs[0], 1.0 - share), (inputs[1], share)]
        weights = [value("weight", item, 1.0) if traits.weights else 1.0 for item in inputs]
        total = sum(weights)
        if not traits.is_sum:
            scale = 1.0 / total if total and value("normalize", None, 1.0) else 1.0
            return [(item, weight * scale) for item, weight in zip(inputs, weights, strict=True)]
        scale = value("lambda", None, 1.0)
        if total and value("normalize", None, float(traits.normalizes)):
            scale /= total
        base = ModelReference(BASE, digest=BASE) if recipe.base is None else recipe.base
        rest = 1.0 - scale * total
        own = [(item, weight * scale) for item, weight in zip(inputs, weights, strict=True)]
        return own if abs(rest) < 1e-6 else [*own, (Input(base), rest)]


def _length(recipe: Recipe, num_layers: int) -> int:
    return sum(_count(part, num_layers) for part in recipe.slices)


def _count(part: Slice, num_layers: int) -> int:
    item = part.inputs[0]
    if item.layer_range is not None:
        return item.layer_range[1] - item.layer_range[0]
    return _length(item.model, num_layers) if isinstance(item.model, Recipe) else num_layers


def _slice(recipe: Recipe, place: _Place, num_layers: int) -> tuple[Slice, int, int]:
    """The slice that makes a place, the place's number in it, and how many layers the slice has."""
    if place[0] != "layer":
        part = recipe.slices[0] if place[0] == "embeddings" else recipe.slices[-1]
        return part, 0, _count(part, num_layers)
    left = place[1]
    for part in recipe.slices:
        length = _count(part, num_layers)
        if left < length:
            return part, left, length
        left -= length
    return recipe.slices[-1], 0, 1  # beyond the layers: of a base that has more


def _inside(item: Input, place: _Place, offset: int) -> _Place:
    """A place of a slice's output in one of its inputs."""
    if place[0] != "layer":
        return place
    return "layer", offset + (item.layer_range[0] if item.layer_range else 0)


def _origin(recipe: Recipe, place: _Place, named: Mapping[str, str]) -> tuple[str, int] | None:
    """Of a path, from where a layer is: the ingredient's name and its layer there."""
    traits = find_traits(recipe.method)
    if place[0] != "layer" or traits is None or not traits.is_path or len(recipe.slices) < 2:
        return None
    part, offset, _ = _slice(recipe, place, 1)
    item = part.inputs[0]
    name = named[item.model.key] if isinstance(item.model, ModelReference) else "a merge"
    return name, _inside(item, place, offset)[1]


def _run(origin: tuple[str, int] | None, layer: int) -> Any:
    """The same for layers that follow one another in their ingredient, too."""
    return None if origin is None else (origin[0], origin[1] - layer)


def _joined(first: tuple[str, int] | None, last: tuple[str, int] | None) -> str:
    if first is None or last is None:
        return ""
    return f"{first[0]} {first[1]}" if first == last else f"{first[0]} {first[1]}–{last[1]}"


def mean_shares(table: Table) -> Sequence[tuple[str, float]]:
    """Returns each source with its mean over the layers, the greatest first; empty where none can be told."""
    rows = [row for row in table.rows if row.name.startswith("layer")]
    means = []
    for place, source in enumerate(table.sources):
        values = [share for row in rows for share in [row.shares[place]] * _layers_in(row) if share is not None]
        if not values:
            return []
        means.append((source, sum(values) / len(values)))
    return sorted(means, key=lambda one: -one[1])


def _layers_in(row: Row) -> int:
    low, dash, high = row.name.partition(" ")[2].partition("–")
    return int(high) - int(low) + 1 if dash else 1
