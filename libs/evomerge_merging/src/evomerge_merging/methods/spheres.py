"""Means on the sphere: nuslerp, multislerp, karcher.

All are weighted sums of the inputs, with weights that follow from the inputs' lengths and inner products; so one pass
over the tensor finds these, and the merge itself is elementwise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from evomerge_common.errors import RecipeError
from evomerge_merging.methods.forms import weighted_sum
from evomerge_merging.methods.registry import PerModel, merge_method
from evomerge_merging.methods.view import Block, View
from evomerge_merging.numerics.folds import Sums
from evomerge_merging.numerics.rows import along_columns, along_rows, ranges_of, row_length, row_ranges

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    from evomerge_merging.torch_later import torch

_NEARLY_PARALLEL = 1.0 - 1e-8
_SMALLEST_NORM = 1e-7
Matrix = np.ndarray[Any, np.dtype[np.float64]]


def gram(view: View) -> Matrix:
    """Inner products of the inputs (of their task vectors where the method has a base), n × n, float64."""
    sums: Sums | None = None
    count = 0
    for start, stop in view.pieces():
        tensors = view.changes(start, stop)
        count = len(tensors)
        pairs = [(i, j) for i in range(count) for j in range(i, count)]
        sums = sums or Sums(*[f"{i}.{j}" for i, j in pairs])
        for i, j in pairs:
            sums.add(**{f"{i}.{j}": tensors[i] * tensors[j]})
    if sums is None:
        return np.zeros((0, 0))
    return np.array([[sums[f"{min(i, j)}.{max(i, j)}"] for j in range(count)] for i in range(count)])


def _added(tensors: Sequence[Tensor], base: Tensor | None, weights: Sequence[float]) -> Tensor:
    """The weighted sum of the inputs, or the base plus that of their task vectors."""
    if base is None:
        return weighted_sum(tensors, weights)
    return weighted_sum([tensor - base for tensor in tensors], weights).add_(base)


# ---- two inputs ----


@dataclass(frozen=True)
class _Arc:
    """Weights of the two inputs: one pair, or one for each row, or one for each column."""

    first: Tensor
    second: Tensor
    row: int = 0
    columns: bool = False

    def at(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        if self.columns:
            return along_columns(self.first, start, stop), along_columns(self.second, start, stop)
        if self.row:
            return along_rows(self.first, self.row, start, stop), along_rows(self.second, self.row, start, stop)
        return self.first, self.second


def _arc(dots: Tensor, norms: tuple[Tensor, Tensor], t: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Weights of both ends from inner products and lengths, all float64; in a straight line where they are parallel."""
    lengths = [norm.clamp_min(_SMALLEST_NORM) for norm in norms]
    cosine = (dots / (lengths[0] * lengths[1])).clamp(-1.0, 1.0)
    straight = cosine.abs() >= _NEARLY_PARALLEL
    angle = torch.where(straight, torch.ones_like(cosine), cosine.arccos())
    first, second = (torch.sin(share * angle) / torch.sin(angle) for share in (1.0 - t, t))
    ends = torch.where(straight, 1.0 - t, first), torch.where(straight, t, second)
    return ends[0].to(dtype), ends[1].to(dtype)


def _share(weight: Sequence[float]) -> float:
    return weight[1] / sum(weight) if abs(sum(weight)) >= 1e-6 else 0.5


def _arc_statistics(
    view: View, *, weight: Sequence[float], nuslerp_row_wise: bool, nuslerp_flatten: bool
) -> _Arc | None:
    t = _share(weight)
    if not view.size:
        return None
    if nuslerp_flatten or len(view.shape) < 2:
        products = torch.from_numpy(gram(view))
        ends = _arc(products[0, 1], (products[0, 0].sqrt(), products[1, 1].sqrt()), t, torch.float64)
        return _Arc(*ends)
    row = view.size // view.shape[0] if nuslerp_row_wise else row_length(view.shape)
    found: list[tuple[Tensor, ...]] = []
    for start, stop in ranges_of(view.size, row) if nuslerp_row_wise else row_ranges(view.shape):
        one, other = (values.reshape(-1, row).double() for values in view.changes(start, stop))
        axis = 0 if nuslerp_row_wise else 1
        found.append(tuple((a * b).sum(axis) for a, b in ((one, other), (one, one), (other, other))))
        dtype = view.read(start, start + 1)[0][0].dtype
    parts = zip(*found, strict=True)
    dots, *squares = (torch.stack(part).sum(0) if nuslerp_row_wise else torch.cat(part) for part in parts)
    ends = _arc(dots, (squares[0].sqrt(), squares[1].sqrt()), t, dtype)
    return _Arc(*ends, row=row, columns=nuslerp_row_wise)


@merge_method("nuslerp", statistics=_arc_statistics)
def nuslerp(
    tensors: Sequence[Tensor],
    base: Tensor | None,
    block: Block,
    *,
    weight: PerModel[float],
    nuslerp_row_wise: bool = False,
    nuslerp_flatten: bool = True,
) -> Tensor:
    """Interpolates two models, or with a base their task vectors, along the arc, by the ratio of their weights.

    Shoemake 1985, as mergekit's NuSLERP has it: by tensor (`nuslerp_flatten`), else by rows of the last dimension, or
    with `nuslerp_row_wise` by what lies along the first. Parallel and opposite ones are interpolated in a straight
    line; weights that add up to zero count half and half.
    """
    arc: Any = block.statistics
    if arc is None:
        return tensors[0]
    first, second = arc.at(block.start, block.stop)
    one, other = tensors if base is None else (tensors[0] - base, tensors[1] - base)
    result = (one * first).add_(other * second)
    return result if base is None else result.add_(base)


# ---- any number of inputs ----


def _check_sum(*, weight: Sequence[float], normalize_weights: bool, **_: Any) -> None:
    if normalize_weights and abs(sum(weight)) < 1e-8:
        raise RecipeError("the weights add up to zero: change one, or set normalize_weights: false", ("parameters",))


def _barycentre(view: View, *, weight: Sequence[float], normalize_weights: bool, eps: float) -> list[float]:
    """Weights of the inputs. See `multislerp`."""
    products = gram(view)
    if not len(products):
        return list(weight)
    if len(products) == 1:
        return [1.0]
    shares = np.array(weight) / (sum(weight) if normalize_weights else 1.0)
    norms = np.sqrt(np.diag(products))
    units = shares / (norms + eps)
    length = math.sqrt(max(0.0, float(units @ products @ units)))
    if length < max(eps, 1e-6):
        return [float(share) for share in shares]
    return [float(unit) for unit in units * (float(norms @ shares) / length)]


@merge_method("multislerp", statistics=_barycentre, check=_check_sum)
def multislerp(
    tensors: Sequence[Tensor],
    base: Tensor | None,
    block: Block,
    *,
    weight: PerModel[float],
    normalize_weights: bool = True,
    eps: float = 1e-8,
) -> Tensor:
    """Weighted mean on the sphere of any number of models, or with a base of their task vectors.

    Goddard's Multi-SLERP: project to the tangent space at the weighted mean of the unit vectors, average there, come
    back. At that very point the tangents' average is zero, so what it comes to is the direction of that mean, times the
    weighted mean of the lengths. Directions that cancel out are averaged in a straight line.
    """
    return _added(tensors, base, block.statistics)


def _karcher_weights(view: View, *, max_iter: int, tol: float) -> list[float]:
    """Karcher's mean of the unit vectors as a combination of the inputs, by fixed-point steps in their span."""
    products = gram(view)
    count = len(products)
    norms = np.sqrt(np.diag(products))
    valid = np.flatnonzero(norms > tol)
    if count < 2 or not len(valid):
        return [1.0 / max(1, count)] * count
    share = 1.0 / len(valid)
    cosines = products[np.ix_(valid, valid)] / np.outer(norms[valid], norms[valid])

    def unit(combination: Matrix) -> Matrix | None:
        length = math.sqrt(max(0.0, float(combination @ cosines @ combination)))
        return combination / length if length >= max(tol, 1e-6) else None

    eye = np.eye(len(valid))
    mean = unit(np.full(len(valid), share))
    mean = eye[0] if mean is None else mean
    for _ in range(max_iter):
        tangent = np.zeros(len(valid))
        for i, cosine in enumerate(np.clip(cosines @ mean, -1.0, 1.0)):
            angle = math.acos(float(cosine))
            if angle >= tol and math.sin(angle) > 1e-4:  # towards the opposite point no direction is the shortest
                tangent += share * angle / math.sin(angle) * (eye[i] - cosine * mean)
        length = math.sqrt(max(0.0, float(tangent @ cosines @ tangent)))
        if length < tol:
            break
        moved = unit(math.cos(length) * mean + math.sin(length) / length * tangent)
        if moved is None:
            break
        mean = moved
    weights = np.zeros(count)
    weights[valid] = mean / norms[valid] * (float(norms.sum()) / count)
    return [float(value) for value in weights]


@merge_method("karcher", statistics=_karcher_weights)
def karcher(tensors: Sequence[Tensor], block: Block, *, max_iter: int = 10, tol: float = 1e-5) -> Tensor:
    """The point of the sphere with the least sum of squared arcs to all models, times their mean length.

    Riemannian centre of mass (Karcher 1977), each tensor as one vector, all models alike; tensors shorter than `tol`
    have no direction and count for the length alone.
    """
    return weighted_sum(tensors, block.statistics)
