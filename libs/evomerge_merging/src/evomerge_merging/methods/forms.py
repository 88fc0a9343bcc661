"""What a method may say that its result is, instead of computing it: a `Form`.

A form is defined by what it does with torch; the native kernels do the same in one pass over the sources. So a method
that gives a form has both, and is itself written once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evomerge_merging.numerics.selection import Keep

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    from evomerge_merging.torch_later import torch

EPSILON = 1e-8
"""What is nearer to zero is not divided by."""


@dataclass(frozen=True)
class WeightedSum:
    """The sum of the base, where there is one, and the inputs, in that order, times `weights`."""

    weights: Sequence[float]

    def merged(self, tensors: Sequence[Tensor], base: Tensor | None, start: int) -> Tensor:
        """Computes the piece that begins at element `start`, from flat pieces of equal length."""
        return weighted_sum(tensors if base is None else [base, *tensors], self.weights)


def shares(weight: Sequence[float], *, normalize: bool) -> list[float]:
    """The weights, with `normalize` divided by their sum; a sum near zero is not divided by."""
    scale = _reciprocal(weight) if normalize else 1.0
    return [w * scale for w in weight]


def _reciprocal(weight: Sequence[float]) -> float:
    total = sum(weight)
    return 1.0 / total if abs(total) > EPSILON else 1.0


def weighted_sum(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Adds up `weights[i] * tensors[i]`, in order.

    Multiplication and addition are separate on purpose: a fused multiply-add rounds once in a vector's lanes but not
    always in the rest of a piece, and the result would depend on where pieces begin.
    """
    result = tensors[0] * weights[0]
    for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
        result.add_(tensor * weight)
    return result


@dataclass(frozen=True)
class TaskVectorSum:
    """The base plus the sum of the task vectors, thinned out and weighed, times `scale`.

    Attributes:
        keeps: what is kept of each task vector; None: all of it.
        factors: what each is multiplied by: its weight, and what makes up for what is not kept.
        weight: each one's weight, which divides.
        elect: keep only what has the sign of the sum (TIES' disjoint merge).
        normalize: divide by the sum of the weights, with `elect` of those that are kept at an element.

    """

    keeps: Sequence[Keep | None]
    factors: Sequence[float]
    weight: Sequence[float]
    elect: bool
    normalize: bool
    scale: float

    @property
    def divide(self) -> float:
        """What the sum is multiplied by to be divided by the weights' sum; 1 where it is not to be."""
        return _reciprocal(self.weight) if self.normalize else 1.0

    def merged(self, tensors: Sequence[Tensor], base: Tensor | None, start: int) -> Tensor:
        """Computes the piece that begins at element `start`, from flat pieces of equal length."""
        assert base is not None
        weighted: list[Tensor] = []
        for tensor, keep, factor in zip(tensors, self.keeps, self.factors, strict=True):
            delta = tensor - base
            weighted.append((delta if keep is None else keep.apply(delta, start)).mul_(factor))
        total = weighted[0].clone()
        for change in weighted[1:]:
            total.add_(change)
        if self.elect:
            total = _disjoint_sum(weighted, total, self.weight, normalize=self.normalize)
        elif self.divide != 1.0:
            total.mul_(self.divide)
        return total.mul_(self.scale).add_(base)


def _disjoint_sum(weighted: Sequence[Tensor], total: Tensor, weight: Sequence[float], *, normalize: bool) -> Tensor:
    """Adds up only changes that have the sign of the total (plus where it is zero); only their weights divide."""
    sign = torch.ones_like(total).copysign_(total)
    result = torch.zeros_like(total)
    divisor = torch.zeros_like(total)
    for change, share in zip(weighted, weight, strict=True):
        agreeing = change.mul_(sign).clamp_(min=0.0)
        result.add_(agreeing)
        if normalize:
            divisor.add_(agreeing.gt_(0.0).mul_(share))
    if normalize:
        # Where the divisor is zero, one: as a float sum, since torch fills by mask thirty times slower.
        result.div_(divisor.add_(divisor.abs().le_(EPSILON)))
    return result.mul_(sign)


Form = WeightedSum | TaskVectorSum
"""What a piece of a result may be said to be; each has its kernel in `engine.kernels`."""
