"""Writes a LoRA adapter in PEFT's format: factors of linear layers, and tensors that are kept whole."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge_merging.engine import architecture
from evomerge_merging.io.dtypes import element_type
from evomerge_merging.io.writer import SafetensorsWriter, write_text
from evomerge_merging.lora.low_rank import Product
from evomerge_models.adapter_changes import CONV1D_TYPES
from evomerge_models.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    from evomerge_merging.torch_later import torch

_PREFIX = "base_model.model."


@dataclass
class AdapterParts:
    """What an adapter changes, by the base's tensor names.

    Attributes:
        products: in the orientation in which the base stores the tensor.
        whole: tensors that replace the base's.

    """

    products: dict[str, Product] = field(default_factory=dict)
    whole: dict[str, Tensor] = field(default_factory=dict)


def write_adapter(
    folder: Path,
    parts: AdapterParts,
    base: Collection[str],
    config: Mapping[str, Any],
    base_name: str,
    *,
    tied: bool = False,
) -> int:
    """Writes adapter_config.json and adapter_model.safetensors; returns the latter's bytes.

    Args:
        folder: exists.
        parts: what changes.
        base: names of all of the base's tensors.
        config: the base's config.json.
        base_name: hub id or folder, for those who load the adapter.
        tied: the result's head is its embedding, as the base's is.

    """
    tensors = _factors(parts, transposed=config.get("model_type") in CONV1D_TYPES)
    whole, saved, has_biases = _whole(parts)
    tensors |= whole
    embedding = next((name for name in parts.whole if architecture.is_token_embedding(name)), "")
    causal = any(kind in str(config.get("architectures")) for kind in ("CausalLM", "LMHead"))
    together = bool(tied and embedding and causal)
    if together:  # PEFT wants both names of the one tensor
        tensors[f"{_PREFIX}lm_head.weight"] = parts.whole[embedding]
    ranks = _ranks(parts)
    rank = max(ranks.values(), default=1)
    odd = {module: value for module, value in sorted(ranks.items()) if value != rank}
    modules = {name.rpartition(".")[0] for name in base}
    data = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if "CausalLM" in str(config.get("architectures")) else None,
        "base_model_name_or_path": base_name,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "target_modules": _short(ranks.keys(), modules),
        "modules_to_save": _short(saved, modules) or None,
        "rank_pattern": odd,
        "alpha_pattern": odd,
        "bias": "all" if has_biases else "none",
        "fan_in_fan_out": config.get("model_type") in CONV1D_TYPES,
        "ensure_weight_tying": together,
        "inference_mode": True,
        "init_lora_weights": True,
        "use_dora": False,
        "use_rslora": False,
    }
    _write_tensors(folder / ADAPTER_WEIGHTS, tensors)
    write_text(folder / ADAPTER_CONFIG, json.dumps(data, indent=2) + "\n")
    return (folder / ADAPTER_WEIGHTS).stat().st_size


def _ranks(parts: AdapterParts) -> dict[str, int]:
    """Rank of the change of each module."""
    return {name.removesuffix(".weight"): product.rank for name, product in parts.products.items()}


def _factors(parts: AdapterParts, *, transposed: bool) -> dict[str, Tensor]:
    """Both factors of each product under PEFT's names; `transposed`: layers store their weights as in × out."""
    tensors: dict[str, Tensor] = {}
    for name, product in parts.products.items():
        module = name.removesuffix(".weight")
        left, right = product.left, product.right
        if architecture.is_token_embedding(name):
            tensors[f"{_PREFIX}{module}.lora_embedding_A"] = left.T
            tensors[f"{_PREFIX}{module}.lora_embedding_B"] = right.T
            continue
        if transposed and not architecture.is_head(name):
            left, right = right.T, left.T
        tensors[f"{_PREFIX}{module}.lora_A.weight"] = right
        tensors[f"{_PREFIX}{module}.lora_B.weight"] = left
    return tensors


def _whole(parts: AdapterParts) -> tuple[dict[str, Tensor], set[str], bool]:
    """What is kept whole, under PEFT's names; the modules of which that is said; whether there are biases."""
    ranks = _ranks(parts)
    tensors: dict[str, Tensor] = {}
    saved: set[str] = set()
    has_biases = False
    for name, tensor in parts.whole.items():
        module, _, part = name.rpartition(".")
        if module in ranks or (part == "bias" and f"{module}.weight" not in parts.whole):
            has_biases = True
            tensors[f"{_PREFIX}{module}.{'base_layer.' if module in ranks else ''}{part}"] = tensor
        else:
            saved.add(module)
            tensors[_PREFIX + name] = tensor
    return tensors, saved, has_biases


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    specs = [(name, tuple(tensor.shape), element_type(tensor.dtype)) for name, tensor in tensors.items()]
    writer = SafetensorsWriter(path, specs, {"format": "pt"})
    try:
        for name, tensor in tensors.items():
            writer.write(name, 0, tensor.contiguous().reshape(-1))
        writer.close()
    finally:
        writer.abort()


def _short(wanted: Collection[str], modules: Collection[str]) -> list[str]:
    """Last parts of names where they mean just these modules, else whole names: how PEFT finds them again."""
    result = set()
    for module in wanted:
        last = module.rpartition(".")[2]
        same = {other for other in modules if other.rpartition(".")[2] == last}
        result.add(last if same <= set(wanted) and not last.isdigit() else module)
    return sorted(result)


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same numbers."""
    return one.shape == other.shape and bool(torch.equal(one, other.to(one.dtype)))
