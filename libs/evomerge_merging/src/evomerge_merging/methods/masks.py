"""Masking or disturbing one model: drop a share of its changes or weights, put its changes in disorder, add noise.

As `masking.mask_input_with_mask_rate`, streamed. A recipe's `weight_mask` puts masks around its inputs. Random masks
with rescaling are DARE's (Yu et al. 2023, arXiv:2311.03099) without its correction of the norm. `permute_delta` and
`noise_delta` make a run's controls: what a task vector's size does without what it says.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from evomerge_common.domain.methods import MASK_STRATEGIES
from evomerge_common.errors import RecipeError, did_you_mean
from evomerge_merging.methods.registry import merge_method
from evomerge_merging.methods.view import Block, View
from evomerge_merging.numerics.folds import CELL, Sums
from evomerge_merging.numerics.random_words import keep
from evomerge_merging.numerics.selection import Cut

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    from evomerge_merging.torch_later import torch


def _check(*, rate: float, strategy: str, rescale: bool) -> None:
    if not 0.0 <= rate <= 1.0:
        raise RecipeError(f"a mask's rate is a share from 0 to 1, not {rate:g}", ("parameters", "rate"))
    if strategy not in MASK_STRATEGIES:
        hint = did_you_mean(strategy, MASK_STRATEGIES)
        raise RecipeError(f"unknown mask strategy {strategy!r}; {hint}", ("parameters", "strategy"))


def _cut(view: View, *, rate: float, strategy: str, rescale: bool) -> Cut | None:
    """Finds the cut that drops exactly `int(rate * size)` elements, the smallest."""
    if strategy == "random" or rate == 0.0:
        return None
    return view.magnitude_cuts([view.size - int(rate * view.size)])[0]


def _masked(values: Tensor, block: Block, rate: float, strategy: str, *, rescale: bool) -> Tensor:
    if rate == 0.0:
        return values
    if strategy == "random":
        result = values * torch.from_numpy(keep(block.words(0), 1.0 - rate))
    else:
        result = block.statistics.apply(values, block.start)
    return result / (1.0 - rate) if rescale and rate < 1.0 else result


@merge_method("mask_delta", statistics=_cut, check=_check)
def mask_delta(
    tensors: Sequence[Tensor],
    base: Tensor,
    block: Block,
    *,
    rate: float,
    strategy: str = "random",
    rescale: bool = True,
) -> Tensor:
    """The base plus what is left of the model's changes when a share of them is dropped."""
    if rate == 0.0:
        return tensors[0]
    return base + _masked(tensors[0] - base, block, rate, strategy, rescale=rescale)


@merge_method("mask_weights", statistics=_cut, check=_check)
def mask_weights(
    tensors: Sequence[Tensor], block: Block, *, rate: float, strategy: str = "random", rescale: bool = True
) -> Tensor:
    """What is left of the model's weights when a share of them is set to zero."""
    return _masked(tensors[0], block, rate, strategy, rescale=rescale)


@merge_method("noise")
def noise(tensors: Sequence[Tensor], block: Block, *, scale: float) -> Tensor:
    """The model's weights plus normal deviates of standard deviation `scale`, by the recipe's seed."""
    return tensors[0] + _deviates(block).mul_(scale).to(tensors[0].dtype)


def _deviates(block: Block) -> Tensor:
    """Standard normal deviates, float64, one for each element of the piece."""
    uniform = (block.words(0).double() + (2.0**31 + 0.5)) / 2.0**32
    return torch.erfinv(2.0 * uniform - 1.0).mul_(math.sqrt(2.0))


def _noise_scale(view: View) -> float:
    """Finds the factor that gives the deviates of the whole tensor the norm of the model's changes."""
    sums = Sums("change", "noise")
    for start, stop in view.pieces():
        sums.add(change=view.changes(start, stop)[0].square(), noise=_deviates(view.block(start, stop)).square_())
    return math.sqrt(sums["change"] / sums["noise"]) if sums["noise"] > 0.0 else 0.0


@merge_method("noise_delta", statistics=_noise_scale)
def noise_delta(tensors: Sequence[Tensor], base: Tensor, block: Block) -> Tensor:
    """The base plus normal deviates that have, tensor by tensor, the norm of the model's changes, by the seed.

    As far from the base as the model is, in a direction that means nothing.
    """
    return base + _deviates(block).mul_(block.statistics).to(base.dtype)


@merge_method("permute_delta", cells=True)
def permute_delta(tensors: Sequence[Tensor], base: Tensor, block: Block) -> Tensor:
    """The base plus the model's changes in another order, by the recipe's seed: each tensor's norm is kept.

    Elements change places within every `CELL` consecutive ones of the flattened tensor, sorted by a random word of 16
    bits each (equals keep their order), so that no more than a piece need be held.
    """
    change, drawn = tensors[0] - base, block.words(0, 16).numpy()
    full = drawn.size // CELL * CELL
    order = np.argsort(drawn[:full].reshape(-1, CELL), axis=1, kind="stable")
    order += np.arange(0, full, CELL)[:, None]
    rest = np.argsort(drawn[full:], kind="stable") + full
    return base + change[torch.from_numpy(np.concatenate([order.reshape(-1), rest]))]
