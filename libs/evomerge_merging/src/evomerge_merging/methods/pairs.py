"""Methods that bring one model into another: nearswap, arcee_fusion, expo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evomerge_merging.methods.registry import merge_method
from evomerge_merging.methods.view import Block, View
from evomerge_merging.numerics.rows import along_rows, row_length, row_ranges
from evomerge_merging.numerics.selection import cuts

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    from evomerge_merging.torch_later import torch

_SMALL_TENSOR = 1 << 14


@merge_method("nearswap")
def nearswap(tensors: Sequence[Tensor], base: Tensor, *, t: float) -> Tensor:
    """Moves the base towards the other model where both are near: all the way within `t`, less the further away.

    alchemonaut's NearSwap: the other's share is t / |difference|, at most 1.
    """
    share = (base - tensors[0]).abs_().clamp_(min=1e-6).reciprocal_().mul_(t).clamp_(0.0, 1.0)
    return (tensors[0] * share).add_(base * (1.0 - share))


@merge_method("expo")
def expo(tensors: Sequence[Tensor], base: Tensor, *, alpha: float = 0.3) -> Tensor:
    """Extrapolates what a model learned: base + (1 + alpha) (model - base).

    Weak-to-strong extrapolation (ExPO, Zheng et al. 2024, arXiv:2404.16792): the base is the model before alignment
    (the first input, if the recipe names none), the input the one after it; an alpha below 0 interpolates.
    """
    return (tensors[0] - base).mul_(1.0 + alpha).add_(base)


@dataclass(frozen=True)
class _Importance:
    """Each row's divergence, and from which importance on the other model's elements are taken."""

    divergence: Tensor
    threshold: float
    row: int

    def of(self, tensors: Sequence[Tensor], base: Tensor, start: int, stop: int) -> Tensor:
        return (tensors[0] - base).abs_().mul_(along_rows(self.divergence, self.row, start, stop))


def _importance(view: View) -> _Importance | None:
    """Threshold: median + 1.5 interquartile range of the importance, exact, quartiles rounded down to an element."""
    row = row_length(view.shape)
    if not view.size:
        return None
    divergences = []
    for start, stop in row_ranges(view.shape):
        (model,), base = view.read(start, stop)
        assert base is not None
        ours, theirs = (torch.softmax(values.reshape(-1, row), -1).add_(1e-8) for values in (model, base))
        divergences.append((ours * (ours / theirs).log_()).sum(-1))
    found = _Importance(torch.cat(divergences), 0.0, row)

    def importance(start: int, stop: int) -> Tensor:
        tensors, base = view.read(start, stop)
        assert base is not None
        return found.of(tensors, base, start, stop)

    places = [int(share * (view.size - 1)) for share in (0.25, 0.5, 0.75)]
    if view.size <= _SMALL_TENSOR:
        ordered = importance(0, view.size).sort().values
        low, median, high = (ordered[place].item() for place in places)
    else:
        one = cuts(
            lambda a, b: [importance(a, b)] * 3, view.pieces(), view.size, [view.size - place for place in places]
        )
        low, median, high = (cut.threshold for cut in one)
    return _Importance(found.divergence, median + 1.5 * (high - low), row)


@merge_method("arcee_fusion", statistics=_importance)
def arcee_fusion(tensors: Sequence[Tensor], base: Tensor, block: Block) -> Tensor:
    """Takes from the other model only the changes that stand out, the rest from the base.

    Arcee Fusion as mergekit has it: a change's importance is its size times the Kullback-Leibler divergence between the
    softmaxes of its row in both models; what exceeds median + 1.5 interquartile ranges is taken.
    """
    found: Any = block.statistics
    if found is None:
        return base
    taken = found.of(tensors, base, block.start, block.stop).ge_(found.threshold)
    return (tensors[0] - base).mul_(taken).add_(base)
