"""Models that need not exist as files, and the slices of a recipe over them, resolved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evomerge_common.domain.parameters import value_at
from evomerge_common.domain.recipe import Input, Slice
from evomerge_common.errors import RecipeError
from evomerge_merging.engine import architecture
from evomerge_merging.engine.architecture import LayerStack
from evomerge_merging.engine.nodes import Node
from evomerge_merging.engine.source import Source
from evomerge_merging.methods.registry import Method


@dataclass(frozen=True)
class Virtual:
    """A model that need not exist as files.

    Attributes:
        label: what people are told that it is.
        identity: what tells it from other models: a source's key, a recipe's digest.
        config: its config.json.
        tensors: name → what it is made of.
        stack: where its layers lie, None where they cannot be told apart.
        tied: whether its head is its input embedding.
        donor: the source that its config and tokenizer come from.
        headless: whether its class has no language model's head.

    """

    label: str
    identity: str
    config: Mapping[str, Any]
    tensors: Mapping[str, Node]
    stack: LayerStack | None
    tied: bool
    donor: Source
    headless: bool = False

    def head(self) -> Node | None:
        """Finds what a tied model uses as its head: the input embedding."""
        name = architecture.input_embedding(self.tensors)
        return self.tensors[name] if self.tied and not self.headless and name else None


@dataclass(frozen=True)
class Part:
    """One input in a slice, from layer `start` on; where it is a base that the slice does not list, `item` is bare."""

    item: Input
    model: Virtual
    start: int = 0

    def name(self, rest: str, layer: int | None) -> str:
        """Names the input's tensor; `layer` counts from the slice's first, None: `rest` is the whole name."""
        if layer is None:
            return rest
        assert self.model.stack is not None
        return self.model.stack.name(self.start + layer, rest)

    def node(self, rest: str, layer: int | None) -> Node | None:
        """Finds what that tensor is made of; None where the input has no such tensor."""
        found = self.model.tensors.get(self.name(rest, layer))
        if found is None and layer is None and architecture.is_head(rest):
            return self.model.head()
        return found


@dataclass(frozen=True)
class ResolvedSlice:
    """A slice, resolved.

    Attributes:
        part: the slice as the recipe has it.
        inputs: without the base, where the method has one.
        base: the model that the others are changes of, None where there is none.
        reference: the input that gives names and types.
        layers: how many layers the slice has.
        average: whether the inputs' average stands in for the base.

    """

    part: Slice
    inputs: tuple[Part, ...]
    base: Part | None
    reference: Part
    layers: int
    average: bool = False

    @property
    def everyone(self) -> tuple[Part, ...]:
        """The base, where there is one, and the inputs."""
        return (*([self.base] if self.base else []), *self.inputs)

    def rests(self, layer: int) -> list[str]:
        """Names a layer's tensors, without what says that they are this layer's."""
        stack = self.reference.model.stack
        assert stack is not None
        wanted = self.reference.start + layer
        return [
            split[1] for name in self.reference.model.tensors if (split := stack.split(name)) and split[0] == wanted
        ]


class Hops:
    """The scale of the hidden state along a path through the layers (method dfs)."""

    def __init__(self, how: Method) -> None:
        self._active = how.traits.scales == "hop"
        self._product = 1.0
        self._scale = 1.0

    def enter(self, row: ResolvedSlice, index: int) -> None:
        """Goes on to the next slice."""
        if not self._active:
            return
        settings = (row.inputs[0].item.parameters.get("scale"), row.part.parameters.get("scale"))
        given = next((value for setting in settings if (value := value_at(setting, "", 0.0)) is not None), 1.0)
        if not given > 0.0:
            raise RecipeError(f"the scale of a hop must be above zero, not {given:g}", ("slices", index))
        self._scale = float(given)
        self._product *= self._scale

    def factors(self, row: ResolvedSlice, layer: int, index: int) -> Mapping[str, float]:
        """Finds the factors of the layer's tensors by the rest of their names."""
        if not self._active or (self._product == 1.0 and self._scale == 1.0):
            return {}
        rests = row.rests(layer)
        scale = self._scale if layer == 0 else 1.0
        found = architecture.hop_factors(rests, scale, self._product, post_norm=architecture.is_post_norm(rests))
        if found is None:
            raise RecipeError(
                f"this version cannot scale the hidden state of {row.reference.model.donor.model_type!r} models: leave "
                "`scale` out",
                ("slices", index),
            )
        return found
