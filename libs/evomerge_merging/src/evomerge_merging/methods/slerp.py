"""Spherical interpolation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evomerge_merging.methods.elementwise import weighted_sum
from evomerge_merging.methods.registry import Block, View, merge_method
from evomerge_merging.numerics.folds import Sums

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from evomerge_merging.native.reader import Reader
    from evomerge_models.dtypes import ElementType

    Bytes = np.ndarray[Any, Any]

_NEARLY_PARALLEL = 0.9995
_EPSILON = 1e-8


@dataclass(frozen=True)
class Weights:
    """What the interpolation comes to: base * first + other * second."""

    first: float
    second: float


def _interpolation(view: View, *, t: float) -> Weights:
    """Folds norms and inner product over the tensor.

    Nearly parallel or opposite tensors (|cosine| > 0.9995), and tensors of zeros, are interpolated in a straight line,
    so the result is always finite.
    """
    sums = Sums("aa", "bb", "ab")
    if view.native is not None:
        for start, stop in view.native.long_pieces(view.size):
            sums.add_cells(*view.native.inner_products(start, stop).T.tolist())
    else:
        for start, stop in view.pieces():
            (other,), base = view.read(start, stop)
            assert base is not None
            sums.add(aa=base * base, bb=other * other, ab=base * other)
    norms = math.sqrt(sums["aa"]), math.sqrt(sums["bb"])
    if min(norms) <= _EPSILON:
        return Weights(1.0 - t, t)
    cosine = max(-1.0, min(1.0, sums["ab"] / (norms[0] * norms[1])))
    if abs(cosine) > _NEARLY_PARALLEL:
        return Weights(1.0 - t, t)
    angle = math.acos(cosine)
    return Weights(math.sin((1.0 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle))


def _slerp_kernel(reader: Reader, block: Block, dtype: ElementType, *, t: float) -> Bytes:
    weights: Any = block.statistics
    return reader.weighted_sum(block.start, block.stop, [weights.first, weights.second], dtype)


@merge_method("slerp", statistics=_interpolation, kernel=_slerp_kernel)
def slerp(tensors: Sequence[Tensor], base: Tensor, block: Block, *, t: float) -> Tensor:
    """Interpolates along the arc between base (t = 0) and the other model (t = 1), each tensor as one vector.

    Shoemake 1985. The angle is that between the tensors; their lengths are interpolated along.
    """
    weights: Any = block.statistics
    return weighted_sum([base, tensors[0]], [weights.first, weights.second])
