"""A source seen in another model's build: its tensors under the target's names, in the target's shapes.

Everything is made when it is asked for. Rows of embeddings and heads come piece by piece; of the layers' tensors a few
are kept, since pieces of one tensor are asked for one after the other.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from cachetools import LRUCache

from evomerge_common.domain.cross_domain import CrossDomain
from evomerge_merging.cross_domain.alignment import LayerMaps, hidden_map, layer_maps, leading_maps, one_thread
from evomerge_merging.cross_domain.anatomy import Anatomy, Part
from evomerge_merging.cross_domain.axes import AxisMap, Pick, Same, adapted, leading
from evomerge_merging.cross_domain.roles import AXES
from evomerge_merging.cross_domain.tokens import TokenRows
from evomerge_models.headers import TensorInfo

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    from evomerge_merging.torch_later import torch

_CACHE_NUMBERS = 16 << 20  # 64 MB
_ALIGNMENTS = 4
_VOCABULARY = frozenset({"token embedding", "head"})

Known = dict[object, AxisMap | LayerMaps]
_known: LRUCache[object, Known] = LRUCache(_ALIGNMENTS)
_known_lock = threading.Lock()


def layer_at(layer: int, depth: int, other_depth: int) -> int:
    """Returns the layer of a stack of `other_depth` at the same relative position: of 12 in 6: 0 2 4 7 9 11."""
    if depth <= 1:
        return other_depth - 1
    return int(layer * (other_depth - 1) / (depth - 1) + 0.5)


class AdaptedStore:
    """A source seen in another model's build; what it holds is made when it is asked for.

    Args:
        source: what is adapted.
        target: whose build it gets.
        how: strategy, width and weight.
        rows: for each row of the target's vocabulary, the source's rows.
        own_vocabulary: embedding and head keep the source's rows, for whoever unites vocabularies afterwards.
        identity: what alignments are remembered by: two stores with the same one have the same weights.

    Attributes:
        target_tensors: names of tensors that are the target's own.

    """

    def __init__(
        self,
        source: Anatomy,
        target: Anatomy,
        how: CrossDomain,
        rows: TokenRows,
        *,
        own_vocabulary: bool = False,
        identity: object,
    ) -> None:
        self._from, self._to, self._how, self._rows = source, target, how, rows
        self._own_vocabulary = own_vocabulary
        self._store, self._own = source.source.store, target.source.store
        self._locks = {i: threading.Lock() for i in (-1, *range(target.depth))}
        self._lock = threading.Lock()
        with _known_lock:
            self._known = _known.setdefault((identity, how.width), {})
        self.target_tensors = frozenset(name for name in self._own.tensors if not self._has(name))
        self.tensors: Mapping[str, TensorInfo] = {
            name: self._info(name, info) for name, info in self._own.tensors.items()
        }
        largest = max((info.numel for name, info in self.tensors.items() if not self._is_rows(name)), default=0)
        self._made: LRUCache[str, Tensor] = LRUCache(max(_CACHE_NUMBERS, largest), getsizeof=lambda made: made.numel())

    # ---- what it has ----

    def source_part(self, part: Part) -> Part:
        """Finds the source's part that goes where the target has `part`; it may not exist."""
        layer = None if part.layer is None else layer_at(part.layer, self._to.depth, self._from.depth)
        return Part(part.role, layer, part.suffix)

    def source_name(self, part: Part) -> str | None:
        """Names the source's tensor for a part of the target; for a head that is tied there, the embedding."""
        found = self._from.where.get(self.source_part(part))
        if found is None and part == Part("head", None, "weight"):
            return self._from.where[Part("token embedding", None, "weight")]
        return found

    def fits(self, part: Part) -> bool:
        """Tells whether the source's part has the target's shape as it is."""
        if part.role in {"query", "key", "value", "attention output"} and self._from.head_size != self._to.head_size:
            return False
        return self._shape(self._from, self.source_part(part)) == self._shape(self._to, part)

    def _has(self, name: str) -> bool:
        """Whether any part of a tensor comes from the source, as the strategy has it."""
        parts = self._to.parts.get(name, ())
        if not parts or not any(self.source_name(part) for part in parts):
            return False
        if self._how.strategy == "embedding_only":
            return parts[0].role in _VOCABULARY
        if self._how.strategy == "adapter":
            if parts[0].role in _VOCABULARY:
                return parts[0].suffix == "bias" or self._from.hidden == self._to.hidden
            return any(self.fits(part) for part in parts)
        return True

    @staticmethod
    def _shape(who: Anatomy, part: Part) -> tuple[int, ...] | None:
        name = who.where.get(part)
        if name is None:
            return None
        if len(who.parts[name]) == 1:
            return tuple(who.source.store.tensors[name].shape)[:: -1 if _turned(who, part) else 1]
        return (who.rows_of(part.role), *([who.hidden] if part.suffix == "weight" else []))

    def _info(self, name: str, info: TensorInfo) -> TensorInfo:
        if self._own_vocabulary and self._is_rows(name):
            shape = (self._from.rows, *info.shape[1:])
            return TensorInfo(name, shape, info.dtype, 0, math.prod(shape) * info.dtype.itemsize)
        return info

    def _is_rows(self, name: str) -> bool:
        parts = self._to.parts.get(name, ())
        return bool(parts) and parts[0].role in _VOCABULARY

    # ---- reading, as any store ----

    def tensor(self, name: str) -> Tensor:
        """Reads the whole tensor in the target's type."""
        info = self.tensors[name]
        return self.block(name, 0, math.prod(info.shape)).to(info.dtype).reshape(info.shape)

    def block(self, name: str, start: int, stop: int) -> Tensor:
        """Reads elements [start, stop) of the flattened tensor, float32 where they were computed."""
        if name in self.target_tensors and not (self._own_vocabulary and self._is_rows(name)):
            return self._own.block(name, start, stop)
        if self._is_rows(name):
            width = math.prod(self.tensors[name].shape[1:])
            first, last = start // width, -(-stop // width)
            return self._vocabulary(name, first, last).reshape(-1)[start - first * width : stop - first * width]
        return self._whole(name).reshape(-1)[start:stop]

    def rows(self, name: str, rows: Tensor) -> Tensor:
        """Reads a copy of some rows, in the order asked for."""
        return self.tensor(name)[rows]

    def close(self) -> None:
        """Lets go of what was made; the source and the target are closed by whoever opened them."""
        self._made.clear()
        self._store.close()

    def _whole(self, name: str) -> Tensor:
        parts = self._to.parts[name]
        with self._locks[-1 if parts[0].layer is None else parts[0].layer]:
            with self._lock:
                if name in self._made:
                    return self._made[name]
            with one_thread():
                made = self._weighted(self._make(name), name)
            with self._lock:
                self._made[name] = made
            return made

    def _weighted(self, made: Tensor, name: str) -> Tensor:
        if self._how.weight == 1.0:
            return made
        info = self._own.tensors[name]
        own = self._own.block(name, 0, math.prod(info.shape)).reshape(info.shape).float()
        return torch.lerp(own, made.float(), self._how.weight)

    def _make(self, name: str) -> Tensor:
        info = self._own.tensors[name]
        stored = self._own.block(name, 0, math.prod(info.shape)).reshape(info.shape)
        own = self._to.split(name, stored)
        found = {part: self._part(part, values) for part, values in own.items()}
        if all(found[part] is own[part] for part in own):
            return stored
        return self._to.joined(name, found)

    def _part(self, part: Part, own: Tensor) -> Tensor:
        """One part in canonical form; `own` itself where the source has none."""
        there = self.source_part(part)
        if there not in self._from.where or (self._how.strategy == "adapter" and not self.fits(part)):
            return own
        values = self._from.read(there)
        axes = AXES[part.role][: values.dim()]
        if part.role == "position embedding":
            return self._positions(values, own)
        if self._how.strategy == "adapter":
            return values
        if "norm" in part.role and part.suffix == "weight" and axes == ("hidden",):
            return self._hidden().take_gains(values, own)
        maps = tuple(self._map(axis, part.layer, values.shape[i], own.shape[i]) for i, axis in enumerate(axes))
        if part.role in {"key", "value"} and not (
            isinstance(maps[0], Same) and self._from.kv_heads == self._to.kv_heads
        ):
            values, own = _each_head(values, self._from), _each_head(own, self._to)
            return _grouped(adapted(values, own, maps, fill=self._fill), self._to)
        return adapted(values, own, maps, fill=self._fill)

    def _positions(self, values: Tensor, own: Tensor) -> Tensor:
        """Position by position; what a source knows no embedding for is the target's own."""
        shift = self._from.first_position - self._to.first_position
        index = torch.arange(len(own)) + shift
        lost = (index < min(self._from.first_position, len(values))) | (index >= len(values))
        index[lost] = -1
        here = Same() if shift == 0 and len(values) == len(own) else Pick(index)
        if self._how.strategy == "adapter" and self._from.hidden != self._to.hidden:
            return own
        hidden = Same() if self._how.strategy == "adapter" else self._hidden()
        result = adapted(values, own, (here, hidden), fill=self._fill)
        if isinstance(here, Pick):
            result[lost] = own[lost]
        return result

    # ---- vocabulary ----

    def _vocabulary(self, name: str, first: int, last: int) -> Tensor:
        """Rows of an embedding, a head or a head's bias."""
        part = self._to.parts[name][0]
        source = self.source_name(part)
        if self._own_vocabulary:
            if source is None:  # a head's bias that the source does not have
                return torch.zeros(last - first)
            with one_thread():
                taken = self._store.rows(source, torch.arange(first, last))
                return self._in_width(taken.float(), None) if part.suffix == "weight" else taken
        own = self._own.rows(name, torch.arange(first, last))
        start = self._rows.start[first : last + 1]
        index = torch.from_numpy(self._rows.parts[start[0] : start[-1]])
        count = torch.from_numpy(np.diff(start))
        if source is None or not len(index):
            return own
        with one_thread():
            picked = self._store.rows(source, index)
            if bool((count == 1).all()) and isinstance(self._hidden_if(part), Same) and self._how.weight == 1.0:
                return picked
            owner = torch.repeat_interleave(torch.arange(last - first), count)
            mean = torch.zeros(last - first, *picked.shape[1:]).index_add_(0, owner, picked.float())
            mean /= count.clamp(min=1).reshape(-1, *[1] * (mean.dim() - 1))
            made = self._in_width(mean, own.float()) if part.suffix == "weight" else mean
            made = torch.lerp(own.float(), made, self._how.weight) if self._how.weight != 1.0 else made
            lacking = count == 0
            made[lacking] = own[lacking].float()
            return made

    def _hidden_if(self, part: Part) -> AxisMap:
        return self._hidden() if part.suffix == "weight" and self._how.strategy != "adapter" else Same()

    def _in_width(self, rows: Tensor, own: Tensor | None) -> Tensor:
        """Rows on the target's hidden axis."""
        if self._how.strategy == "adapter":
            return rows
        fallback = own if own is not None else torch.zeros(len(rows), self._to.hidden)
        return adapted(rows, fallback, (Same(), self._hidden()), fill=self._fill and own is not None)

    # ---- maps ----

    @property
    def _fill(self) -> bool:
        return self._how.width != "pad"

    def _hidden(self) -> AxisMap:
        """The map of the residual stream."""
        with _known_lock:
            found = self._known.get("hidden")
        if found is None:
            with _hidden_lock, one_thread():
                if "hidden" not in self._known:
                    self._known["hidden"] = self._find_hidden()
                found = self._known["hidden"]
        assert not isinstance(found, LayerMaps)
        return found

    def _find_hidden(self) -> AxisMap:
        if self._how.width != "align":
            return leading(self._from.hidden, self._to.hidden)
        return hidden_map(self._from, self._to, self._rows)

    def _layer(self, layer: int) -> LayerMaps:
        """The maps of a layer; asked for under its lock."""
        found = self._known.get(layer)
        if found is None:
            hidden = self._hidden()
            there = layer_at(layer, self._to.depth, self._from.depth)
            found = (
                layer_maps(self._from, there, self._to, layer, hidden)
                if self._how.width == "align"
                else leading_maps(self._from, self._to)
            )
            self._known[layer] = found
        assert isinstance(found, LayerMaps)
        return found

    def _map(self, axis: str, layer: int | None, there: int, here: int) -> AxisMap:
        if axis == "hidden":
            return self._hidden()
        if layer is not None and axis in {"query", "key", "value", "context", "unit"}:
            maps = self._layer(layer)
            return {
                "query": maps.queries, "key": maps.keys, "value": maps.values, "context": maps.context,
                "unit": maps.units,
            }[axis]  # fmt: skip
        return leading(there, here)


_hidden_lock = threading.Lock()


def _turned(who: Anatomy, part: Part) -> bool:
    return who.family.transposed and part.layer is not None and part.suffix == "weight"


def _each_head(rows: Tensor, model: Anatomy) -> Tensor:
    """Keys or values of each query head, where several share them."""
    shaped = rows.reshape(model.kv_heads, model.head_size, *rows.shape[1:])
    return shaped.repeat_interleave(model.heads // model.kv_heads, 0).reshape(-1, *rows.shape[1:])


def _grouped(rows: Tensor, model: Anatomy) -> Tensor:
    """The mean over the query heads that share keys and values (Ainslie et al. 2023, GQA)."""
    if model.kv_heads == model.heads:
        return rows
    shaped = rows.reshape(model.kv_heads, -1, model.head_size, *rows.shape[1:])
    return shaped.mean(1).reshape(-1, *rows.shape[1:])
