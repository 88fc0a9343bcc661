"""Vocabularies that differ: embeddings and heads follow the tokens' texts, never their row numbers.

A `Target` says which token the result has in which row. Each source's vocabulary tensors are then seen through an
`AlignedStore`, which has the target's rows: a source's own where it knows the token, else what `Origins` say. Rows are
gathered as pieces are asked for; nothing but a piece is held. A token that a source lacks gets, as in mergekit: the
row of the base if the base knows the token, else the average over the sources that do; zeros if none does; unless the
recipe's `tokens` say otherwise. Rows beyond the tokens (padding) are the mean of the others.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from evomerge_common.domain.recipe import Recipe
from evomerge_common.errors import ModelError, RecipeError, did_you_mean
from evomerge_merging.engine import architecture
from evomerge_merging.engine.source import Source
from evomerge_merging.io.dtypes import torch_dtype
from evomerge_merging.io.model_folder import TensorStore
from evomerge_models.dtypes import F64
from evomerge_models.headers import TensorInfo

if TYPE_CHECKING:
    import torch
else:
    from evomerge_merging.torch_later import torch

Rows = NDArray[np.int64]
_GIVEN, _PADDING = -1, -2
_HEAD_BIAS = re.compile(
    r"(^|\.)(lm_head|lm_head\.decoder|embed_out|vocab_projector|generator_lm_head)\.bias$"
    r"|^cls\.predictions\.(decoder\.)?bias$"
)
_MEAN_ROWS = 4096


@dataclass(frozen=True)
class Target:
    """The result's vocabulary: token → row, and the number of rows, padding included."""

    tokens: Mapping[str, int]
    rows: int

    @classmethod
    def of(cls, tokens: Mapping[str, int], pad_to_multiple_of: int) -> Target:
        """As many rows as the last token needs, rounded up to a multiple (0: not rounded)."""
        rows = max(tokens.values(), default=-1) + 1
        step = pad_to_multiple_of or 1
        return cls(tokens, -(-rows // step) * step)


@dataclass(frozen=True)
class Origins:
    """Where the rows come from that a source does not have: by source key, that source's row for each row, or -1."""

    rows: Mapping[str, Rows]
    forced: frozenset[int]
    averaged: int
    zero: tuple[str, ...]

    def forced_from(
        self, keys: Sequence[str], tokens: Sequence[str], target: Target, known: Mapping[str, Mapping[str, int]]
    ) -> Origins:
        """The same, but for some tokens every source takes the rows of certain ones: their average, if several."""
        rows = {key: own.copy() for key, own in self.rows.items()}
        for token in tokens:
            row = target.tokens[token]
            for key, own in rows.items():
                own[row] = known[key].get(token, -1) if key in keys else -1
        forced = self.forced | {target.tokens[token] for token in tokens}
        return Origins(rows, forced, self.averaged, self.zero)


def embedding_rows(source: Source) -> int:
    """Rows of a source's token embedding; 0 when it has none that can be told."""
    name = architecture.input_embedding(source.store.tensors)
    return source.store.tensors[name].shape[0] if name and source.store.tensors[name].shape else 0


def origins(
    target: Target, known: Mapping[str, Mapping[str, int]], base: str | None, recipe: Recipe, words: Mapping[str, str]
) -> Origins:
    """Decides for each token where sources that lack it get their row.

    Args:
        target: the result's vocabulary.
        known: by source key, token → row of what that source really has rows for.
        base: the base's key.
        recipe: whose `tokens` override.
        words: source key by every way in which the recipe may name it.

    Raises:
        RecipeError: an override names a model or token that is not there.

    """
    rows = {key: np.full(target.rows, -1, np.int64) for key in known}
    forced, zero, averaged = set(), [], 0
    for token, row in target.tokens.items():
        override = recipe.tokens.get(token)
        if override is not None and override.get("force"):
            forced.add(row)
        having = [key for key, tokens in known.items() if token in tokens]
        if override is not None and (override.get("zero") or "source" in override):
            if not override.get("zero"):
                key, place = _override(token, override, known, words)
                rows[key][row] = place
            continue
        if len(having) == len(known) and row not in forced:
            continue
        if base is not None and base in having:
            having = [base]
        if not having:
            zero.append(token)
        averaged += len(having) > 1
        for key in having:
            rows[key][row] = known[key][token]
    return Origins(rows, frozenset(forced), averaged, tuple(zero))


def _override(
    token: str, override: Mapping[str, Any], known: Mapping[str, Mapping[str, int]], words: Mapping[str, str]
) -> tuple[str, int]:
    path = ("tokens", token, "source")
    key = words.get(override["source"])
    if key is None:
        raise RecipeError(
            f"{override['source']!r} is no model of the recipe; {did_you_mean(override['source'], words)}", path
        )
    if "token_id" in override:
        if override["token_id"] not in known[key].values():
            raise RecipeError(f"{override['source']} has no token with the id {override['token_id']}", path)
        return key, override["token_id"]
    wanted = override.get("token", token)
    if wanted not in known[key]:
        raise RecipeError(f"{override['source']} has no token {wanted!r}", path)
    return key, known[key][wanted]


def align(
    sources: Mapping[str, Source], target: Target, known: Mapping[str, Mapping[str, int]], given: Origins
) -> dict[str, Source]:
    """The sources as if each had the target's vocabulary; those that have it already are left as they are."""
    result = {}
    for key, source in sources.items():
        own = np.full(target.rows, _PADDING, np.int64)
        for token, row in target.tokens.items():
            own[row] = _GIVEN if row in given.forced else known[key].get(token, _GIVEN)
        if np.array_equal(own, np.arange(embedding_rows(source))):
            result[key] = source
        else:
            stores = {other: item.store for other, item in sources.items()}
            store = AlignedStore(source, own, given.rows, stores)
            config = {**source.config, "tie_word_embeddings": True} if store.heads else source.config
            result[key] = replace(source, store=store, config=config)
    return result


class AlignedStore:
    """A source's tensors with the vocabulary dimension (the first) of embedding and head in the target's order.

    Pieces with rows that the source does not have are float32 (float64 where the source is), so that an average is
    rounded but once, with the result. A source whose head is tied gets one of its own where others have one (`heads`),
    since the rows that it lacks then differ from its embedding's.
    """

    def __init__(self, source: Source, own: Rows, given: Mapping[str, Rows], stores: Mapping[str, TensorStore]) -> None:
        self._store, self._own, self._given, self._stores = source.store, own, given, stores
        self._means: dict[str, torch.Tensor] = {}
        self._lock = threading.Lock()
        before = embedding_rows(source)
        self._aligned = {
            name for name, info in self._store.tensors.items() if info.shape[:1] == (before,) and is_vocabulary(name)
        }
        for name, info in self._store.tensors.items():
            if is_vocabulary(name) and name not in self._aligned:
                raise ModelError(
                    f"{name} of {source.label} has the shape {list(info.shape)}, but the embedding has {before} rows"
                )
        self.tensors: Mapping[str, TensorInfo] = {
            name: self._info(name, info) if name in self._aligned else info
            for name, info in self._store.tensors.items()
        }
        embedding = architecture.input_embedding(self._store.tensors)
        heads = {name for store in stores.values() for name in store.tensors if architecture.is_head(name)}
        self.heads = {} if embedding is None or heads & self._store.tensors.keys() else dict.fromkeys(heads, embedding)
        self._aligned |= self.heads.keys()
        self.tensors = {
            **self.tensors,
            **{name: self._info(name, self._store.tensors[e]) for name, e in self.heads.items()},
        }

    def _info(self, name: str, info: TensorInfo) -> TensorInfo:
        shape = (len(self._own), *info.shape[1:])
        return TensorInfo(name, shape, info.dtype, 0, math.prod(shape) * info.dtype.itemsize)

    def tensor(self, name: str) -> torch.Tensor:
        """The whole tensor in the source's type."""
        if name not in self._aligned:
            return self._store.tensor(name)
        info = self.tensors[name]
        return self.block(name, 0, math.prod(info.shape)).to(torch_dtype(info.dtype)).reshape(info.shape)

    def block(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Elements [start, stop) of the flattened tensor."""
        if name not in self._aligned or start >= stop:
            return self._store.block(name, start, stop)
        width = math.prod(self.tensors[name].shape[1:])
        first, last = start // width, -(-stop // width)
        own = self._own[first:last]
        if own[0] >= 0 and np.array_equal(own, np.arange(own[0], own[0] + len(own))):
            shift = (int(own[0]) - first) * width
            return self._store.block(self.heads.get(name, name), start + shift, stop + shift)
        return self._rows(name, first, last).reshape(-1)[start - first * width : stop - first * width]

    def rows(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        """A copy of some rows, in the order asked for."""
        return self.tensor(name)[rows] if name in self._aligned else self._store.rows(name, rows)

    def close(self) -> None:
        """Lets the source's files go."""
        self._store.close()

    def _rows(self, name: str, first: int, last: int, *, padding: bool = True) -> torch.Tensor:
        own = self._own[first:last]
        stored = self.heads.get(name, name)
        if (own >= 0).all():
            return self._store.rows(stored, torch.from_numpy(own))
        info = self.tensors[name]
        wide = torch.float64 if info.dtype == F64 else torch.float32
        result = torch.zeros((last - first, *info.shape[1:]), dtype=wide)
        _put(result, own >= 0, self._store, stored, own)
        count = np.zeros(last - first)
        lacking = own == _GIVEN
        for key, rows in self._given.items():
            there = lacking & (rows[first:last] >= 0)
            counterpart = _counterpart(self._stores[key], name)
            if counterpart is not None:
                _put(result, there, self._stores[key], counterpart, rows[first:last])
                count[there] += 1
        several = torch.from_numpy(np.maximum(count, 1.0)).to(wide)
        result /= several.reshape(-1, *[1] * (result.dim() - 1))
        if padding and (own == _PADDING).any():
            result[torch.from_numpy(own == _PADDING)] = self._mean(name).to(wide)
        return result

    def _mean(self, name: str) -> torch.Tensor:
        """The mean row, padding left out: what new rows begin with (Hewitt 2021, on initialising new embeddings)."""
        with self._lock:
            if name not in self._means:
                total = torch.zeros(self.tensors[name].shape[1:], dtype=torch.float64)
                for first in range(0, len(self._own), _MEAN_ROWS):
                    last = min(first + _MEAN_ROWS, len(self._own))
                    total += self._rows(name, first, last, padding=False).sum(0, dtype=torch.float64)
                self._means[name] = total / max(1, int((self._own != _PADDING).sum()))
            return self._means[name]


def is_vocabulary(name: str) -> bool:
    """Whether a tensor's first dimension is the vocabulary."""
    return architecture.is_token_embedding(name) or architecture.is_head(name) or _HEAD_BIAS.search(name) is not None


def _put(result: torch.Tensor, where: NDArray[np.bool_], store: TensorStore, name: str, rows: Rows) -> None:
    """Adds a tensor's rows to the result's where asked."""
    if where.any():
        result[torch.from_numpy(where)] += store.rows(name, torch.from_numpy(rows[where])).to(result.dtype)


def _counterpart(store: TensorStore, name: str) -> str | None:
    """The name of the same tensor in another store: for a head that is tied there, the embedding."""
    if name in store.tensors:
        return name
    return architecture.input_embedding(store.tensors) if architecture.is_head(name) else None


def known_rows(sources: Sequence[Source], vocabularies: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    """By source key, the tokens that it really has rows for."""
    result = {}
    for source in sources:
        rows = embedding_rows(source)
        result[source.key] = {token: row for token, row in vocabularies[source.key].items() if 0 <= row < rows}
    return result
