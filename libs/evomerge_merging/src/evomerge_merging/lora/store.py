"""A base model seen with a LoRA or DoRA adapter applied, piece by piece: the whole model is never in memory.

Products are computed in float32 and rounded once, with the result; PEFT rounds the product first and the sum after.
Rows are computed in blocks whose place and shape depend on the tensor alone, so the bits are the same however the
tensor is cut into pieces.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from evomerge_common.errors import ShapeMismatch
from evomerge_merging.engine import architecture
from evomerge_merging.io.dtypes import torch_dtype
from evomerge_merging.io.model_folder import TensorStore
from evomerge_merging.io.safetensors_file import SafetensorsFile
from evomerge_models.adapter import Adapter, read_adapter
from evomerge_models.adapter_changes import Change, changes
from evomerge_models.dtypes import F64
from evomerge_models.files import ADAPTER_WEIGHTS
from evomerge_models.headers import TensorInfo

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    from evomerge_merging.torch_later import torch

_BLOCK_ELEMENTS = 1 << 15
_TINY = 1e-30


@dataclass(frozen=True)
class Factors:
    """The update of one tensor as it is stored in the base: `left` (rows, rank) times `right` (rank, columns), float32.

    `left` carries the scale.
    """

    left: Tensor
    right: Tensor


class LoraStore:
    """A base's tensors with an adapter applied. See `TensorStore`.

    Changed tensors are given in float32 (float64 where the base is), unrounded; `tensor` rounds to the base's type.

    Raises:
        ShapeMismatch, ModelError, UnsafeFile: the adapter does not fit the base, or is unsound.

    """

    def __init__(self, base: TensorStore, adapter: Adapter, *, label: str, model_type: str = "") -> None:
        self.base = base
        shapes = {name: info.shape for name, info in base.tensors.items()}
        self.changes = changes(adapter, shapes, label=label, model_type=model_type)
        self._file = SafetensorsFile(adapter.folder / ADAPTER_WEIGHTS)
        self._lock = threading.Lock()
        self._factors: dict[str, Factors] = {}
        self._magnitudes: dict[str, Tensor] = {}
        self._drop_copies()
        self.tensors: Mapping[str, TensorInfo] = {
            **base.tensors,
            **{name: self._info(name, change) for name, change in self.changes.items()},
        }

    def _drop_copies(self) -> None:
        """PEFT keeps copies of embeddings that were only targeted: what equals the base's tensor changes nothing."""
        for name, change in list(self.changes.items()):
            if not change.replaced or change.shape != self.base.tensors[change.start].shape:
                continue
            ours, theirs = self._file.tensor(change.replaced), self.base.tensor(change.start)
            if torch.equal(ours.to(theirs.dtype), theirs):
                kept = replace(change, replaced="")
                if name == change.start and kept == Change(change.shape, change.start):
                    del self.changes[name]
                else:
                    self.changes[name] = kept

    def _info(self, name: str, change: Change) -> TensorInfo:
        dtype = self.base.tensors[change.start].dtype
        return TensorInfo(name, change.shape, dtype, 0, math.prod(change.shape) * dtype.itemsize)

    def add(self, name: str, change: Change) -> None:
        """One more changed tensor."""
        self.changes[name] = change
        self.tensors = {**self.tensors, name: self._info(name, change)}

    def forget(self, name: str) -> None:
        """One changed tensor less, which the base does not have either."""
        del self.changes[name]
        self.tensors = {other: info for other, info in self.tensors.items() if other != name}

    def close(self) -> None:
        """Lets both files go."""
        self.base.close()
        self._file.close()

    def tensor(self, name: str) -> Tensor:
        """The whole tensor in the base's type."""
        change = self.changes.get(name)
        if change is None:
            return self.base.tensor(name)
        info = self.tensors[name]
        return self.block(name, 0, info.numel).to(torch_dtype(info.dtype)).reshape(info.shape)

    def block(self, name: str, start: int, stop: int) -> Tensor:
        """Elements [start, stop) of the flattened tensor."""
        change = self.changes.get(name)
        if change is None or start >= stop:
            return self.base.block(change.start if change else name, start, stop)
        if len(change.shape) != 2:
            return self._vector(change, start, stop)
        width = change.shape[1]
        first, last = start // width, -(-stop // width)
        return self._rows(name, change, first, last).reshape(-1)[start - first * width : stop - first * width]

    def rows(self, name: str, rows: Tensor) -> Tensor:
        """A copy of some rows, in the order asked for."""
        change = self.changes.get(name)
        if change is None:
            return self.base.rows(name, rows)
        if len(change.shape) != 2:
            return self._vector(change, 0, math.prod(change.shape)).reshape(change.shape)[rows]
        step = self._step(change)
        result = torch.empty((len(rows), change.shape[1]), dtype=self._wide(change))
        for number in torch.unique(rows // step).tolist():
            first = number * step
            values = self._rows(name, change, first, min(first + step, change.shape[0]))
            wanted = (rows // step) == number
            result[wanted] = values[rows[wanted] - first]
        return result

    def factors(self, name: str) -> Factors:
        """The low-rank update of a tensor, for whoever wants to hold it; see `Factors`."""
        with self._lock:
            if name not in self._factors:
                update = self.changes[name].low_rank
                assert update is not None
                a, b = (self._file.tensor(key).to(torch.float32) for key in (update.a, update.b))
                left, right = (a.T * update.scale, b.T) if update.transposed else (b * update.scale, a)
                # Memory of torch's own has one alignment, wherever the tensor lay in its file.
                self._factors[name] = Factors(
                    *(one.clone(memory_format=torch.contiguous_format) for one in (left, right))
                )
            return self._factors[name]

    # ---- one tensor ----

    def _wide(self, change: Change) -> torch.dtype:
        return torch.float64 if self.base.tensors[change.start].dtype == F64 else torch.float32

    @staticmethod
    def _step(change: Change) -> int:
        return max(8, _BLOCK_ELEMENTS // max(1, change.shape[1]))

    def _vector(self, change: Change, start: int, stop: int) -> Tensor:
        """Biases and norms, and whatever is no matrix."""
        if change.replaced:
            values = self._file.block(change.replaced, start, stop)
        else:
            values = self.base.block(change.start, start, stop)
        values = values.to(self._wide(change))
        if change.added:
            values = values + self._file.block(change.added, start, stop).to(values.dtype) * change.factor
        return values

    def _rows(self, name: str, change: Change, first: int, last: int) -> Tensor:
        width = change.shape[1]
        if change.replaced:
            values = self._file.block(change.replaced, first * width, last * width)
        else:
            values = self.base.block(change.start, first * width, last * width)
        values = values.to(self._wide(change)).reshape(-1, width)
        if change.low_rank is not None:
            values = self._updated(name, change, values, first, last)
        if change.rows:
            given = self._file.tensor(change.rows)
            for place, row in enumerate(change.row_numbers):
                if first <= row < last:
                    values[row - first] = given[place].to(values.dtype)
        return values

    def _updated(self, name: str, change: Change, values: Tensor, first: int, last: int) -> Tensor:
        assert change.low_rank is not None
        values = values + self._product(name, change, first, last).to(values.dtype)
        if not change.low_rank.magnitude:
            return values
        wanted = self._file.tensor(change.low_rank.magnitude).reshape(-1).to(values.dtype)
        if change.low_rank.transposed:
            return values * (wanted / self._column_lengths(name, change).to(values.dtype))
        lengths = torch.linalg.vector_norm(values, dim=1)
        return values * (wanted[first:last] / lengths.clamp_min(_TINY)).unsqueeze(1)

    def _product(self, name: str, change: Change, first: int, last: int) -> Tensor:
        factors, step, rows = self.factors(name), self._step(change), change.shape[0]
        begin = first // step * step
        parts = []
        for start in range(begin, last, step):
            left = factors.left[start : min(start + step, rows)].clone()
            parts.append(left @ factors.right)
        return torch.cat(parts)[first - begin : last - begin]

    def _column_lengths(self, name: str, change: Change) -> Tensor:
        """Length of each column of the sum: what DoRA divides by where outputs are columns."""
        with self._lock:
            if name in self._magnitudes:
                return self._magnitudes[name]
        total = torch.zeros(change.shape[1], dtype=torch.float64)
        step, rows = self._step(change), change.shape[0]
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            source = self._file if change.replaced else self.base
            key = change.replaced or change.start
            values = source.block(key, start * change.shape[1], stop * change.shape[1]).to(self._wide(change))
            values = values.reshape(-1, change.shape[1]) + self._product(name, change, start, stop)
            total += values.to(torch.float64).square().sum(0)
        with self._lock:
            self._magnitudes[name] = total.sqrt().clamp_min(_TINY)
            return self._magnitudes[name]


@dataclass(frozen=True)
class Adapted:
    """An adapter on its base: the store, and the config fields that follow."""

    store: LoraStore
    config: Mapping[str, object]


def open_adapted(base: TensorStore, config: Mapping[str, object], adapter_folder: Path, *, label: str) -> Adapted:
    """Applies an adapter to an open base.

    A head that the base ties to its embedding gets a tensor of its own where the adapter changes only one of the two,
    as the model that was trained had it.

    Args:
        base: the base's tensors.
        config: the base's config.json.
        adapter_folder: see `read_adapter`.
        label: how to call the base in an error.

    Raises:
        ModelError: the adapter is unsound.
        ShapeMismatch: it does not fit, or lacks rows of the larger vocabulary that it was trained on.

    """
    adapter = read_adapter(adapter_folder)
    store = LoraStore(base, adapter, label=label, model_type=str(config.get("model_type", "")))
    embedding = architecture.input_embedding(base.tensors)
    result = dict(config)
    if embedding is None:
        return Adapted(store, result)
    if architecture.is_tied(config, base.tensors):
        _untie(store, adapter, embedding, result)
    rows = store.tensors[embedding].shape[0]
    for head in filter(architecture.is_head, store.tensors):
        if store.tensors[head].shape[0] != rows and {head, embedding} & store.changes.keys():
            raise ShapeMismatch(
                f"{adapter_folder} gives {embedding} {rows} rows and {head} {store.tensors[head].shape[0]}: it was "
                f"trained on a larger vocabulary than that of {label}, and does not hold the new rows of both; save it "
                "again with save_embedding_layers=True of PEFT's save_pretrained"
            )
    if rows != base.tensors[embedding].shape[0]:
        part = architecture.text_config(result)
        changed = {**part, "vocab_size": rows}
        result = changed if part is result else {**result, "text_config": changed}
    return Adapted(store, result)


def _untie(store: LoraStore, adapter: Adapter, embedding: str, config: dict[str, object]) -> None:
    """Decides about the head of a base that ties it to its embedding."""
    change = store.changes.get(embedding)
    heads = [name for name in store.changes if architecture.is_head(name)]
    for name in heads:
        head = store.changes[name]
        plain = not head.low_rank and (change is None or not change.low_rank)
        equal = (
            head.replaced and change and change.replaced and torch.equal(store.tensor(embedding), store.tensor(name))
        )
        if head == Change(head.shape, embedding) or (plain and equal):
            store.forget(name)  # PEFT saves both names of one tensor
            if equal or change is None:
                return
        else:
            if change is None and head.replaced and head.low_rank and head.shape != store.tensors[embedding].shape:
                store.add(embedding, Change(head.shape, embedding, head.replaced))  # one tensor, updated in one place
            config["tie_word_embeddings"] = False
            return
    if change is None or (change.rows and not change.low_rank) or adapter.config.get("ensure_weight_tying"):
        return
    names = config.get("architectures")
    causal = isinstance(names, list) and any("CausalLM" in str(name) or "LMHead" in str(name) for name in names)
    before = store.base.tensors[embedding].shape
    if causal and (change.shape == before or change.low_rank):
        replaced = change.replaced if change.low_rank and change.shape != before else ""
        store.add("lm_head.weight", Change(change.shape, embedding, replaced))
        config["tie_word_embeddings"] = False
