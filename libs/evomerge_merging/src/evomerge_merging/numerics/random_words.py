"""Random numbers that belong to an element's place, not to a moment, so threads and pieces do not matter.

The generator is Philox-4x32 with 7 rounds (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): a
function of a key and a counter, four 32-bit words a counter. Elements go by groups of 64 32-bit words, of 16
consecutive counters: first all their first words, then their second ones and so on, so that processors draw several
counters at once. 16-bit words are those halved, the lower half first. kernels.c draws the same.
"""

from __future__ import annotations

import ctypes
import hashlib
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from evomerge_merging.native import library

if TYPE_CHECKING:
    import torch
else:
    from evomerge_merging.torch_later import torch

Flags = np.ndarray[Any, np.dtype[np.bool_]]
Array = np.ndarray[Any, Any]
MaskKey = tuple[int, int]
_ROUNDS, _COUNTERS, _GROUP = 7, 16, 64
_FACTORS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOWER, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
_AT_ONCE = 256
"""Groups drawn at once: what is held then stays in the cache."""


def mask_key(seed: int, source: str, tensor: str) -> MaskKey:
    """Makes a 128-bit key for one source's tensor under one seed."""
    text = f"{seed}\0{source}\0{tensor}".encode()
    digest = hashlib.blake2b(text, digest_size=16, person=b"evomerge-mask").digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


def key_parts(key: MaskKey) -> tuple[int, int, int, int]:
    """Returns the generator's 64-bit key, and the upper half of its 128-bit counter, as 32-bit numbers."""
    mask = 0xFFFFFFFF
    return key[0] & mask, key[0] >> 32, key[1] & mask, key[1] >> 32


def words(key: MaskKey, start: int, stop: int, bits: Literal[16, 32] = 32) -> torch.Tensor:
    """Draws uniform words, see `raw_words`."""
    return torch.from_numpy(raw_words(key, start, stop, bits))


def raw_words(key: MaskKey, start: int, stop: int, bits: Literal[16, 32] = 32) -> Array:
    """Draws one int32 (or int16) for each element of [start, stop), uniform over all values."""
    halves = 32 // bits
    first = start // halves
    stream = _drawn(key, first, -(-stop // halves))
    skip = start - first * halves
    return stream.view(f"i{bits // 8}")[skip : skip + stop - start]


def _drawn(key: MaskKey, start: int, stop: int) -> Array:
    """The 32-bit words of that range, as int32."""
    kernels: Any = library()
    if kernels is not None:
        result = np.empty(stop - start, np.int32)
        parts = (ctypes.c_uint32 * 4)(*key_parts(key))
        kernels.evomerge_words(parts, 2 * start, 2 * (stop - start), result.ctypes.data)
        return result
    groups = range(start // _GROUP, -(-stop // _GROUP), _AT_ONCE)
    last = -(-stop // _GROUP)
    drawn = [philox(key, first * _COUNTERS, min(first + _AT_ONCE, last) * _COUNTERS) for first in groups]
    # Counters × 4 → groups × 4 × counters of the group.
    parted = [part.reshape(-1, _COUNTERS, 4).transpose(0, 2, 1).reshape(-1) for part in drawn]
    skip = start % _GROUP
    return np.concatenate([*parted, np.empty(0, np.uint32)])[skip : skip + stop - start].view(np.int32)


def philox(key: MaskKey, start: int, stop: int) -> Array:
    """Computes four uint32 for each counter of [start, stop): counters × 4. `key[1]` is the counters' upper half."""
    keys = key_parts(key)
    counters = np.arange(start, stop, dtype=np.uint64)
    a, b = counters & _LOWER, counters >> _HALF
    c, d = (np.full(len(counters), part, np.uint64) for part in keys[2:])
    for turn in range(_ROUNDS):
        p, q = a * _FACTORS[0], c * _FACTORS[1]
        a = (q >> _HALF) ^ b ^ np.uint64((keys[0] + turn * _WEYL[0]) & 0xFFFFFFFF)
        c = (p >> _HALF) ^ d ^ np.uint64((keys[1] + turn * _WEYL[1]) & 0xFFFFFFFF)
        b, d = q & _LOWER, p & _LOWER
    return np.stack([a, b, c, d], axis=1).astype(np.uint32)


def keep(values: torch.Tensor, density: float) -> Flags:
    """Says for each of some uniform words whether it keeps, which has probability `density` to 1 in 2³² or 2¹⁶."""
    drawn = values.numpy()
    half = 1 << (8 * drawn.itemsize - 1)
    limit = word_limit(density, 8 * drawn.itemsize)
    return np.ones(drawn.shape, np.bool_) if limit >= half else np.asarray(drawn < limit)


def word_limit(density: float, bits: int) -> int:
    """Returns the limit below which words keep: from the smallest signed number of `bits` bits to past the largest."""
    half = 1 << (bits - 1)
    return min(max(round(density * 2 * half) - half, -half), half)
