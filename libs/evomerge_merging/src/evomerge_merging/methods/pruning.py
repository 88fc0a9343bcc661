"""Methods on task vectors that are thinned out by more than a magnitude: breadcrumbs and DELLA."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from evomerge_common.errors import RecipeError
from evomerge_merging.methods.registry import Block, PerModel, View, merge_method
from evomerge_merging.methods.task_vectors import (
    Keep,
    Thinning,
    deltas_of,
    magnitude_cuts,
    merge_task_vectors,
    rescaled,
    task_vector_kernel,
)
from evomerge_merging.numerics.random_words import word_limit
from evomerge_merging.numerics.rows import row_length, row_ranges, total
from evomerge_merging.numerics.selection import KEEP_ALL, KEEP_NONE, Bits, Cut

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    from evomerge_merging.torch_later import torch

_EPSILON = 1e-8
RANK_BUCKETS = 2048
"""Magnitudes told apart in a row: 16 octaves of 128. As in kernels.c."""
Flags = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class Band:
    """Keeps what `outer` keeps less what `inner` keeps: the middle of the magnitudes."""

    outer: Cut
    inner: Cut

    def apply(self, values: Tensor, start: int) -> Tensor:
        """A piece with zeros for what is not kept; exact, since each element is itself or zero in both."""
        return self.outer.apply(values, start) - self.inner.apply(values, start)


def _band_statistics(
    view: View, *, density: Sequence[float], gamma: Sequence[float], rescale: bool, **_: Any
) -> Thinning:
    """Leaves out the `int(gamma * size)` largest magnitudes, then keeps the `int(density * size)` largest of the rest.

    Where that leaves too few, fewer of the largest are left out: the density holds.
    """
    if all(share >= 1.0 for share in density):
        return Thinning([KEEP_ALL] * len(density), [1.0] * len(density))
    counts = []
    for share, outliers in zip(density, gamma, strict=True):
        kept = int(min(share, 1.0) * view.size)
        dropped = max(0, min(int(outliers * view.size), view.size - kept))
        counts += [dropped + kept, dropped]
    found = magnitude_cuts(view, counts)
    bands = [Band(outer, inner) for outer, inner in zip(found[::2], found[1::2], strict=True)]
    return rescaled(view, density, bands, rescale=rescale)


@merge_method("breadcrumbs", statistics=_band_statistics, kernel=task_vector_kernel(elect=False))
def breadcrumbs(
    tensors: Sequence[Tensor],
    base: Tensor,
    block: Block,
    *,
    weight: PerModel[float],
    density: PerModel[float] = (1.0,),
    gamma: PerModel[float] = (0.01,),
    normalize: bool = False,
    rescale: bool = False,
    int8_mask: bool = False,
    lambda_: float = 1.0,
) -> Tensor:
    """Drop both the smallest and the largest changes, add up the rest (Davari & Belilovsky 2023, arXiv:2312.06795).

    `gamma` is the share of largest magnitudes left out, `density` the share kept; with a density of 1 all is kept.
    """
    return merge_task_vectors(
        tensors, base, block,
        elect=False, weight=weight, density=density, normalize=normalize, scale=lambda_,
    )  # fmt: skip


@merge_method("breadcrumbs_ties", statistics=_band_statistics, kernel=task_vector_kernel(elect=True))
def breadcrumbs_ties(
    tensors: Sequence[Tensor],
    base: Tensor,
    block: Block,
    *,
    weight: PerModel[float],
    density: PerModel[float] = (1.0,),
    gamma: PerModel[float] = (0.01,),
    normalize: bool = False,
    rescale: bool = False,
    int8_mask: bool = False,
    lambda_: float = 1.0,
) -> Tensor:
    """Drop both the smallest and the largest changes, then elect signs as TIES does."""
    return merge_task_vectors(
        tensors, base, block,
        elect=True, weight=weight, density=density, normalize=normalize, scale=lambda_,
    )  # fmt: skip


def kept_by_rank(magnitudes: Tensor, words: Tensor, density: float, epsilon: float) -> Flags:
    """Which elements of a piece of whole rows (rows × columns) are kept, as flat booleans: DELLA's MagPrune.

    The element of rank r of n (0 is the smallest of its row) is kept with probability
    density - epsilon + 2 epsilon r / (n - 1), in steps of 1 / 65536. Magnitudes are told apart as far as bfloat16 does
    (a bit of the exponent, seven of the fraction), down to 2⁻¹⁶ of the row's largest; equals share their mean rank.
    `words` are int16, uniform.
    """
    row = magnitudes.shape[1]
    low, high = _word_limits(density, epsilon if row > 1 else 0.0)
    upper = (magnitudes.float().numpy().view(np.uint32) >> 16).astype(np.int64)
    upper = np.maximum(upper - upper.max(axis=1, keepdims=True), 1 - RANK_BUCKETS)
    ordered = np.sort(upper, axis=1)
    slope = (high - low) / (2.0 * (row - 1)) if row > 1 else 0.0
    limits = np.empty(upper.shape, np.int64)
    for place, line in enumerate(ordered):
        twice = np.searchsorted(line, upper[place]) + np.searchsorted(line, upper[place], "right") - 1
        limits[place] = low + (twice * slope).astype(np.int64)
    return np.asarray(words.numpy() < limits.reshape(-1))


def _word_limits(density: float, epsilon: float) -> tuple[int, int]:
    """Below which words the smallest element of a row is kept, and below which the largest."""
    low, high = (min(word_limit(density + side * epsilon, 16), (1 << 15) - 1) for side in (-1, 1))
    middle = min(word_limit(density, 16), (1 << 15) - 1)
    return (low, high) if high > low else (middle, middle)


def _rank_statistics(
    view: View, *, density: Sequence[float], epsilon: Sequence[float], rescale: bool, **_: Any
) -> Thinning:
    """Draws what is kept, row by row (the last dimension; a tensor of one dimension is one row).

    One pass, whose outcome is held as a bit an element, because ranks cost more than all the rest.
    """
    drawn = [i for i, share in enumerate(density) if 0.0 < share < 1.0]
    row = row_length(view.shape)
    bits: dict[int, list[np.ndarray[Any, Any]]] = {i: [] for i in drawn}
    sums = {i: ([0.0], [0.0]) for i in drawn}
    for start, stop in row_ranges(view) if drawn else ():
        if view.native is not None:
            masks = view.block(start, stop).masks
            wanted = [(i, masks[i], *_word_limits(density[i], epsilon[i] if row > 1 else 0.0)) for i in drawn]
            for i, (flags, *both) in zip(drawn, view.native.rank_flags(start, stop, row, wanted), strict=True):
                bits[i].append(np.packbits(flags))
                for parts, value in zip(sums[i], both, strict=True):
                    parts.append(value)
            continue
        deltas, block = deltas_of(view, start, stop), view.block(start, stop)
        for i in drawn:
            magnitudes = deltas[i].abs_().reshape(-1, row)
            kept = kept_by_rank(magnitudes, block.words(i, 16), density[i], epsilon[i])
            bits[i].append(np.packbits(kept))
            if rescale:
                sums[i][0].append(total(magnitudes))
                sums[i][1].append(total(magnitudes.reshape(-1) * torch.from_numpy(kept)))
    factors = [1.0] * len(density)
    keep: list[Keep] = [KEEP_ALL if share >= 1.0 else KEEP_NONE for share in density]
    for i in drawn:
        keep[i] = Bits(np.concatenate([*bits.pop(i), np.empty(0, np.uint8)]))
        whole, part = math.fsum(sums[i][0]), math.fsum(sums[i][1])
        if min(whole, part) > _EPSILON:
            factors[i] = whole / part
    return Thinning(keep, factors)


def _check_epsilon(*, density: Sequence[float], epsilon: Sequence[float], **_: Any) -> None:
    for share, spread in zip(density, epsilon, strict=True):
        if 0.0 < share < 1.0 and not (share - abs(spread) > 0.0 and share + abs(spread) < 1.0):
            raise RecipeError(
                f"density - epsilon and density + epsilon must lie between 0 and 1, and with density {share:g} and "
                f"epsilon {spread:g} they do not: lower epsilon below {min(share, 1.0 - share):g}",
                ("parameters", "epsilon"),
            )


@merge_method("della", statistics=_rank_statistics, check=_check_epsilon, kernel=task_vector_kernel(elect=True))
def della(
    tensors: Sequence[Tensor],
    base: Tensor,
    block: Block,
    *,
    weight: PerModel[float],
    density: PerModel[float] = (1.0,),
    epsilon: PerModel[float] = (0.15,),
    normalize: bool = True,
    rescale: bool = True,
    int8_mask: bool = False,
    lambda_: float = 1.0,
) -> Tensor:
    """Drop changes at random, small ones rather than large, rescale, elect signs (Deep et al. 2024, arXiv:2406.11617).

    An element is kept with a probability from density - epsilon (its row's smallest magnitude) to density + epsilon.
    """
    return merge_task_vectors(
        tensors, base, block,
        elect=True, weight=weight, density=density, normalize=normalize, scale=lambda_,
    )  # fmt: skip


@merge_method("della_linear", statistics=_rank_statistics, check=_check_epsilon, kernel=task_vector_kernel(elect=False))
def della_linear(
    tensors: Sequence[Tensor],
    base: Tensor,
    block: Block,
    *,
    weight: PerModel[float],
    density: PerModel[float] = (1.0,),
    epsilon: PerModel[float] = (0.15,),
    normalize: bool = False,
    rescale: bool = True,
    int8_mask: bool = False,
    lambda_: float = 1.0,
) -> Tensor:
    """Drop changes at random, small ones rather than large, rescale the rest and add them up."""
    return merge_task_vectors(
        tensors, base, block,
        elect=False, weight=weight, density=density, normalize=normalize, scale=lambda_,
    )  # fmt: skip
