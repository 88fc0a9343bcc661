"""Methods that look at one element at a time."""

from __future__ import annotations

from evomerge_merging.methods.forms import WeightedSum, shares
from evomerge_merging.methods.registry import PerModel, merge_method


@merge_method("linear")
def linear(*, weight: PerModel[float], normalize: bool = True) -> WeightedSum:
    """Weighted sum of the models, by default divided by the sum of the weights.

    Model soups (Wortsman et al. 2022, arXiv:2203.05482). A sum of weights near zero is not divided by.
    """
    return WeightedSum(shares(weight, normalize=normalize))


@merge_method("passthrough")
def passthrough(*, scale: PerModel[float] = (1.0,)) -> WeightedSum:
    """The one model as it is, or times `scale`: for putting layers of several models on top of each other."""
    return WeightedSum(scale)


@merge_method("frankenmerge")
def frankenmerge(*, scale: PerModel[float] = (1.0,)) -> WeightedSum:
    """Layers drawn from different models, slice by slice; the same as passthrough."""
    return WeightedSum(scale)


@merge_method("dfs")
def dfs(*, scale: PerModel[float] = (1.0,)) -> WeightedSum:
    """A path through the layers of all models; `scale` of a slice multiplies the hidden state that enters it.

    Data-flow space of Akiba et al. 2024 (arXiv:2403.13187). The plan turns the scale of the hidden state into factors
    of single tensors (see `architecture.hop_factors`), so that the result is an ordinary model.
    """
    return WeightedSum(scale)
