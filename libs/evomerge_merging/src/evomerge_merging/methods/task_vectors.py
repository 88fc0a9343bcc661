"""Methods on task vectors: what a model changed of its base.

All are one scheme: thin each task vector out (not, by magnitude, at random), weigh, perhaps keep only what agrees with
the elected sign, add up, and add the result to the base, times `lambda`. Parameters that a method does not use but
that recipes of this family carry everywhere (`density` of task_arithmetic, `int8_mask`) are accepted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from evomerge_merging.folds import Sums
from evomerge_merging.methods.registry import Block, PerModel, View, merge_method
from evomerge_merging.random_words import kept
from evomerge_merging.selection import KEEP_ALL, Cut, cuts

_EPSILON = 1e-8


@dataclass(frozen=True)
class Thinning:
    """For each task vector: what is kept of it, and the factor that makes up for what is not."""

    cuts: Sequence[Cut]
    factors: Sequence[float]


def thin_by_magnitude(view: View, *, density: Sequence[float], rescale: bool) -> Thinning:
    """Finds the `int(density * size)` largest magnitudes of each task vector, exactly."""

    def magnitudes(start: int, stop: int) -> list[Tensor]:
        tensors, base = view.read(start, stop)
        assert base is not None
        return [(tensor - base).abs_() for tensor in tensors]

    if all(share >= 1.0 for share in density):
        return Thinning([KEEP_ALL] * len(density), [1.0] * len(density))
    counts = [int(min(share, 1.0) * view.size) for share in density]
    found = cuts(magnitudes, view.pieces(), view.size, counts)
    masks = [lambda block, delta, cut=cut: cut.mask(delta.abs(), block.start) for cut in found]
    return Thinning(found, _factors(view, masks) if rescale else [1.0] * len(density))


def thin_at_random(view: View, *, density: Sequence[float], rescale: bool) -> Thinning:
    """The cuts keep everything: which elements stay is told by the block's random words."""
    masks = [
        lambda block, delta, i=i, share=share: kept(block.words(i), share) if share < 1.0 else torch.ones_like(delta)
        for i, share in enumerate(density)
    ]
    needed = rescale and any(share < 1.0 for share in density)
    return Thinning([KEEP_ALL] * len(density), _factors(view, masks) if needed else [1.0] * len(density))


def _factors(view: View, masks: Sequence[Callable[[Block, Tensor], Tensor]]) -> list[float]:
    """What each thinned task vector is multiplied by to have its L1 norm back (on average 1 / density at random)."""
    names = range(len(masks))
    sums = Sums(*[f"all{i}" for i in names], *[f"kept{i}" for i in names])
    for start, stop in view.pieces():
        tensors, base = view.read(start, stop)
        assert base is not None
        block = view.block(start, stop)
        for i, mask in enumerate(masks):
            delta = tensors[i] - base
            size = delta.abs()
            sums.add(**{f"all{i}": size, f"kept{i}": size * mask(block, delta)})
    totals = [(sums[f"all{i}"], sums[f"kept{i}"]) for i in names]
    return [whole / part if min(whole, part) > _EPSILON else 1.0 for whole, part in totals]


def merge_task_vectors(
    tensors: Sequence[Tensor],
    base: Tensor,
    block: Block,
    *,
    thin: Literal["no", "magnitude", "random"],
    elect: bool,
    weight: Sequence[float],
    density: Sequence[float],
    normalize: bool,
    scale: float,
) -> Tensor:
    """One piece of any method of the family; `block.statistics` is a `Thinning` unless `thin` is "no"."""
    weighted: list[Tensor] = []
    thinning: Any = block.statistics
    for i, tensor in enumerate(tensors):
        delta = tensor - base
        factor = weight[i]
        if thin != "no" and density[i] < 1.0:
            mask = (
                kept(block.words(i), density[i])
                if thin == "random"
                else thinning.cuts[i].mask(delta.abs(), block.start)
            )
            delta.mul_(mask)
            factor *= thinning.factors[i]
        weighted.append(delta.mul_(factor))
    total = weighted[0].clone()
    for change in weighted[1:]:
        total.add_(change)
    if elect:
        total = _disjoint_sum(weighted, total, weight, normalize=normalize)
    elif normalize and abs(sum(weight)) > _EPSILON:
        total.mul_(1.0 / sum(weight))
    return total.mul_(scale).add_(base)


def _disjoint_sum(weighted: Sequence[Tensor], total: Tensor, weight: Sequence[float], *, normalize: bool) -> Tensor:
    """Only changes that have the sign of the total (plus where it is zero) count, and only their weights divide."""
    sign = torch.where(total >= 0, 1.0, -1.0).to(total.dtype)
    result = torch.zeros_like(total)
    divisor = torch.zeros_like(total)
    for change, share in zip(weighted, weight, strict=True):
        agrees = (change * sign > 0).to(total.dtype)
        result.add_(change * agrees)
        if normalize:
            divisor.add_(agrees.mul_(share))
    if normalize:
        result.div_(divisor.masked_fill_(divisor.abs() <= _EPSILON, 1.0))
    return result


def _magnitude_statistics(view: View, *, density: Sequence[float], rescale: bool, **_: Any) -> Thinning:
    return thin_by_magnitude(view, density=density, rescale=rescale)


def _random_statistics(view: View, *, density: Sequence[float], rescale: bool, **_: Any) -> Thinning:
    return thin_at_random(view, density=density, rescale=rescale)


@merge_method("task_arithmetic")
def task_arithmetic(
    tensors: Sequence[Tensor],
    base: Tensor,
    block: Block,
    *,
    weight: PerModel[float],
    density: PerModel[float] = (1.0,),
    normalize: bool = False,
    rescale: bool = False,
    int8_mask: bool = False,
    lambda_: float = 1.0,
) -> Tensor:
    """The base plus the weighted sum of the task vectors (Ilharco et al. 2022, arXiv:2212.04089)."""
    return merge_task_vectors(
        tensors, base, block,
        thin="no", elect=False, weight=weight, density=density, normalize=normalize, scale=lambda_,
    )  # fmt: skip


@merge_method("ties", statistics=_magnitude_statistics)
def ties(
    tensors: Sequence[Tensor],
    base: Tensor,
    block: Block,
    *,
    weight: PerModel[float],
    density: PerModel[float] = (1.0,),
    normalize: bool = True,
    rescale: bool = False,
    int8_mask: bool = False,
    lambda_: float = 1.0,
) -> Tensor:
    """Trim task vectors by magnitude, elect a sign, and average what agrees (Yadav et al. 2023, arXiv:2306.01708)."""
    return merge_task_vectors(
        tensors, base, block,
        thin="magnitude", elect=True, weight=weight, density=density, normalize=normalize, scale=lambda_,
    )  # fmt: skip


@merge_method("dare_linear", statistics=_random_statistics)
def dare_linear(
    tensors: Sequence[Tensor],
    base: Tensor,
    block: Block,
    *,
    weight: PerModel[float],
    density: PerModel[float] = (1.0,),
    normalize: bool = False,
    rescale: bool = True,
    int8_mask: bool = False,
    lambda_: float = 1.0,
) -> Tensor:
    """Drop elements of task vectors at random, rescale the rest, add them up (Yu et al. 2023, arXiv:2311.03099)."""
    return merge_task_vectors(
        tensors, base, block,
        thin="random", elect=False, weight=weight, density=density, normalize=normalize, scale=lambda_,
    )  # fmt: skip


@merge_method("dare_ties", statistics=_random_statistics)
def dare_ties(
    tensors: Sequence[Tensor],
    base: Tensor,
    block: Block,
    *,
    weight: PerModel[float],
    density: PerModel[float] = (1.0,),
    normalize: bool = False,
    rescale: bool = True,
    int8_mask: bool = False,
    lambda_: float = 1.0,
) -> Tensor:
    """Drop elements of task vectors at random, rescale, then elect signs as TIES does."""
    return merge_task_vectors(
        tensors, base, block,
        thin="random", elect=True, weight=weight, density=density, normalize=normalize, scale=lambda_,
    )  # fmt: skip
