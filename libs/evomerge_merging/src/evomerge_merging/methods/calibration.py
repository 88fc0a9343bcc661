"""Measures what `fisher` and `regmean` weigh by, on a loaded model and a few calibration texts.

    statistics = fisher_statistics(model, batches)
    save_file(statistics, "a-fisher.safetensors")      # in the recipe: parameters: {statistics: a-fisher.safetensors}

A batch is what the model is called with (`model(**batch)`), for `fisher` with labels, so that the answer has a loss.
Texts of one length without padding, or one text a batch: padding would count as text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Batch = Mapping[str, Any]


def fisher_statistics(model: nn.Module, batches: Iterable[Batch]) -> dict[str, Tensor]:
    """Mean square of the loss's gradient over the batches, by parameter name, float32 in each parameter's shape.

    The diagonal of the empirical Fisher information matrix, with the texts' own labels, if each batch is one text.

    Raises:
        ValueError: there is no batch.

    """
    squares: dict[str, Tensor] = {}
    count = 0
    for batch in batches:
        model.zero_grad(set_to_none=True)
        model(**batch).loss.backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                square = parameter.grad.detach().float().square()
                squares[name] = squares[name].add_(square) if name in squares else square
        count += 1
    model.zero_grad(set_to_none=True)
    if not count:
        raise ValueError("no calibration texts: give at least one batch")
    return {name: (square / count).cpu() for name, square in squares.items()}


def regmean_statistics(model: nn.Module, batches: Iterable[Batch]) -> dict[str, Tensor]:
    """Inner products X' X of each linear layer's inputs over all tokens, by weight name, float32 (in × in).

    Raises:
        ValueError: there is no batch.

    """
    products: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def add(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            rows = inputs[0].detach().reshape(-1, inputs[0].shape[-1]).float()
            inner = (rows.T @ rows).double()
            products[name] = products[name].add_(inner) if name in products else inner

        return add

    handles = [
        module.register_forward_pre_hook(hook(f"{name}.weight"))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    count = 0
    try:
        with torch.no_grad():
            for batch in batches:
                model(**batch)
                count += 1
    finally:
        for handle in handles:
            handle.remove()
    if not count:
        raise ValueError("no calibration texts: give at least one batch")
    return {name: product.float().cpu() for name, product in products.items()}
