"""Random numbers that belong to an element's place, not to a moment, so threads and pieces do not matter."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    import torch
else:
    from evomerge_merging.torch_later import torch

Flags = np.ndarray[Any, np.dtype[np.bool_]]


def mask_key(seed: int, source: str, tensor: str) -> tuple[int, int]:
    """A 128-bit key for one source's tensor under one seed."""
    text = f"{seed}\0{source}\0{tensor}".encode()
    digest = hashlib.blake2b(text, digest_size=16, person=b"evomerge-mask").digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


def words(key: tuple[int, int], start: int, stop: int, bits: Literal[16, 32] = 32) -> torch.Tensor:
    """See `raw_words`."""
    return torch.from_numpy(raw_words(key, start, stop, bits))


def raw_words(key: tuple[int, int], start: int, stop: int, bits: Literal[16, 32] = 32) -> np.ndarray[Any, Any]:
    """One int32 (or int16) for each element of [start, stop), uniform over all values: a part of a 64-bit word each.

    PCG64 DXSM (O'Neill 2014), which can be set forward to any place at once. The key gives its state and its stream.
    """
    generator = np.random.PCG64DXSM(0)
    generator.state = {
        "bit_generator": "PCG64DXSM",
        "state": {"state": key[0] << 64 | key[1], "inc": key[1] << 64 | key[0] | 1},
        "has_uint32": 0,
        "uinteger": 0,
    }
    first, skip = divmod(start, 64 // bits)
    generator.advance(first)
    wide = generator.random_raw(-(-(skip + stop - start) * bits // 64))
    narrow = wide.astype("<u8", copy=False).view(f"<i{bits // 8}")
    return narrow[skip : skip + stop - start]


def kept(values: torch.Tensor, density: float) -> Flags:
    """True with probability `density` (rounded to the words' 32 or 16 bits), from uniform words."""
    return kept_words(values.numpy(), density)


def kept_words(values: np.ndarray[Any, Any], density: float) -> Flags:
    """See `kept`."""
    half = 1 << (8 * values.itemsize - 1)
    limit = round(density * 2 * half) - half
    if limit >= half:
        return np.ones(values.shape, np.bool_)
    return np.asarray(values < max(limit, -half))
