"""The evaluation of one output tensor's expression, piece by piece.

It first folds the statistics of all methods, inside out, then gives any piece of the result on demand: nothing but
pieces is held in memory, except for methods that ask for whole tensors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from evomerge_common.errors import NonFiniteWeights
from evomerge_merging.engine.kernels import NotFinite, Reader, readable
from evomerge_merging.engine.nodes import Apply, Load, Node, children, loads
from evomerge_merging.engine.views import KernelView, TorchView
from evomerge_merging.io.dtypes import torch_dtype
from evomerge_merging.io.model_folder import TensorStore, raw_elements
from evomerge_merging.methods.forms import WeightedSum
from evomerge_merging.methods.registry import keywords
from evomerge_merging.methods.view import Block
from evomerge_merging.numerics.folds import CELL
from evomerge_models.dtypes import BF16, F16, F32, F64, ElementType

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor
else:
    from evomerge_merging.torch_later import torch

_WRITTEN = (BF16, F16, F32)
"""Types that the native kernels write."""


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
        """Gives ranges of elements that cover the tensor."""
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
                return reader.piece(WeightedSum([1.0]), start, stop, dtype)
            return reader.piece(node.method.form(self._block(node, start, stop), node.parameters), start, stop, dtype)
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
        if not node.method.gives_form or not plain or not readable([*inputs, *base]):
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
            tensors, base = self._read(node, 0, self.size)
            shaped = [tensor.reshape(node.shape) for tensor in tensors]
            block = self._block(node, 0, self.size)
            result = node.method(shaped, None if base is None else base.reshape(node.shape), block, node.parameters)
            self._whole[id(node)] = result.reshape(-1)

    def _fold(self, node: Apply) -> Any:
        """Finds out what the method wants to know of the whole tensor, if anything."""
        if node.method.statistics is None:
            return None
        reader = self._reader(node)
        view = TorchView(node.shape, self.pieces, partial(self._read, node), partial(self._block, node))
        if reader is not None:
            try:
                return node.method.statistics(KernelView(view, reader), **keywords(node.parameters))
            except NotFinite:  # torch tells which source it is
                pass
        return node.method.statistics(view, **keywords(node.parameters))

    def _read(self, node: Apply, start: int, stop: int) -> tuple[list[Tensor], Tensor | None]:
        done: dict[int, Tensor] = {}
        base = None if node.base is None else self._evaluate(node.base, start, stop, done)
        return [self._evaluate(child, start, stop, done) for child in node.inputs], base

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
        elif node.method.cells and (start % CELL or (stop % CELL and stop < self.size)):
            first, last = start // CELL * CELL, min(self.size, -(-stop // CELL) * CELL)
            result = self._evaluate(node, first, last, {})[start - first : stop - first]
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
