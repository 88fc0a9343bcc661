"""What tensors are called in GGUF and in Hugging Face models, and how they are laid out on either side.

Names of GGUF: the gguf package's `TENSOR_NAMES`. Layouts: llama keeps pairs of rotary dimensions side by side where
transformers keeps the halves apart; gemma's norms are stored with the 1 that transformers adds; GPT-2's projections are
transposed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from evomerge_common.errors import ModelError, did_you_mean

Array = NDArray[Any]

_ATTENTION = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
_MLP = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
_NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_QK_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_GEMMA_NORMS = {
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_DECODER = {"token_embd": "embed_tokens", "output_norm": "norm"}


@dataclass(frozen=True)
class Architecture:
    """One architecture of GGUF and the model type that it stands for.

    Attributes:
        name: `general.architecture`.
        model_type, hf_class: config.json's `model_type` and `architectures`.
        prefix, layers: before every tensor but the head, and before a layer's number.
        outer, inner: GGUF name → Hugging Face name, outside and inside of layers, without `.weight` and `.bias`.
        rotary: projections whose rows are reordered; transposed: stored the other way round; norm_shift: what is
            added to norms.
        ignored: Hugging Face tensors that GGUF has no place for and that are not needed to go on with a text.

    """

    name: str
    model_type: str
    hf_class: str
    inner: Mapping[str, str]
    outer: Mapping[str, str] = field(default_factory=lambda: _DECODER)
    prefix: str = "model."
    layers: str = "layers"
    head: str = "lm_head"
    rotary: tuple[str, ...] = ()
    transposed: tuple[str, ...] = ()
    norm_shift: float = 0.0
    ignored: str = r"(^|\.)(rotary_emb\.inv_freq)$"

    def to_hf(self, name: str) -> str | None:
        """Hugging Face's name of a GGUF tensor; None: it has none."""
        stem, _, ending = name.rpartition(".")
        if ending not in {"weight", "bias"}:
            return None
        if stem == "output" and self.head:
            return f"{self.head}.{ending}"
        if stem in self.outer:
            return f"{self.prefix}{self.outer[stem]}.{ending}"
        match = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
        if match and match[2] in self.inner:
            return f"{self.prefix}{self.layers}.{int(match[1])}.{self.inner[match[2]]}.{ending}"
        return None

    def to_gguf(self, name: str) -> str | None:
        """GGUF's name of a Hugging Face tensor, with or without the base model's prefix; None: it has none."""
        stem, _, ending = name.rpartition(".")
        if ending not in {"weight", "bias"}:
            return None
        if stem == self.head and self.head:
            return f"output.{ending}"
        stem = stem.removeprefix(self.prefix)
        for ours, theirs in self.outer.items():
            if stem == theirs:
                return f"{ours}.{ending}"
        match = re.fullmatch(rf"{re.escape(self.layers)}\.(\d+)\.(.+)", stem)
        for ours, theirs in self.inner.items():
            if match and match[2] == theirs:
                return f"blk.{match[1]}.{ours}.{ending}"
        return None

    def is_ignored(self, name: str) -> bool:
        """Whether a Hugging Face tensor can be left out."""
        return re.search(self.ignored, name) is not None

    def heads_of(self, name: str, heads: int, kv_heads: int) -> int:
        """How many heads' rows a GGUF tensor's rotary dimensions are to be reordered in; 0: they stay."""
        part = name.split(".")[-2]
        return {"attn_q": heads, "attn_k": kv_heads}[part] if part in self.rotary else 0

    def is_transposed(self, name: str) -> bool:
        """Whether a GGUF tensor is the transpose of Hugging Face's."""
        return name.endswith(".weight") and name.split(".")[-2] in self.transposed

    def shift_of(self, name: str) -> float:
        """What a GGUF tensor has more than Hugging Face's."""
        return self.norm_shift if name.endswith("norm.weight") else 0.0


def pair(values: Array, heads: int) -> Array:
    """Rows of each head from halves (i, i + d/2) to neighbours (2i, 2i + 1): transformers' order → llama.cpp's."""
    return values.reshape(heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def unpair(values: Array, heads: int) -> Array:
    """The opposite of `pair`."""
    half = values.shape[0] // heads // 2
    return values.reshape(heads, half, 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


_LLAMA_INNER = {**_ATTENTION, **_MLP, **_NORMS}
_GEMMA_INNER = {**_ATTENTION, **_MLP, **_GEMMA_NORMS}

ARCHITECTURES = {
    one.model_type: one
    for one in (
        Architecture("llama", "llama", "LlamaForCausalLM", _LLAMA_INNER, rotary=("attn_q", "attn_k")),
        Architecture("llama", "mistral", "MistralForCausalLM", _LLAMA_INNER, rotary=("attn_q", "attn_k")),
        Architecture("qwen2", "qwen2", "Qwen2ForCausalLM", _LLAMA_INNER),
        Architecture("qwen3", "qwen3", "Qwen3ForCausalLM", {**_LLAMA_INNER, **_QK_NORMS}),
        Architecture(
            "phi3", "phi3", "Phi3ForCausalLM",
            {"attn_qkv": "self_attn.qkv_proj", "attn_output": "self_attn.o_proj", "ffn_up": "mlp.gate_up_proj",
             "ffn_down": "mlp.down_proj", **_NORMS},
        ),
        Architecture("gemma2", "gemma2", "Gemma2ForCausalLM", _GEMMA_INNER, norm_shift=1.0),
        Architecture(
            "gemma3", "gemma3_text", "Gemma3ForCausalLM", {**_GEMMA_INNER, **_QK_NORMS}, norm_shift=1.0,
        ),
        Architecture(
            "gpt2", "gpt2", "GPT2LMHeadModel",
            {"attn_norm": "ln_1", "attn_qkv": "attn.c_attn", "attn_output": "attn.c_proj", "ffn_norm": "ln_2",
             "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"},
            outer={"token_embd": "wte", "position_embd": "wpe", "output_norm": "ln_f"},
            prefix="transformer.", layers="h",
            transposed=("attn_qkv", "attn_output", "ffn_up", "ffn_down"),
            ignored=r"\.attn\.(bias|masked_bias)$",
        ),
        Architecture(
            "bert", "bert", "BertModel",
            {"attn_q": "attention.self.query", "attn_k": "attention.self.key", "attn_v": "attention.self.value",
             "attn_output": "attention.output.dense", "attn_output_norm": "attention.output.LayerNorm",
             "ffn_up": "intermediate.dense", "ffn_down": "output.dense", "layer_output_norm": "output.LayerNorm"},
            outer={"token_embd": "embeddings.word_embeddings", "position_embd": "embeddings.position_embeddings",
                   "token_types": "embeddings.token_type_embeddings", "token_embd_norm": "embeddings.LayerNorm"},
            prefix="", layers="encoder.layer", head="",
            ignored=r"^(bert\.)?(embeddings\.position_ids|pooler\..*|cls\..*)$",
        ),
    )
}  # fmt: skip
"""By model_type. Several may share a GGUF architecture: the first is what it is read as."""

MODEL_TYPE_KEY = "evomerge.model_type"
"""Metadata that we write, since GGUF calls mistral a llama."""


def of_gguf(metadata: Mapping[str, Any], where: str) -> Architecture:
    """The architecture of a file's metadata.

    Raises:
        ModelError: none that is known here.

    """
    name = metadata.get("general.architecture")
    named = metadata.get(MODEL_TYPE_KEY)
    found = [one for one in ARCHITECTURES.values() if one.name == name]
    if not found:
        valid = sorted({one.name for one in ARCHITECTURES.values()})
        raise ModelError(
            f"{where} holds a model of architecture {name!r}; read are {', '.join(valid)}: "
            "give the model as a Hugging Face folder"
        )
    if metadata.get(f"{name}.expert_count"):
        raise ModelError(f"{where} holds a mixture of experts, which is not read from GGUF: give its folder")
    if named is None and any(
        "mistral" in str(metadata.get(f"general.{key}", "")).lower() for key in ("name", "basename")
    ):
        named = "mistral"
    return next((one for one in found if one.model_type == named), found[0])


def of_config(config: Mapping[str, Any], where: str) -> Architecture:
    """The architecture of a config.json.

    Raises:
        ModelError: GGUF is not written for it.

    """
    kind = str(config.get("model_type", ""))
    if kind not in ARCHITECTURES:
        raise ModelError(
            f"{where} is a {kind or 'model of unknown type'}, for which GGUF is not written; "
            f"{did_you_mean(kind, ARCHITECTURES)}; export a Hugging Face folder"
        )
    return ARCHITECTURES[kind]
