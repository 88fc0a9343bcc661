"""Spherical interpolation."""

from __future__ import annotations

import math

from evomerge_merging.methods.forms import WeightedSum
from evomerge_merging.methods.registry import merge_method
from evomerge_merging.methods.view import Block, View

_NEARLY_PARALLEL = 0.9995
_EPSILON = 1e-8


def _interpolation(view: View, *, t: float) -> WeightedSum:
    """Finds the weights of both ends from norms and inner product of the whole tensor.

    Nearly parallel or opposite tensors (|cosine| > 0.9995), and tensors of zeros, are interpolated in a straight line,
    so the result is always finite.
    """
    straight = WeightedSum([1.0 - t, t])
    first, second, both = view.inner_products()
    norms = math.sqrt(first), math.sqrt(second)
    if min(norms) <= _EPSILON:
        return straight
    cosine = max(-1.0, min(1.0, both / (norms[0] * norms[1])))
    if abs(cosine) > _NEARLY_PARALLEL:
        return straight
    angle = math.acos(cosine)
    return WeightedSum([math.sin((1.0 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)])


@merge_method("slerp", statistics=_interpolation)
def slerp(block: Block, *, t: float) -> WeightedSum:
    """Interpolates along the arc between base (t = 0) and the other model (t = 1), each tensor as one vector.

    Shoemake 1985. The angle is that between the tensors; their lengths are interpolated along.
    """
    found: WeightedSum = block.statistics
    return found
