"""One output tensor as an expression over source tensors, and its evaluation piece by piece.

A node is a source's tensor (`Load`) or a method over nodes (`Apply`); nested recipes are just deeper nodes. Evaluation
first folds the statistics of all methods, inside out, then gives any piece of the result on demand: nothing but
pieces is held in memory, except for methods that ask for whole tensors.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evomerge_common.errors import NonFiniteWeights
from evomerge_merging.io.dtypes import torch_dtype
from evomerge_merging.io.model_folder import TensorStore, raw_elements
from evomerge_merging.methods.registry import Block, Method, keywords
from evomerge_merging.native.reader import NotFinite, Reader, readable
from evomerge_merging.numerics.folds import CELL
from evomerge_merging.numerics.random_words import MaskKey
from evomerge_models.dtypes import BF16, F16, F32, F64, ElementType

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor
else:
    from evomerge_merging.torch_later import torch

_WRITTEN = (BF16, F16, F32)
"""Types that the native kernels write."""


@dataclass(frozen=True, eq=False)
class Load:
    """A source's tensor. `cast`: the type that its elements are rounded to before anything else (None: as stored)."""

    source: str
    label: str
    name: str
    shape: tuple[int, ...]
    dtype: ElementType
    cast: ElementType | None = None


@dataclass(frozen=True, eq=False)
class Apply:
    """A method over nodes of one shape.

    Attributes:
        parameters: by recipe name; per-model ones as tuples as long as `inputs`.
        masks: key of each input's random words.
        dtype: what the result is written in if the recipe names none.
        names: the tensor's name in each input.

    """

    method: Method
    inputs: tuple[Node, ...]
    base: Node | None
    parameters: Mapping[str, Any]
    masks: tuple[MaskKey, ...]
    shape: tuple[int, ...]
    dtype: ElementType
    names: tuple[str, ...] = ()


Node = Load | Apply


def loads(node: Node) -> Iterator[Load]:
    """Every source tensor of the expression, repeats included."""
    if isinstance(node, Load):
        yield node
        return
    for child in children(node):
        yield from loads(child)


def children(node: Apply) -> list[Node]:
    """Base first where there is one, then the inputs."""
    return ([node.base] if node.base is not None else []) + list(node.inputs)


def whole_bytes(node: Node) -> int:
    """Bytes of the tensors that must be in memory at once because a method asked for them whole."""
    if isinstance(node, Load):
        return 0
    below = sum(whole_bytes(child) for child in children(node))
    return below + (math.prod(node.shape) * 4 * (len(children(node)) + 2) if node.method.whole else 0)


def needs_statistics(node: Node) -> bool:
    """Whether anything must be known of the whole tensor before its first piece."""
    if isinstance(node, Load):
        return False
    return node.method.statistics is not None or node.method.whole or any(needs_statistics(c) for c in children(node))


class Evaluation:
    """One expression over open sources. `prepare` once, then `piece` from any thread."""

    def __init__(self, node: Node, sources: Mapping[str, TensorStore], *, piece_elements: int) -> None:
        self.node = node
        self.size = math.prod(node.shape)
        self._sources = sources
        self._step = max(CELL, piece_elements // CELL * CELL)
        self._statistics: dict[int, Any] = {}
        self._readers: dict[int, Reader | None] = {}
        self._whole: dict[int, Tensor] = {}
        wide = any((load.cast or load.dtype) == F64 for load in loads(node))
        self._wide = F64 if wide else F32

    def prepare(self) -> None:
        """Folds all statistics, those of inner nodes first."""
        self._prepare(self.node)

    def pieces(self) -> Iterator[tuple[int, int]]:
        """Ranges of elements that cover the tensor."""
        for start in range(0, self.size, self._step):
            yield start, min(start + self._step, self.size)

    def piece(self, start: int, stop: int) -> Tensor:
        """Elements [start, stop) of the flattened result, float32 (float64 where a source is).

        Raises:
            NonFiniteWeights: NaN or infinity in a source.

        """
        return self._evaluate(self.node, start, stop, {})

    def kernel_piece(self, start: int, stop: int, dtype: ElementType) -> np.ndarray[Any, Any] | None:
        """The piece's bytes in `dtype` by the native kernels; None where torch must do it, or tell what is wrong."""
        node = self.node
        reader = self._reader(node)
        if reader is None or dtype not in _WRITTEN:
            return None
        try:
            if isinstance(node, Load):
                return reader.weighted_sum(start, stop, [1.0], dtype)
            assert node.method.kernel is not None
            block = self._block(node, start, stop)
            return node.method.kernel(reader, block, dtype, **keywords(node.parameters))
        except NotFinite:
            return None

    def _reader(self, node: Node) -> Reader | None:
        if id(node) not in self._readers:
            self._readers[id(node)] = self._new_reader(node)
        return self._readers[id(node)]

    def _new_reader(self, node: Node) -> Reader | None:
        if isinstance(node, Load):
            return Reader([node], None, self._sources) if readable([node]) else None
        inputs = [child for child in node.inputs if isinstance(child, Load)]
        base = [node.base] if isinstance(node.base, Load) else []
        plain = len(inputs) == len(node.inputs) and len(base) == (node.base is not None)
        if node.method.kernel is None or not plain or not readable([*inputs, *base]):
            return None
        return Reader(inputs, base[0] if base else None, self._sources)

    def release(self) -> None:
        """Lets whole tensors and statistics go; no piece may be asked for after it."""
        self._whole.clear()
        self._statistics.clear()

    def raw(self, node: Load, start: int, stop: int) -> np.ndarray[Any, Any]:
        """The bytes of a source's elements as stored: integers go through unchanged."""
        return raw_elements(self._sources[node.source], node.name, start, stop)[0]

    def needs_torch(self, dtype: ElementType) -> bool:
        """Whether pieces in this type are made by torch rather than by the native kernels."""
        if isinstance(self.node, Load) and not self.node.dtype.is_floating_point:
            return False
        return self._reader(self.node) is None or dtype not in _WRITTEN

    def _prepare(self, node: Node) -> None:
        if isinstance(node, Load) or id(node) in self._statistics:
            return
        for child in children(node):
            self._prepare(child)
        self._statistics[id(node)] = self._fold(node)
        if node.method.whole and self.size:
            tensors, base = _View(self, node, None).read(0, self.size)
            shaped = [tensor.reshape(node.shape) for tensor in tensors]
            block = self._block(node, 0, self.size)
            result = node.method(shaped, None if base is None else base.reshape(node.shape), block, node.parameters)
            self._whole[id(node)] = result.reshape(-1)

    def _fold(self, node: Apply) -> Any:
        """What the method wants to know of the whole tensor, if anything."""
        if node.method.statistics is None:
            return None
        try:
            return node.method.statistics(_View(self, node, self._reader(node)), **keywords(node.parameters))
        except NotFinite:
            return node.method.statistics(_View(self, node, None), **keywords(node.parameters))

    def _block(self, node: Apply, start: int, stop: int) -> Block:
        return Block(start, stop, self.size, node.masks, self._statistics.get(id(node)), node.names)

    def _evaluate(self, node: Node, start: int, stop: int, done: dict[int, Tensor]) -> Tensor:
        """A piece of a node; `done` keeps what several parents share. Results must not be written into."""
        key = id(node)
        if key in done:
            return done[key]
        if isinstance(node, Load):
            result = self._load(node, start, stop)
        elif node.method.whole:
            result = self._whole[key][start:stop]
        else:
            base = None if node.base is None else self._evaluate(node.base, start, stop, done)
            tensors = [self._evaluate(child, start, stop, done) for child in node.inputs]
            result = node.method(tensors, base, self._block(node, start, stop), node.parameters)
        done[key] = result
        return result

    def _load(self, node: Load, start: int, stop: int) -> Tensor:
        values = self._sources[node.source].block(node.name, start, stop)
        if node.cast is not None:
            values = values.to(torch_dtype(node.cast))
        values = values.to(torch_dtype(self._wide))
        # A sum is finite only if all its terms are; the reverse is checked where it is not.
        if not math.isfinite(values.sum().item()) and not bool(torch.isfinite(values).all()):
            place = start + int(torch.isfinite(values).logical_not().nonzero()[0, 0])
            cast = f" (or a value too large for {node.cast})" if node.cast else ""
            raise NonFiniteWeights(
                f"{node.label}: tensor {node.name!r} has NaN or infinity{cast}, first at element {place}; "
                "leave this model out, or get a sound copy of it"
            )
        return values


@dataclass(frozen=True)
class _View:
    """What a node's statistics are folded over."""

    evaluation: Evaluation
    node: Apply
    native: Reader | None
    size: int = dataclasses.field(init=False)
    shape: tuple[int, ...] = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", self.evaluation.size)
        object.__setattr__(self, "shape", self.node.shape)

    def pieces(self) -> Iterator[tuple[int, int]]:
        return self.evaluation.pieces()

    def read(self, start: int, stop: int) -> tuple[list[Tensor], Tensor | None]:
        done: dict[int, Tensor] = {}
        base = None if self.node.base is None else self.evaluation._evaluate(self.node.base, start, stop, done)
        return [self.evaluation._evaluate(child, start, stop, done) for child in self.node.inputs], base

    def block(self, start: int, stop: int) -> Block:
        return self.evaluation._block(self.node, start, stop)
