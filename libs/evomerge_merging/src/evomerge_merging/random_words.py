"""Random numbers that belong to an element, not to a moment: counter-based, so threads and pieces do not matter."""

from __future__ import annotations

import hashlib

import numpy as np
import torch

_WORDS_A_COUNTER = 8
"""Philox4x64 gives four 64-bit words a counter value: eight 32-bit ones."""


def mask_key(seed: int, source: str, tensor: str) -> tuple[int, int]:
    """A 128-bit key for one source's tensor under one seed."""
    text = f"{seed}\0{source}\0{tensor}".encode()
    digest = hashlib.blake2b(text, digest_size=16, person=b"evomerge-mask").digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


def words(key: tuple[int, int], start: int, stop: int) -> torch.Tensor:
    """One int32 for each element of [start, stop), uniform over all 2**32 values.

    Philox4x64-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") in counter mode.
    """
    first = start // _WORDS_A_COUNTER
    skip = start - first * _WORDS_A_COUNTER
    generator = np.random.Generator(
        np.random.Philox(counter=np.array([first, 0, 0, 0], np.uint64), key=np.array(key, np.uint64))
    )
    count = (skip + stop - start + 1) // 2
    wide = generator.integers(0, 2**64 - 1, size=count, dtype=np.uint64, endpoint=True)
    narrow = torch.from_numpy(wide.astype("<u8", copy=False).view("<i4"))
    return narrow[skip : skip + stop - start]


def kept(values: torch.Tensor, density: float, dtype: torch.dtype) -> torch.Tensor:
    """1 with probability `density`, else 0, as floats, from uniform words (which are used up).

    Floats rather than booleans: torch multiplies by them thirty times faster.
    """
    limit = round(density * 2**32) - 2**31
    if limit >= 2**31:
        return torch.ones(values.shape, dtype=dtype)
    return values.lt_(max(limit, -(2**31))).to(dtype)
