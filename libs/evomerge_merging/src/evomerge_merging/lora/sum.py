"""Linear merges of adapters over one base as what they are: the base plus one low-rank update.

W + Σ cᵢ (W + BᵢAᵢ) with weights that add up to 1 is W + B·A for the factors side by side. So the base is read once,
whatever the number of adapters, and one thin product is computed; what is left of it is again an adapter
(`extract.py`). Sums are not rounded in between, whatever the recipe's `dtype`.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from evomerge_merging.engine.flatten import terms_of
from evomerge_merging.engine.nodes import Load, Node
from evomerge_merging.engine.source import Source
from evomerge_merging.io.dtypes import torch_dtype
from evomerge_merging.io.model_folder import TensorStore
from evomerge_merging.lora.store import Factors, LoraStore
from evomerge_models.dtypes import F64
from evomerge_models.headers import TensorInfo

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    from evomerge_merging.torch_later import torch

_BLOCK_ELEMENTS = 1 << 18
_ROUNDING = 1e-6

Terms = list[tuple[LoraStore, float]]


class SumStore:
    """Tensors of a base plus sums of low-rank updates. See `TensorStore`; given in float32, unrounded."""

    def __init__(self, base: TensorStore) -> None:
        self._base = base
        self._terms: dict[str, Terms] = {}
        self._factors: dict[str, Factors] = {}
        self._lock = threading.Lock()
        self._last = threading.local()
        self.tensors: Mapping[str, TensorInfo] = {}

    def add(self, name: str, terms: Terms) -> None:
        """One more tensor: the base's plus the updates, each times its factor."""
        self._terms[name] = terms
        self.tensors = {**self.tensors, name: self._base.tensors[name]}

    def close(self) -> None:
        """Nothing of its own is open."""

    def factors(self, name: str) -> Factors:
        """All updates of a tensor as one, in the orientation in which the base stores it."""
        with self._lock:
            if name not in self._factors:
                parts = [(store.factors(name), factor) for store, factor in self._terms[name]]
                left = torch.cat([part.left * factor for part, factor in parts], dim=1).contiguous()
                self._factors[name] = Factors(left, torch.cat([part.right for part, _ in parts]).contiguous())
            return self._factors[name]

    def tensor(self, name: str) -> Tensor:
        """The whole tensor in the base's type."""
        info = self.tensors[name]
        return self.block(name, 0, info.numel).to(torch_dtype(info.dtype)).reshape(info.shape)

    def block(self, name: str, start: int, stop: int) -> Tensor:
        """Elements [start, stop) of the flattened tensor."""
        rows, width = self.tensors[name].shape
        step = max(8, _BLOCK_ELEMENTS // width)
        parts = []
        at = start
        while at < stop:
            first = at // width // step * step
            last = min(first + step, rows)
            end = min(stop, last * width)
            parts.append(self._rows(name, first, last)[at - first * width : end - first * width])
            at = end
        return parts[0] if len(parts) == 1 else torch.cat(parts) if parts else torch.empty(0)

    def rows(self, name: str, rows: Tensor) -> Tensor:
        """A copy of some rows, in the order asked for."""
        width = self.tensors[name].shape[1]
        wanted = [self.block(name, row * width, (row + 1) * width) for row in rows.tolist()]
        return torch.stack(wanted) if wanted else torch.empty(0, width)

    def _rows(self, name: str, first: int, last: int) -> Tensor:
        """Whole rows, flat, in blocks that depend on the tensor alone; the last one of each thread is kept, since the
        next piece usually begins in it.
        """
        known = getattr(self._last, "block", None)
        if known is not None and known[0] == (name, first):
            found: Tensor = known[1]
            return found
        factors, width = self.factors(name), self.tensors[name].shape[1]
        stored = self._base.block(name, first * width, last * width)
        result = torch.addmm(
            stored.to(torch.float32).reshape(-1, width), factors.left[first:last].clone(), factors.right
        )
        flat = result.reshape(-1)
        self._last.block = ((name, first), flat)
        return flat


def folded(nodes: Mapping[str, Node], sources: dict[str, Source]) -> dict[str, Node]:
    """The same tensors, sums of adapters over one base as tensors of a `SumStore`, which joins the sources."""
    roots = {source.root for source in sources.values() if source.root}
    result = dict(nodes)
    for root in roots:
        base = sources[root]
        store, key = SumStore(base.store), f"sum over {root}"
        for name, node in nodes.items():
            terms = _terms(name, node, root, sources)
            if terms:
                store.add(name, terms)
                info = store.tensors[name]
                result[name] = Load(key, f"adapters of {base.label}", name, info.shape, info.dtype)
        if store.tensors:
            sources[key] = replace(base, key=key, label=f"adapters of {base.label}", store=store)
    return result


def _terms(name: str, node: Node, root: str, sources: Mapping[str, Source]) -> Terms:
    """The updates that the tensor is the base's plus; empty when it is something else, or the base's own."""
    if name not in sources[root].store.tensors:
        return []  # a head of its own over a base that ties it
    found: dict[int, tuple[LoraStore, float]] = {}
    total = 0.0
    for leaf, factor in terms_of(node):
        if not isinstance(leaf, Load) or leaf.name != name or leaf.cast not in {None, leaf.dtype} or leaf.dtype == F64:
            return []
        total += factor
        if leaf.source == root:
            continue
        source = sources[leaf.source]
        store = source.store
        if source.root != root or not isinstance(store, LoraStore) or not store.changes[name].is_low_rank:
            return []
        found[id(store)] = (store, factor + (found[id(store)][1] if id(store) in found else 0.0))
    return list(found.values()) if abs(total - 1.0) <= _ROUNDING else []
