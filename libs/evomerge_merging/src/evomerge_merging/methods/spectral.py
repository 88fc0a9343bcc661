"""Methods on the singular values of task vectors: whole matrices, in memory; other tensors get their average change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from evomerge_merging.methods.registry import PerModel, merge_method

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    from evomerge_merging.torch_later import torch


def _changes(tensors: Sequence[Tensor], base: Tensor, weight: Sequence[float]) -> list[Tensor]:
    return [(tensor - base).mul_(share) for tensor, share in zip(tensors, weight, strict=True)]


def _sum(changes: Sequence[Tensor]) -> Tensor:
    result = changes[0].clone()
    for change in changes[1:]:
        result.add_(change)
    return result


def _vectors(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.linalg.svd(matrix, full_matrices=False)  # type: ignore[no-any-return]


@merge_method("iso_c", whole=True)
def iso_c(tensors: Sequence[Tensor], base: Tensor, *, weight: PerModel[float] = (1.0,), lambda_: float = 1.0) -> Tensor:
    """Adds task vectors up and gives all their singular directions one length (Marczak et al. 2025, arXiv:2502.04959).

    Iso-C: of the sum's singular value decomposition U S V' the values are replaced by their mean; the result is
    base + lambda mean(S) U V'. Tensors that are no matrices get the average of the (weighted) task vectors.
    """
    total = _sum(_changes(tensors, base, weight))
    if base.dim() != 2:
        return total.mul_(lambda_ / len(tensors)).add_(base)
    left, values, right = _vectors(total)
    return (left @ right).mul_(values.mean() * lambda_).add_(base)


@merge_method("tsv", whole=True)
def tsv(tensors: Sequence[Tensor], base: Tensor, *, weight: PerModel[float] = (1.0,), lambda_: float = 1.0) -> Tensor:
    """Keeps each task's leading singular vectors and makes them orthogonal (Gargiulo et al. 2024, arXiv:2412.00081).

    TSV-Merge: of N tasks each keeps 1/N of the rank; the left and the right vectors of all tasks, side by side, are
    replaced by the nearest orthonormal ones (Procrustes), and the change is put together from these with the singular
    values as they were. Tensors that are no matrices get the average of the (weighted) task vectors.
    """
    changes = _changes(tensors, base, weight)
    rank = min(base.shape) // len(changes) if base.dim() == 2 else 0
    if rank == 0:
        return _sum(changes).mul_(lambda_ / len(changes)).add_(base)
    parts = [_vectors(change) for change in changes]
    # A direction of no length is arbitrary, and must not turn those of other tasks.
    real = torch.cat([part[1][:rank] > part[1][0] * (1e-7 * max(base.shape)) for part in parts])
    left = _nearest_orthonormal(torch.cat([part[0][:, :rank] for part in parts], dim=1) * real)
    right = _nearest_orthonormal(torch.cat([part[2][:rank] for part in parts]).T * real)
    values = torch.cat([part[1][:rank] for part in parts]) * real
    return ((left * values) @ right.T).mul_(lambda_).add_(base)


def _nearest_orthonormal(columns: Tensor) -> Tensor:
    left, _, right = _vectors(columns)
    return left @ right
