"""Methods that let the models' agreement decide: SCE, Model Stock, and Reinforced Agent Merging (RAM)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evomerge_merging.methods.registry import merge_method
from evomerge_merging.methods.spheres import gram
from evomerge_merging.methods.view import Block, View
from evomerge_merging.numerics.folds import Sums
from evomerge_merging.numerics.rows import along_rows, row_length, row_ranges
from evomerge_merging.numerics.selection import KEEP_ALL, KEEP_NONE, Cut, cuts

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    from evomerge_merging.torch_later import torch

_SMALL = 1e-6


@dataclass(frozen=True)
class _Selection:
    """What is selected by variance, and each model's weight."""

    cut: Cut
    weights: Sequence[float]

    def apply(self, deltas: Sequence[Tensor], start: int) -> Sequence[Tensor]:
        """The task vectors at the selected elements, zero elsewhere."""
        if self.cut is KEEP_ALL:
            return deltas
        chosen = self.cut.apply(_variance(deltas), start).gt_(0.0)
        return [delta * chosen for delta in deltas]


def _variance(deltas: Sequence[Tensor]) -> Tensor:
    """Over the models, without Bessel's correction. By differences from the first: equal values give exactly zero."""
    count = len(deltas)
    shifted = [delta - deltas[0] for delta in deltas]
    mean = torch.zeros_like(deltas[0])
    for values in shifted:
        mean.add_(values)
    mean.mul_(1.0 / count)
    result = torch.zeros_like(mean)
    for values in shifted:
        result.add_(values.sub_(mean).square_())
    return result.mul_(1.0 / count)


def _select(view: View, *, select_topk: float, **_: Any) -> _Selection | None:
    if not view.size:
        return None
    cut = KEEP_ALL
    if select_topk < 1.0:
        varied = sum(int(_variance(view.changes(*piece)).count_nonzero()) for piece in view.pieces())
        wanted = int(varied * max(select_topk, 0.0))
        cut = KEEP_NONE
        if wanted:
            (cut,) = cuts(lambda a, b: [_variance(view.changes(a, b))], view.pieces(), view.size, [wanted])
    selection = _Selection(cut, ())
    count = len(view.read(0, 1)[0])
    sums = Sums(*[str(i) for i in range(count)])
    for start, stop in view.pieces():
        for i, delta in enumerate(selection.apply(view.changes(start, stop), start)):
            sums.add(**{str(i): delta * delta})
    energies = [sums[str(i)] / view.size for i in range(count)]
    whole = sum(energies)
    return _Selection(cut, [energy / whole for energy in energies] if whole >= _SMALL else [1.0 / count] * count)


@merge_method("sce", statistics=_select)
def sce(
    tensors: Sequence[Tensor], base: Tensor, block: Block, *, int8_mask: bool = False, select_topk: float = 1.0
) -> Tensor:
    """Select what varies most, weigh models by their change's energy, erase minority signs (arXiv:2408.07990).

    SCE of Wan et al. 2024. `select_topk` is the share of the elements that vary at all. As in mergekit, models count
    alike where the mean squares of their changes add up to less than 1e-6.
    """
    selection: Any = block.statistics
    if selection is None:
        return base
    deltas = selection.apply([tensor - base for tensor in tensors], block.start)
    total = deltas[0].clone()
    for delta in deltas[1:]:
        total.add_(delta)
    sign = torch.ones_like(total).copysign_(total.add_(0.0))  # plus where it is zero, minus zero included
    result, divisor = torch.zeros_like(total), torch.zeros_like(total)
    for delta, weight in zip(deltas, selection.weights, strict=True):
        agreeing = (delta * sign).clamp_(min=0.0)
        result.add_(agreeing * weight)
        divisor.add_(agreeing.gt_(0.0).mul_(weight))
    return result.div_(divisor.clamp_(min=_SMALL)).mul_(sign).add_(base)


def _stock_ratio(view: View, *, filter_wise: bool) -> Tensor:
    """How far to go from the base to the average: one number, or one for each row. float64 (of rows: the tensors')."""
    if not view.size:
        return torch.zeros(1)
    if not filter_wise or len(view.shape) < 2:
        return _ratio(torch.from_numpy(gram(view)))[None]
    row = row_length(view.shape)
    ratios = []
    for start, stop in row_ranges(view.shape):
        rows = torch.stack([delta.reshape(-1, row) for delta in view.changes(start, stop)], dim=1)
        products = (rows[:, :, None] * rows[:, None]).sum(-1).double()  # rows × models × models
        ratios.append(_ratio(products).to(rows.dtype))
    return torch.cat(ratios)


def _ratio(products: Tensor) -> Tensor:
    """Model Stock's ratio N cos / (1 + (N - 1) cos), from inner products (… × models × models)."""
    count = products.shape[-1]
    norms = products.diagonal(dim1=-2, dim2=-1).clamp(min=0.0).sqrt()
    cosines = (products / (norms[..., None] * norms[..., None, :]).clamp(min=_SMALL)).clamp(-1.0, 1.0)
    above = torch.triu_indices(count, count, 1)
    cosine = cosines[..., above[0], above[1]].mean(-1)
    divisor = 1.0 + (count - 1) * cosine
    singular = divisor.abs() < _SMALL
    return torch.where(singular, 0.0, count * cosine / torch.where(singular, 1.0, divisor))


@merge_method("model_stock", statistics=_stock_ratio)
def model_stock(tensors: Sequence[Tensor], base: Tensor, block: Block, *, filter_wise: bool = False) -> Tensor:
    """Between base and average, as far as the models' directions agree (Jang et al. 2024, arXiv:2403.19522).

    The ratio is t = N cos / (1 + (N - 1) cos), with the mean cosine between the N task vectors: of whole tensors, or
    (`filter_wise`) of each row of the last dimension. Where that is singular the base is kept.
    """
    found: Tensor = block.statistics
    ratio = found[0] if len(found) == 1 else found
    average = tensors[0].clone()
    for tensor in tensors[1:]:
        average.add_(tensor)
    average.mul_(1.0 / len(tensors))
    if ratio.dim():
        ratio = along_rows(ratio, block.size // len(ratio), block.start, block.stop)
    return (average * ratio).add_(base * (1.0 - ratio))


# ---- what each model alone changed ----


def _changed(deltas: Sequence[Tensor], epsilon: float) -> tuple[list[Tensor], Tensor]:
    """Finds which elements each model changed by more than `epsilon` (bool), and how many changed each (float)."""
    changed = [delta.abs().gt_(epsilon).bool() for delta in deltas]
    count = torch.zeros_like(deltas[0])
    for one in changed:
        count.add_(one)
    return changed, count


def _factors(view: View, *, r: float, alpha: float, epsilon: float) -> list[float]:
    """Finds by what each model's changes are multiplied where no other model changed anything."""
    sums: Sums | None = None
    count = 0
    for start, stop in view.pieces():
        changed, together = _changed(view.changes(start, stop), epsilon)
        count = len(changed)
        sums = sums or Sums(*[f"{kind}{i}" for i in range(count) for kind in ("alone", "shared")])
        for i, one in enumerate(changed):
            sums.add(**{f"alone{i}": (one & (together == 1)).float(), f"shared{i}": (one & (together > 1)).float()})
    if sums is None:
        return []
    ratios = [sums[f"shared{i}"] / max(1.0, sums[f"alone{i}"]) for i in range(count)]
    return [1.0 + r * min(alpha, ratio) for ratio in ratios]


def _reinforced(tensors: Sequence[Tensor], base: Tensor, epsilon: float, factors: Sequence[float]) -> Tensor:
    deltas = [tensor - base for tensor in tensors]
    changed, count = _changed(deltas, epsilon)
    alone = count == 1
    total = torch.zeros_like(base)
    for delta, one, factor in zip(deltas, changed, factors, strict=True):
        total.add_(delta.mul_(one).mul_(alone * (factor - 1.0) + 1.0))
    return total.div_(count.clamp_(min=1.0)).add_(base)


@merge_method("ram")
def ram(tensors: Sequence[Tensor], base: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    """The base plus the changes beyond `epsilon`, each averaged over the models that have it (arXiv:2601.13572).

    Reinforced Agent Merging (Yuan et al. 2026), for models tuned by reinforcement learning, whose changes are sparse:
    what one model alone changed is not diluted by the others.
    """
    return _reinforced(tensors, base, epsilon, [1.0] * len(tensors))


@merge_method("ramplus_tl", statistics=_factors)
def ramplus_tl(
    tensors: Sequence[Tensor], base: Tensor, block: Block, *, r: float = 0.1, alpha: float = 0.2, epsilon: float = 1e-5
) -> Tensor:
    """As ram, and what a model alone changed is made larger, the more of its changes are shared (arXiv:2601.13572).

    RAM+ with ratios of each tensor: the factor is 1 + r min(alpha, shared / alone), from numbers of elements.
    """
    return _reinforced(tensors, base, epsilon, block.statistics or [1.0] * len(tensors))
