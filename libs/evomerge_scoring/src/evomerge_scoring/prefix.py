"""What all rows of a task begin with (few-shot examples, an instruction) is read once, not once a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from evomerge_scoring.loaded import LoadedModel

WORTH_TOKENS = 12
"""A shorter beginning costs less to read again than to hand over."""


def shared_length(sequences: Sequence[Sequence[int]], limit: int) -> int:
    """Tokens that all sequences begin with, at most `limit`; 0 where it is not worth while."""
    if len(sequences) < 2:
        return 0
    first, last = (
        min(sequences, key=tuple),
        max(sequences, key=tuple),
    )  # in lexicographic order, so they differ the most
    end = min(len(first), len(last), limit)
    count = next((place for place in range(end) if first[place] != last[place]), end)
    return count if count >= WORTH_TOKENS else 0


@dataclass(frozen=True)
class Prefix:
    """Keys and values of the shared tokens; `length` 0 means that nothing is shared."""

    length: int = 0
    cache: Any = None

    def expanded(self, rows: int) -> Any:
        """A cache for so many rows, each behind the prefix, to be grown by whoever gets it."""
        cache = DynamicCache()  # of whole layers: a mask of ours fits them all, see `loaded.tree_limit`
        if self.length:
            for index, layer in enumerate(self.cache.layers):
                cache.update(layer.keys.expand(rows, -1, -1, -1), layer.values.expand(rows, -1, -1, -1), index)
        return cache


def read_prefix(model: LoadedModel, ids: Sequence[int]) -> Prefix:
    """Reads the shared tokens."""
    if not ids:
        return Prefix()
    cache = DynamicCache(config=model.module.config)
    tokens = torch.tensor([list(ids)], device=model.device)
    place = torch.zeros(1, dtype=torch.long, device=model.device)
    with torch.inference_mode(), model.gather.positions(place, place):  # no logits are wanted
        model.module(input_ids=tokens, past_key_values=cache, use_cache=True)
    return Prefix(len(ids), cache)
