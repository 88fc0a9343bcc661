"""One model's anatomy: its measures, and where each role of each layer is stored."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from evomerge_common.errors import ModelError
from evomerge_merging.cross_domain.roles import (
    FAMILIES,
    NORMS_FROM_ZERO,
    POSITIONS_FROM_TWO,
    Family,
    outside_role,
    split_suffix,
)
from evomerge_merging.engine import architecture
from evomerge_merging.engine.architecture import LayerStack, text_config
from evomerge_merging.engine.source import Source

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    from evomerge_merging.torch_later import torch


@dataclass(frozen=True)
class Part:
    """A role in one place: `layer` is None outside the layers, `suffix` is weight or bias."""

    role: str
    layer: int | None
    suffix: str


@dataclass(frozen=True)
class Anatomy:
    """One model's measures, and where each role of each layer is stored.

    Attributes:
        mlp: neurons of a layer.
        head_size: numbers in a head.
        learned_positions: whether positions have embeddings; else the model is taken to rotate queries and keys.
        first_position: rows of the position embedding before that of the first position.
        norms_from: what norm weights are counted from.
        parts: tensor name → its parts, in the order in which they are stored.
        where: part → tensor name.
        unknown: tensors without a role (buffers left out).

    """

    source: Source
    family: Family
    stack: LayerStack
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    mlp: int
    learned_positions: bool
    first_position: int
    norms_from: float
    parts: Mapping[str, tuple[Part, ...]]
    where: Mapping[Part, str] = field(repr=False)
    unknown: tuple[str, ...] = ()

    @property
    def depth(self) -> int:
        """Counts the layers."""
        return self.stack.depth

    @property
    def name(self) -> str:
        """Returns the last part of the model's name, as people call it."""
        return self.source.label.rstrip("/").rpartition("/")[2] or self.source.label

    @property
    def rows(self) -> int:
        """Counts the rows of the token embedding."""
        return int(self.source.store.tensors[self.where[Part("token embedding", None, "weight")]].shape[0])

    @property
    def build(self) -> str:
        """Says the build in words, such as "bert, 12 layers × 768, 12 heads"."""
        return (
            f"{self.source.model_type}, {self.depth} layer{'s' if self.depth != 1 else ''} × {self.hidden}, "
            f"{self.heads} head{'s' if self.heads != 1 else ''}"
        )

    def read(self, part: Part) -> Tensor:
        """Reads a part in canonical form: [out, in] or [out], float32."""
        name = self.where[part]
        info = self.source.store.tensors[name]
        return self.split(name, self.source.store.block(name, 0, math.prod(info.shape)).reshape(info.shape))[part]

    def split(self, name: str, stored: Tensor) -> dict[Part, Tensor]:
        """Splits a stored tensor into its canonical parts."""
        values = stored.to(torch.float32)
        parts = self.parts[name]
        if parts[0].layer is not None and self.family.transposed and values.dim() == 2:
            values = values.T
        if "norm" in parts[0].role and parts[0].suffix == "weight":
            values = values + self.norms_from if self.norms_from else values
        if len(parts) == 1:
            return {parts[0]: values}
        if self.family.by_head and parts[0].role == "query":
            split = values.reshape(self.heads, 3, self.head_size, *values.shape[1:]).unbind(1)
            return {part: piece.reshape(-1, *values.shape[1:]) for part, piece in zip(parts, split, strict=True)}
        sizes = [self.rows_of(part.role) for part in parts]
        return dict(zip(parts, values.split(sizes), strict=True))

    def joined(self, name: str, found: Mapping[Part, Tensor]) -> Tensor:
        """Joins canonical parts to the tensor that is stored under `name`; float32, the stored shape."""
        parts = self.parts[name]
        values = [found[part] for part in parts]
        if len(parts) == 1:
            whole = values[0]
        elif self.family.by_head and parts[0].role == "query":
            shaped = [value.reshape(self.heads, self.head_size, *value.shape[1:]) for value in values]
            whole = torch.stack(shaped, 1).reshape(-1, *values[0].shape[1:])
        else:
            whole = torch.cat(values)
        if "norm" in parts[0].role and parts[0].suffix == "weight" and self.norms_from:
            whole = whole - self.norms_from
        if parts[0].layer is not None and self.family.transposed and whole.dim() == 2:
            whole = whole.T
        return whole.contiguous()

    def rows_of(self, role: str) -> int:
        """Counts the rows of a layer's role in canonical form."""
        if role in {"key", "value"}:
            return self.kv_heads * self.head_size
        return {"query": self.heads * self.head_size, "up": self.mlp, "gate": self.mlp}.get(role, self.hidden)


def anatomy_of(source: Source) -> Anatomy:
    """Reads a model's anatomy from its tensors' names and shapes and its config.

    Raises:
        ModelError: it is of no family that is known, or its sizes do not agree with each other.

    """
    tensors = source.store.tensors
    stack = architecture.layer_stack(tensors, source.config)
    if stack is None:
        raise ModelError(f"{source.label} has no layers under names that can be told apart")
    inside = {split[1] for name in tensors if (split := stack.split(name)) and not architecture.is_buffer(name)}
    family = _family(source, {split_suffix(rest)[0] for rest in inside})
    parts: dict[str, tuple[Part, ...]] = {}
    unknown = []
    for name in tensors:
        if architecture.is_buffer(name):
            continue
        place = stack.split(name)
        module, suffix = split_suffix(place[1] if place else name)
        role = family.inside.get(module, "") if place else outside_role(family, module)
        if role and suffix:
            layer = place[0] if place else None
            parts[name] = tuple(Part(one, layer, suffix) for one in role.split("+"))
        else:
            unknown.append(name)
    where: dict[Part, str] = {}
    for name, found in parts.items():
        for part in found:
            if part in where:  # BERT's cls.predictions.bias and cls.predictions.decoder.bias are one
                unknown.append(name)
            where.setdefault(part, name)
    return _measured(source, family, stack, {n: p for n, p in parts.items() if n not in unknown}, where, unknown)


def _family(source: Source, modules: set[str]) -> Family:
    def known(family: Family) -> int:
        return len(modules & family.inside.keys())

    name = max(FAMILIES, key=lambda key: (known(FAMILIES[key]), key == source.model_type))
    family = FAMILIES[name]
    roles = {role for module in modules for role in family.inside.get(module, "").split("+")}
    lacking = {"query", "key", "value", "attention output", "up", "down"} - roles
    if lacking:
        raise ModelError(
            f"{source.label} (model_type {source.model_type!r}) is of no architecture family that is known: no tensor "
            f"of its layers could be told to be the {min(lacking)}; known are {', '.join(sorted(FAMILIES))} and kin"
        )
    return family


def _measured(
    source: Source,
    family: Family,
    stack: LayerStack,
    parts: Mapping[str, tuple[Part, ...]],
    where: Mapping[Part, str],
    unknown: list[str],
) -> Anatomy:
    config = text_config(source.config)
    embedding = where.get(Part("token embedding", None, "weight"))
    heads = _first(config, "num_attention_heads", "n_head", "n_heads")
    if embedding is None or not heads:
        raise ModelError(f"{source.label} has no {'number of heads' if embedding else 'token embedding'} to be found")

    for layer in range(stack.depth):
        for role in ("query", "key", "value", "attention output", "up", "down"):
            if Part(role, layer, "weight") not in where:
                raise ModelError(f"layer {layer} of {source.label} has no tensor for the {role}")

    def shape(role: str) -> tuple[int, ...]:
        stored = source.store.tensors[where[Part(role, 0, "weight")]].shape
        return tuple(reversed(stored)) if family.transposed else tuple(stored)

    hidden = int(source.store.tensors[embedding].shape[-1])
    fused = len(parts[where[Part("query", 0, "weight")]]) > 1
    head_size = _first(config, "head_dim") or (hidden if fused else shape("query")[0]) // heads
    key_rows = (shape("query")[0] - heads * head_size) // 2 if fused else shape("key")[0]
    mlp = shape("down")[1]
    if shape("down")[0] != hidden or shape("attention output") != (hidden, heads * head_size) or key_rows % head_size:
        raise ModelError(
            f"{source.label}: embeddings of {hidden}, heads of {head_size} and layers of {shape('down')[0]} do not fit "
            "each other as in any architecture that is known"
        )
    rows = source.store.tensors[embedding].shape[0]
    for part in (Part("head", None, "weight"), Part("head", None, "bias")):
        info = source.store.tensors.get(where.get(part, ""))
        if info is not None and info.shape[0] != rows:
            raise ModelError(
                f"{info.name} of {source.label} has the shape {list(info.shape)}, but the embedding has {rows} rows"
            )
    positions = Part("position embedding", None, "weight") in where
    return Anatomy(
        source=source,
        family=family,
        stack=stack,
        hidden=hidden,
        heads=heads,
        kv_heads=key_rows // head_size,
        head_size=head_size,
        mlp=mlp,
        learned_positions=positions,
        first_position=2 if positions and source.model_type in POSITIONS_FROM_TWO else 0,
        norms_from=1.0 if source.model_type in NORMS_FROM_ZERO else 0.0,
        parts=parts,
        where={part: name for part, name in where.items() if name in parts},
        unknown=tuple(unknown),
    )


def _first(config: Mapping[str, object], *keys: str) -> int:
    return next((value for key in keys if type(value := config.get(key)) is int), 0)
