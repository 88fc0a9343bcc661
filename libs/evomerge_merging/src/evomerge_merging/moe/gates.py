"""The routers of a mixture of experts: one vector for each expert and layer.

A token goes to the experts whose vectors its state is most like. As mergekit-moe has them, the vectors are made without
training: from the states of an expert's prompts (`hidden`), from their embeddings (`cheap_embed`), or at random
(`random`, `uniform_random`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge_common.errors import InvalidInput, ModelError
from evomerge_merging.moe.yaml import Expert

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    from evomerge_merging.torch_later import torch

_SMALLEST = 1e-8
"""A vector shorter than this has no direction."""


def random_gates(experts: int, layers: int, hidden: int, seed: int, *, uniform: bool = False) -> Tensor:
    """Normal deviates of variance 1/hidden, float32 (layers, experts, hidden): normed states get logits of about 1.

    Uniform ones lie between ±1/√hidden.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (layers, experts, hidden)
    drawn = 2 * torch.rand(shape, generator=generator) - 1 if uniform else torch.randn(shape, generator=generator)
    return drawn / math.sqrt(hidden)


def embedding_gates(experts: Sequence[Expert], layers: int, tokenizer: Path, embedding: Tensor) -> Tensor:
    """The mean embedding of each expert's prompts, the same in each layer, float32 (layers, experts, hidden).

    Raises:
        InvalidInput: an expert's prompts cancel out.

    """
    ids = _tokens(tokenizer)
    return _directions(experts, lambda text: embedding[ids(text)].float().mean(0)[None]).repeat(layers, 1, 1)


def hidden_gates(experts: Sequence[Expert], folder: Path) -> Tensor:
    """The base's mean state before each feed-forward layer over an expert's prompts, float32 (layers, experts, hidden).

    That state is what the router will read, but for what the experts before it change.

    Raises:
        InvalidInput: an expert's prompts cancel out.
        ModelError: the base cannot be loaded.

    """
    transformers = _transformers()
    ids = _tokens(folder)
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{folder} cannot be loaded, which gate_mode hidden needs ({error})") from error
    states: dict[int, Tensor] = {}

    def keep(layer: int) -> Any:
        def hook(_: object, inputs: tuple[Tensor, ...]) -> None:
            states[layer] = inputs[0][0].mean(0)

        return hook

    layers = model.model.layers
    handles = [layer.mlp.register_forward_pre_hook(keep(number)) for number, layer in enumerate(layers)]

    def mean_state(text: str) -> Tensor:
        with torch.no_grad():
            model.model(torch.tensor([ids(text)]), use_cache=False)
        return torch.stack([states[number] for number in range(len(layers))])

    try:
        return _directions(experts, mean_state)
    finally:
        for handle in handles:
            handle.remove()


def _directions(experts: Sequence[Expert], vector: Any) -> Tensor:
    """Positive prompts' mean less negative prompts' mean, of length 1: (layers, experts, hidden)."""
    rows = []
    for number, expert in enumerate(experts):
        row = torch.stack([vector(text) for text in expert.positive]).mean(0)
        if expert.negative:
            row = row - torch.stack([vector(text) for text in expert.negative]).mean(0)
        length = row.norm(dim=-1, keepdim=True)
        if bool((length < _SMALLEST).any()):
            raise InvalidInput(f"experts[{number}]: positive and negative prompts cancel out; give others")
        rows.append(row / length)
    return torch.stack(rows, dim=1)


def _tokens(folder: Path) -> Any:
    tokenizer = _transformers().AutoTokenizer.from_pretrained(folder)

    def ids(text: str) -> list[int]:
        found: list[int] = tokenizer(text).input_ids
        if not found:
            raise InvalidInput(f"the prompt {text!r} has no tokens; give another")
        return found

    return ids


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise InvalidInput(
            "gates from prompts need the transformers package: install it, or say gate_mode: random"
        ) from error
    return transformers
