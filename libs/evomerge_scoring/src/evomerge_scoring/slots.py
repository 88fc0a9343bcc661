"""Keys and values of rows in work: allocated once, a row's token at position p in column p, so that none is padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

SPARE_COLUMNS = 64
"""Columns allocated at a time behind the longest row; a generation may end long before its limit."""


class Slots(Cache):
    """A cache of transformers' for forward passes of one token a row.

    Rows stand in the first slots; `step` says at which position each reads its token next. There is no `torch.cat`.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.rows = torch.zeros(0, dtype=torch.long)
        self.at = torch.zeros(0, dtype=torch.long)
        self.columns = 0

    def take(self, cache: Any, slots: torch.Tensor, lines: torch.Tensor, columns: torch.Tensor, room: int) -> None:
        """Copies rows that another cache holds.

        Args:
            cache: keys and values of forward passes, (lines, heads, columns, width) a layer.
            slots: (rows,): where the rows go.
            lines: (rows,): where they come from.
            columns: (rows, tokens): a row's places there; behind its end, any.
            room: slots that are needed in all.

        """
        self.columns = max(self.columns, columns.shape[1])
        for index, layer in enumerate(cache.layers):
            if index == len(self.layers):
                self.layers.append(_Layer(self))
            own = self.layers[index]
            own.allocate(layer.keys, layer.values, room, columns.shape[1])
            own.keys[slots, :, : columns.shape[1]] = layer.keys[lines[:, None], :, columns].transpose(1, 2)
            own.values[slots, :, : columns.shape[1]] = layer.values[lines[:, None], :, columns].transpose(1, 2)

    def step(self, at: torch.Tensor) -> torch.Tensor:
        """Readies the first rows to read a token each at these positions (rows,); what they may look at then."""
        self.at, self.rows = at, torch.arange(len(at), device=at.device)
        self.columns = int(at.max()) + 1
        for layer in self.layers:
            layer.allocate(layer.keys, layer.values, len(at), self.columns)
        return (torch.arange(self.columns, device=at.device)[None] <= at[:, None])[:, None, None, :]

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Puts rows into the slots of others, which are done."""
        if sources:
            for layer in self.layers:
                for tensor in (layer.keys, layer.values):
                    tensor[list(targets), :, : self.columns] = tensor[list(sources), :, : self.columns]


class _Layer(CacheLayerMixin):
    is_sliding = False
    keys: torch.Tensor
    values: torch.Tensor
    is_initialized: bool

    def __init__(self, slots: Slots) -> None:
        super().__init__()
        self._slots = slots

    def allocate(self, keys: torch.Tensor, values: torch.Tensor, rows: int, columns: int) -> None:
        """Makes room for so many rows and columns of the form of these keys and values."""
        if self.is_initialized and self.keys.shape[0] >= rows and self.keys.shape[2] >= columns:
            return
        before = (self.keys, self.values) if self.is_initialized else (keys[:0, :, :0], values[:0, :, :0])
        rows, columns = max(rows, before[0].shape[0]), max(columns + SPARE_COLUMNS, before[0].shape[2])
        grown = []
        for one in before:
            whole = one.new_zeros(rows, one.shape[1], columns, one.shape[3])
            whole[: one.shape[0], :, : one.shape[2]] = one
            grown.append(whole)
        self.keys, self.values = grown
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        slots = self._slots
        self.keys[slots.rows, :, slots.at] = key_states[:, :, 0]
        self.values[slots.rows, :, slots.at] = value_states[:, :, 0]
        count = len(slots.rows)
        return self.keys[:count, :, : slots.columns], self.values[:count, :, : slots.columns]

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.allocate(key_states, value_states, key_states.shape[0], key_states.shape[2])

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._slots.columns, 0

    def get_seq_length(self) -> int:
        return self._slots.columns

    def get_max_length(self) -> int:
        return -1
