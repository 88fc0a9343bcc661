"""Methods that look at one element at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from evomerge_merging.methods.registry import Block, PerModel, merge_method

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from evomerge_merging.native.reader import Reader
    from evomerge_models.dtypes import ElementType

    Bytes = np.ndarray[Any, Any]

_EPSILON = 1e-8


def _linear_kernel(
    reader: Reader, block: Block, dtype: ElementType, *, weight: Sequence[float], normalize: bool
) -> Bytes:
    return reader.weighted_sum(block.start, block.stop, _shares(weight, normalize=normalize), dtype)


def _scaled_kernel(reader: Reader, block: Block, dtype: ElementType, *, scale: Sequence[float]) -> Bytes:
    return reader.weighted_sum(block.start, block.stop, scale, dtype)


def _shares(weight: Sequence[float], *, normalize: bool) -> list[float]:
    total = sum(weight)
    scale = 1.0 / total if normalize and abs(total) > _EPSILON else 1.0
    return [w * scale for w in weight]


@merge_method("linear", kernel=_linear_kernel)
def linear(tensors: Sequence[Tensor], *, weight: PerModel[float], normalize: bool = True) -> Tensor:
    """Weighted sum of the models, by default divided by the sum of the weights.

    Model soups (Wortsman et al. 2022, arXiv:2203.05482). A sum of weights near zero is not divided by.
    """
    return weighted_sum(tensors, _shares(weight, normalize=normalize))


def weighted_sum(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The sum of `weights[i] * tensors[i]`, in order.

    Multiplication and addition are separate on purpose: a fused multiply-add rounds once in a vector's lanes but not
    always in the rest of a piece, and the result would depend on where pieces begin.
    """
    result = tensors[0] * weights[0]
    for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
        result.add_(tensor * weight)
    return result


@merge_method("passthrough", kernel=_scaled_kernel)
def passthrough(tensors: Sequence[Tensor], *, scale: PerModel[float] = (1.0,)) -> Tensor:
    """The one model as it is, or times `scale`: for putting layers of several models on top of each other."""
    return tensors[0] * scale[0] if scale[0] != 1.0 else tensors[0]


@merge_method("frankenmerge", kernel=_scaled_kernel)
def frankenmerge(tensors: Sequence[Tensor], *, scale: PerModel[float] = (1.0,)) -> Tensor:
    """Layers drawn from different models, slice by slice; the same as passthrough."""
    return passthrough(tensors, scale=scale)


@merge_method("dfs", kernel=_scaled_kernel)
def dfs(tensors: Sequence[Tensor], *, scale: PerModel[float] = (1.0,)) -> Tensor:
    """A path through the layers of all models; `scale` of a slice multiplies the hidden state that enters it.

    Data-flow space of Akiba et al. 2024 (arXiv:2403.13187). The plan turns the scale of the hidden state into factors
    of single tensors (see `architecture.hop_factors`), so that the result is an ordinary model.
    """
    return passthrough(tensors, scale=scale)
