"""Matrices as products of thin factors: the truncated singular value decomposition, exact or randomised."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    from evomerge_merging.torch_later import torch

_OVERSAMPLING = 16
_POWER_STEPS = 3
_EXACT_SIDE = 384
"""Up to this many rows or columns the exact decomposition costs little."""


@dataclass(frozen=True)
class Product:
    """`left` (rows, rank) times `right` (rank, columns), float32, in place of a matrix.

    Attributes:
        squared_norm: of the matrix (Frobenius).
        squared_error: of what the product lacks.

    """

    left: Tensor
    right: Tensor
    squared_norm: float
    squared_error: float

    @property
    def rank(self) -> int:
        """Columns of `left`."""
        return int(self.left.shape[1])

    @property
    def relative_error(self) -> float:
        """Frobenius norm of what is lacking, as a share of the matrix's."""
        return math.sqrt(self.squared_error / self.squared_norm) if self.squared_norm else 0.0


def decompose(matrix: Tensor, rank: int, *, key: str) -> Product:
    """The best product of a rank, or one close to it.

    Small matrices, and ranks near the full one, are decomposed exactly; others by a randomised range finder with power
    steps (Halko, Martinsson & Tropp 2011), whose error exceeds the best one's by a fraction of a percent.

    Args:
        matrix: (rows, columns), float32.
        rank: at most; a matrix of a lower rank gets that.
        key: of the random directions, so that the same matrix is decomposed alike everywhere.

    """
    side = min(matrix.shape)
    norm = float(matrix.to(torch.float64).square().sum())
    rank = min(rank, side)
    if side <= _EXACT_SIDE or rank + _OVERSAMPLING > side // 2:
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    else:
        basis = _range(matrix, rank + _OVERSAMPLING, key)
        small, s, v = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
        u = basis @ small
    found = _truncated(u, s, v, rank, norm)
    # Measured, not derived from the singular values: where nearly nothing is lost, those are float32's noise.
    lost = (matrix - found.left @ found.right).to(torch.float64).square().sum()
    return replace(found, squared_error=float(lost))


def reduce(left: Tensor, right: Tensor, rank: int | None) -> Product:
    """A product of given factors at a rank (None: the one that it has), exactly: only thin matrices are decomposed."""
    q1, r1 = torch.linalg.qr(left.to(torch.float64))
    q2, r2 = torch.linalg.qr(right.to(torch.float64).T)
    core = r1 @ r2.T
    norm = float(core.square().sum())
    rank = min(rank or left.shape[1], left.shape[0], right.shape[1])
    if rank >= left.shape[1]:
        return Product(left, right, norm, 0.0)
    u, s, v = torch.linalg.svd(core)
    return _truncated(q1 @ u, s, v @ q2.T, rank, norm)


def _range(matrix: Tensor, width: int, key: str) -> Tensor:
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little") >> 1
    directions = torch.randn(matrix.shape[1], width, generator=torch.Generator().manual_seed(seed))
    basis = torch.linalg.qr(matrix @ directions)[0]
    for _ in range(_POWER_STEPS):
        basis = torch.linalg.qr(matrix.T @ basis)[0]
        basis = torch.linalg.qr(matrix @ basis)[0]
    return basis


def _truncated(u: Tensor, s: Tensor, v: Tensor, rank: int, norm: float) -> Product:
    """Keeps the largest values, none of them nothing; each factor gets their square roots."""
    kept = max(1, min(rank, int((s > s[0] * 1e-7).sum()) if s[0] > 0 else 1))
    root = s[:kept].sqrt()
    left, right = (u[:, :kept] * root).float().contiguous(), (v[:kept] * root[:, None]).float().contiguous()
    error = max(0.0, norm - float(s[:kept].to(torch.float64).square().sum()))
    return Product(left, right, norm, error)
