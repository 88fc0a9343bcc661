"""Methods on task vectors: what a model changed of its base.

All are one scheme: thin each task vector out (by magnitude, at random, or not), weigh, perhaps keep only what agrees
with the elected sign, add up, and add the result to the base, times `lambda`. Parameters that a method does not use
but that recipes of this family carry everywhere (`density` of task_arithmetic, `int8_mask`) are accepted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from evomerge_merging.methods.registry import Block, Kernel, PerModel, View, merge_method
from evomerge_merging.numerics.folds import Sums
from evomerge_merging.numerics.selection import KEEP_ALL, Cut, Drawn, cuts

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from evomerge_merging.native.reader import Reader
    from evomerge_models.dtypes import ElementType
else:
    from evomerge_merging.torch_later import torch

_EPSILON = 1e-8


class Keep(Protocol):
    """What of a tensor is kept."""

    def apply(self, values: Tensor, start: int) -> Tensor:
        """A piece that begins at element `start`, with zeros for what is not kept; `values` may be written into."""
        ...


@dataclass(frozen=True)
class Thinning:
    """What the whole tensor tells of thinning it out.

    Attributes:
        cuts: for each task vector, what is kept.
        factors: for each task vector, what makes up for what is not kept.

    """

    cuts: Sequence[Keep]
    factors: Sequence[float]

    def kept(self, density: Sequence[float]) -> list[Keep | None]:
        """What is kept of each; None where that is all."""
        return [None if share >= 1.0 else cut for cut, share in zip(self.cuts, density, strict=True)]

    def apply(self, i: int, delta: Tensor, start: int, density: float) -> Tensor:
        """A piece of the i-th task vector, thinned out, not yet rescaled; `delta` may be written into."""
        return delta if density >= 1.0 else self.cuts[i].apply(delta, start)


def thin_by_magnitude(view: View, *, density: Sequence[float], rescale: bool) -> Thinning:
    """Finds the `int(density * size)` largest magnitudes of each task vector, exactly."""
    if all(share >= 1.0 for share in density):
        return Thinning([KEEP_ALL] * len(density), [1.0] * len(density))
    counts = [int(min(share, 1.0) * view.size) for share in density]
    return rescaled(view, density, magnitude_cuts(view, counts), rescale=rescale)


def magnitude_cuts(view: View, counts: Sequence[int]) -> list[Cut]:
    """Cuts that keep the `counts[i]` largest magnitudes of task vectors; several for each, in a row, as there are."""
    reader = view.native

    def magnitudes(start: int, stop: int) -> Any:
        found: Any = (
            [delta.abs_() for delta in deltas_of(view, start, stop)]
            if reader is None
            else reader.magnitudes(start, stop)
        )
        return [values for values in found for _ in range(len(counts) // len(found))]

    def scan(
        start: int, stop: int, which: Sequence[int], low: Sequence[float], high: Sequence[float]
    ) -> tuple[Any, list[Any]]:
        assert reader is not None
        each = len(counts) // reader.inputs
        return reader.scan(start, stop, [i // each for i in which], low, high)

    return cuts(magnitudes, view.pieces(), view.size, counts, scan if reader is not None else None)


def thin_at_random(view: View, *, density: Sequence[float], rescale: bool) -> Thinning:
    """Drops each element with the same probability, at random; masks are drawn again wherever they are needed."""
    block = view.block(0, 0)
    keep: list[Keep] = [
        KEEP_ALL if share >= 1.0 else Drawn(block.masks[i], max(0.0, share)) for i, share in enumerate(density)
    ]
    return rescaled(view, density, keep, rescale=rescale)


def deltas_of(view: View, start: int, stop: int) -> list[Tensor]:
    """The inputs less the base; where there is none, as they are (which then must not be written into)."""
    tensors, base = view.read(start, stop)
    return [tensor - base for tensor in tensors] if base is not None else tensors


def rescaled(view: View, density: Sequence[float], found: Sequence[Keep], *, rescale: bool) -> Thinning:
    """With the factors that give each task vector its L1 norm back (on average 1 / density at random)."""
    thinning = Thinning(found, [1.0] * len(density))
    thinned = [i for i, share in enumerate(density) if share < 1.0]
    if not rescale or not thinned:
        return thinning
    sums = Sums(*[f"{name}{i}" for i in thinned for name in ("all", "kept")])
    if view.native is not None:
        for start, stop in view.native.long_pieces(view.size):
            cells = view.native.thinned_sums(start, stop, thinning.kept(density))[:, thinned]
            sums.add_cells(*cells.reshape(len(cells), -1).T.tolist())
    else:
        for start, stop in view.pieces():
            deltas = deltas_of(view, start, stop)
            for i in thinned:
                magnitudes = deltas[i].abs()
                sums.add(**{f"all{i}": magnitudes})
                sums.add(**{f"kept{i}": thinning.apply(i, magnitudes, start, density[i])})
    factors = [1.0] * len(density)
    for i in thinned:
        whole, part = sums[f"all{i}"], sums[f"kept{i}"]
        factors[i] = whole / part if min(whole, part) > _EPSILON else 1.0
    return Thinning(found, factors)


def merge_task_vectors(
    tensors: Sequence[Tensor],
    base: Tensor,
    block: Block,
    *,
    elect: bool,
    weight: Sequence[float],
    density: Sequence[float],
    normalize: bool,
    scale: float,
) -> Tensor:
    """One piece of any method of the family; `block.statistics` is a `Thinning`, None where nothing is thinned out."""
    weighted: list[Tensor] = []
    thinning: Thinning | None = block.statistics
    for i, tensor in enumerate(tensors):
        delta = tensor - base
        factor = weight[i]
        if thinning is not None:
            delta = thinning.apply(i, delta, block.start, density[i])
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


def task_vector_kernel(*, elect: bool) -> Kernel:
    """`merge_task_vectors` by the native kernels."""

    def kernel(
        reader: Reader,
        block: Block,
        dtype: ElementType,
        *,
        weight: Sequence[float],
        density: Sequence[float],
        normalize: bool,
        lambda_: float,
        **_: Any,
    ) -> Any:
        found: Thinning | None = block.statistics
        factors = found.factors if found is not None else [1.0] * len(weight)
        total = sum(weight)
        return reader.task_vectors(
            block.start, block.stop,
            found.kept(density) if found is not None else [None] * len(weight),
            [share * factor for share, factor in zip(weight, factors, strict=True)], weight, dtype,
            scale=lambda_, divide=1.0 / total if normalize and abs(total) > _EPSILON else 1.0,
            elect=elect, normalize=normalize,
        )  # fmt: skip

    return kernel


def _disjoint_sum(weighted: Sequence[Tensor], total: Tensor, weight: Sequence[float], *, normalize: bool) -> Tensor:
    """Only changes that have the sign of the total (plus where it is zero) count, and only their weights divide."""
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
        result.div_(divisor.add_(divisor.abs().le_(_EPSILON)))
    return result.mul_(sign)


def _magnitude_statistics(view: View, *, density: Sequence[float], rescale: bool, **_: Any) -> Thinning:
    return thin_by_magnitude(view, density=density, rescale=rescale)


def _random_statistics(view: View, *, density: Sequence[float], rescale: bool, **_: Any) -> Thinning:
    return thin_at_random(view, density=density, rescale=rescale)


@merge_method("task_arithmetic", kernel=task_vector_kernel(elect=False))
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
        elect=False, weight=weight, density=density, normalize=normalize, scale=lambda_,
    )  # fmt: skip


@merge_method("ties", statistics=_magnitude_statistics, kernel=task_vector_kernel(elect=True))
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
        elect=True, weight=weight, density=density, normalize=normalize, scale=lambda_,
    )  # fmt: skip


@merge_method("dare_linear", statistics=_random_statistics, kernel=task_vector_kernel(elect=False))
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
        elect=False, weight=weight, density=density, normalize=normalize, scale=lambda_,
    )  # fmt: skip


@merge_method("dare_ties", statistics=_random_statistics, kernel=task_vector_kernel(elect=True))
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
        elect=True, weight=weight, density=density, normalize=normalize, scale=lambda_,
    )  # fmt: skip
