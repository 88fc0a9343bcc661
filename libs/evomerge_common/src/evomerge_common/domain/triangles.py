"""Linear algebra of small positive definite matrices, in plain floats and a fixed order: the same on every machine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import mul


def cholesky(matrix: Sequence[Sequence[float]]) -> list[list[float]]:
    """Computes the lower triangle L with L·Lᵀ = a positive definite matrix, of which the lower triangle is given."""
    lower: list[list[float]] = []
    for row in matrix:
        found: list[float] = []
        for above, value in zip(lower, row, strict=False):
            found.append((value - sum(map(mul, found, above))) / above[-1])
        found.append(math.sqrt(max(1e-12, row[-1] - sum(map(mul, found, found)))))
        lower.append(found)
    return lower


def solve_forward(lower: Sequence[Sequence[float]], right: Sequence[float]) -> list[float]:
    """Computes the x with L·x = right."""
    found: list[float] = []
    for row, value in zip(lower, right, strict=True):
        found.append((value - sum(map(mul, row, found))) / row[-1])
    return found
