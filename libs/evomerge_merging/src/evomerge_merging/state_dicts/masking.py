"""Masking tensors and whole task vectors: drop a share of the elements, at random or the smallest.

Random masks with rescaling are DARE (Yu et al. 2023, arXiv:2311.03099): what is left is divided by its share, so that
the expected value of every element stays. Masks are drawn from a counter-based generator, so the same seed
gives the same mask whatever else was drawn, and the global random state is neither read nor changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from evomerge_common.domain.methods import MASK_STRATEGIES
from evomerge_common.errors import InvalidInput, did_you_mean
from evomerge_merging.numerics.random_words import keep, mask_key, words
from evomerge_merging.numerics.selection import Cut, cuts
from evomerge_merging.state_dicts.task_vector import StateDict, TaskVector

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    from evomerge_merging.torch_later import torch


def mask_input_with_mask_rate(
    input_tensor: Tensor,
    mask_rate: float,
    use_rescale: bool,
    mask_strategy: str,
    *,
    seed: int = 0,
    name: str = "",
) -> Tensor:
    """A copy of a tensor with a share of its elements set to zero.

    Args:
        input_tensor: of floats, any shape; it is not changed.
        mask_rate: share from 0 to 1 that is dropped: each element by itself ("random"), or exactly
            `int(mask_rate * numel)` elements, the smallest in magnitude, later ones first among equals ("magnitude").
        use_rescale: divide what is left by 1 - mask_rate.
        mask_strategy: "random" or "magnitude".
        seed: of the random mask.
        name: the tensor's name: tensors of other names have other masks under the same seed.

    Returns:
        A tensor of the same shape and dtype.

    Raises:
        InvalidInput: a rate outside 0 to 1, an unknown strategy, or integers.

    """
    if not 0.0 <= mask_rate <= 1.0:
        raise InvalidInput(f"the mask rate is a share from 0 to 1, not {mask_rate:g}")
    if mask_strategy not in MASK_STRATEGIES:
        raise InvalidInput(f"unknown mask strategy {mask_strategy!r}; {did_you_mean(mask_strategy, MASK_STRATEGIES)}")
    if not input_tensor.dtype.is_floating_point:
        raise InvalidInput(f"only tensors of floats can be masked, not {input_tensor.dtype}")
    wide = torch.float64 if input_tensor.dtype == torch.float64 else torch.float32
    values = input_tensor.detach().to("cpu", wide, copy=True).reshape(-1)
    if mask_rate == 0.0:
        return input_tensor.detach().clone()
    if mask_strategy == "random":
        values *= torch.from_numpy(keep(words(mask_key(seed, "", name), 0, values.numel()), 1.0 - mask_rate))
    else:
        values = _keep_largest(values, values.numel() - int(mask_rate * values.numel()))
    if use_rescale and mask_rate < 1.0:
        values /= 1.0 - mask_rate
    return values.reshape(input_tensor.shape).to(input_tensor.device, input_tensor.dtype)


def _keep_largest(values: Tensor, count: int) -> Tensor:
    magnitudes = values.abs()
    found: Cut = cuts(lambda start, stop: [magnitudes[start:stop]], [(0, values.numel())], values.numel(), [count])[0]
    return found.apply(values, 0)


def mask_task_vector(
    vector: TaskVector, mask_rate: float, *, use_rescale: bool = True, mask_strategy: str = "random", seed: int = 0
) -> TaskVector:
    """Masks every tensor of a task vector, each with a mask of its own. See `mask_input_with_mask_rate`."""
    return TaskVector(
        {
            name: mask_input_with_mask_rate(delta, mask_rate, use_rescale, mask_strategy, seed=seed, name=name)
            for name, delta in vector.items()
        }
    )


def mask_model_weights(
    finetuned: StateDict | Path | str,
    base: StateDict | Path | str,
    mask_rate: float,
    *,
    use_rescale: bool = True,
    mask_strategy: str = "random",
    seed: int = 0,
) -> Mapping[str, Tensor]:
    """A fine-tuned model with a share of its *changes* dropped (never of its weights): base + masked task vector.

    Returns:
        A state dict in the base's element types, with the base's integer tensors.

    Raises:
        InvalidInput, ModelError: see `mask_input_with_mask_rate` and `TaskVector.between`.

    """
    vector = mask_task_vector(
        TaskVector.between(base, finetuned), mask_rate, use_rescale=use_rescale, mask_strategy=mask_strategy, seed=seed
    )
    return vector.apply_to(base)
