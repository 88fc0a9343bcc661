"""Tiny random models of several architectures, as real Hugging Face folders."""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

HIDDEN, VOCAB, LAYERS = 16, 40, 4

_CONFIGS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", {"num_key_value_heads": 2}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", {"num_key_value_heads": 2}),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {"num_key_value_heads": 2, "head_dim": 8}),
    "mistral": ("MistralConfig", "MistralForCausalLM", {"num_key_value_heads": 2}),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", {}),
    "bert": ("BertConfig", "BertForMaskedLM", {}),
    "bert_pooled": ("BertConfig", "BertModel", {}),
}
KINDS = tuple(_CONFIGS)


@functools.cache
def _class(name: str) -> Any:
    import transformers

    return getattr(transformers, name)


def make_model(
    folder: Path,
    kind: str = "llama",
    *,
    seed: int = 0,
    layers: int = LAYERS,
    dtype: torch.dtype = torch.float32,
    spread: float = 0.05,
    near: Path | None = None,
    **settings: Any,
) -> Path:
    """Writes a model with random weights; with `near`, those of another folder plus a little."""
    config_name, model_name, own = _CONFIGS[kind]
    sizes = {"hidden_size": HIDDEN, "num_hidden_layers": layers, "num_attention_heads": 4, "vocab_size": VOCAB}
    if kind == "gpt2":
        sizes = {"n_embd": HIDDEN, "n_layer": layers, "n_head": 4, "vocab_size": VOCAB, "n_positions": 64}
    else:
        sizes |= {"intermediate_size": 24, "max_position_embeddings": 64}
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        model = _class(model_name)(_class(config_name)(**{**sizes, **own, **settings}))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=spread)
        if near is not None:
            base = load_file(near / "model.safetensors")
            for name, parameter in model.named_parameters():
                if name in base:
                    parameter.data = base[name].float() + 0.2 * parameter.data
        model.to(dtype).save_pretrained(folder)
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = load_file(folder / "model.safetensors")
    return tensors


def rewrite(folder: Path, change: Mapping[str, torch.Tensor | None]) -> None:
    """Replaces (None: removes) tensors of a folder."""
    tensors: dict[str, Any] = {**weights(folder), **change}
    save_file(
        {k: v.contiguous() for k, v in tensors.items() if v is not None}, folder / "model.safetensors", {"format": "pt"}
    )


def set_config(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def load_model(folder: Path) -> Any:
    """Loads with transformers, and insists that it found every weight and needed no other."""
    import transformers

    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, info = getattr(transformers, name).from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"], info["missing_keys"]
    assert not info["unexpected_keys"], info["unexpected_keys"]
    assert not info["mismatched_keys"], info["mismatched_keys"]
    return model.eval()


def raw_model(folder: Path, tensors: Mapping[str, torch.Tensor], **config: Any) -> Path:
    """A folder with just these tensors: for what is not about an architecture."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "raw", "num_hidden_layers": 2, **config}))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


def random_tensors(seed: int, size: int = 70_000, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Two layers, an embedding and a norm; one tensor is longer than several pieces and no multiple of any."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"embed.weight": (20, 8), "layers.0.a.weight": (size,), "layers.1.a.weight": (7, 9), "norm.weight": (8,)}
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
