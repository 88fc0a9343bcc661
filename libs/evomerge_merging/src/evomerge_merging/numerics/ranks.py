"""Random masks that follow the ranks of magnitudes in their rows: DELLA's (Deep et al. 2024, arXiv:2406.11617)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from evomerge_merging.numerics.random_words import word_limit
from evomerge_merging.numerics.selection import Bits

if TYPE_CHECKING:
    from torch import Tensor

RANK_BUCKETS = 2048
"""Magnitudes told apart in a row: 16 octaves of 128. As in kernels.c."""
Flags = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class RankMask:
    """A mask drawn by rank, and the sums of all magnitudes and of those that it keeps."""

    keep: Bits
    whole: float
    part: float


def keep_by_rank(magnitudes: Tensor, words: Tensor, density: float, epsilon: float) -> Flags:
    """Says which elements of a piece of whole rows (rows × columns) are kept, as flat booleans: DELLA's MagPrune.

    The element of rank r of n (0 is the smallest of its row) is kept with probability
    density - epsilon + 2 epsilon r / (n - 1), in steps of 1 / 65536. Magnitudes are told apart as far as bfloat16 does
    (a bit of the exponent, seven of the fraction), down to 2⁻¹⁶ of the row's largest; equals share their mean rank.
    `words` are int16, uniform.
    """
    row = magnitudes.shape[1]
    low, high = word_limits(density, epsilon if row > 1 else 0.0)
    upper = (magnitudes.float().numpy().view(np.uint32) >> 16).astype(np.int64)
    upper = np.maximum(upper - upper.max(axis=1, keepdims=True), 1 - RANK_BUCKETS)
    ordered = np.sort(upper, axis=1)
    slope = (high - low) / (2.0 * (row - 1)) if row > 1 else 0.0
    limits = np.empty(upper.shape, np.int64)
    for place, line in enumerate(ordered):
        twice = np.searchsorted(line, upper[place]) + np.searchsorted(line, upper[place], "right") - 1
        limits[place] = low + (twice * slope).astype(np.int64)
    return np.asarray(words.numpy() < limits.reshape(-1))


def word_limits(density: float, epsilon: float) -> tuple[int, int]:
    """Says below which 16-bit words the smallest element of a row is kept, and below which the largest."""
    low, high = (min(word_limit(density + side * epsilon, 16), (1 << 15) - 1) for side in (-1, 1))
    middle = min(word_limit(density, 16), (1 << 15) - 1)
    return (low, high) if high > low else (middle, middle)
