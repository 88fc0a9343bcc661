"""GGUF's metadata and rotary factors → config.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from evomerge_common.errors import ModelError, UnsafeFile
from evomerge_models.gguf.architectures import Architecture
from evomerge_models.gguf.hyperparameters import (
    DIMENSIONS,
    EPSILON,
    GEMMA_TYPES,
    GPT2_DIMENSIONS,
    RMS_EPSILON,
    ROPE_FREQS,
    ROPE_LONG,
    ROPE_SHORT,
    SLIDING_EVERY,
    layer_type,
    llama3_factors,
)


@dataclass(frozen=True)
class Hyperparameters:
    """The metadata of one architecture, read with suspicion.

    Attributes:
        metadata: the file's.
        name: of the architecture, with which its keys begin.
        where: the file's name for errors.

    """

    metadata: Mapping[str, Any]
    name: str
    where: str

    def has(self, key: str) -> bool:
        """Whether the file says anything about it."""
        return f"{self.name}.{key}" in self.metadata

    def number(self, key: str, default: int | None = None) -> int:
        """Reads a whole number of at least 1; one for all layers where the file has one for each.

        Raises:
            UnsafeFile: it is missing, or another thing.

        """
        value = self.metadata.get(f"{self.name}.{key}", default)
        if isinstance(value, list) and value and all(one == value[0] for one in value):
            value = value[0]
        if type(value) is not int or not 1 <= value < 1 << 31:
            raise self._refusal(key, value)
        return value

    def real(self, key: str, default: float | None = None) -> float:
        """Reads a finite number.

        Raises:
            UnsafeFile: it is missing, or another thing.

        """
        value = self.metadata.get(f"{self.name}.{key}", default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self._refusal(key, value)
        return float(str(np.float32(value)))  # as it was written down: 1e-05, not 9.999999747378752e-06

    def _refusal(self, key: str, value: object) -> UnsafeFile:
        return UnsafeFile(f"{self.where}: its metadata has no sound {self.name}.{key} ({str(value)[:40]})")


def config_of(
    metadata: Mapping[str, Any], architecture: Architecture, where: str, *, vocabulary: int, tied: bool, dtype: str
) -> dict[str, Any]:
    """Makes config.json of a GGUF file's model.

    Args:
        metadata: the file's.
        architecture: its architecture.
        where: the file's name for errors.
        vocabulary: rows of its embedding.
        tied: whether it has no head of its own.
        dtype: most of its weights', as config.json calls it.

    Raises:
        UnsafeFile: hyperparameters are missing or impossible.

    """
    config: dict[str, Any] = {
        "architectures": [architecture.hf_class],
        "model_type": architecture.model_type,
        "vocab_size": vocabulary,
        "torch_dtype": dtype,
        "tie_word_embeddings": tied,
    }
    for key, special in (("bos", "bos"), ("eos", "eos"), ("padding", "pad")):
        value = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if type(value) is int and value < vocabulary:
            config[f"{special}_token_id"] = value
    given = Hyperparameters(metadata, architecture.name, where)
    if architecture.model_type == "gpt2":
        return config | _gpt2_config(given)
    config |= {theirs: given.number(ours) for ours, theirs in DIMENSIONS.items() if ours != "attention.head_count_kv"}
    if architecture.model_type == "bert":
        config |= {"layer_norm_eps": given.real(EPSILON, 1e-12), "hidden_act": "gelu"}
        return config | {"type_vocab_size": _token_types(metadata)}
    return config | _decoder_config(given, architecture.model_type, config)


def _gpt2_config(given: Hyperparameters) -> dict[str, Any]:
    config = {theirs: given.number(ours) for ours, theirs in GPT2_DIMENSIONS.items() if ours != "feed_forward_length"}
    return {
        **config,
        "n_inner": given.number("feed_forward_length", 4 * config["n_embd"]),
        "n_ctx": config["n_positions"],
        "layer_norm_epsilon": given.real(EPSILON, 1e-5),
        "activation_function": "gelu_new",
    }


def _decoder_config(given: Hyperparameters, model_type: str, dimensions: Mapping[str, Any]) -> dict[str, Any]:
    """What llama and its kin say of attention, norms, positions and activation."""
    heads = dimensions["num_attention_heads"]
    shared = given.number("attention.head_count_kv", heads)
    if heads % shared:
        raise UnsafeFile(f"{given.where}: {heads} heads do not share {shared} keys evenly")
    head = given.number("attention.key_length", dimensions["hidden_size"] // heads)
    config: dict[str, Any] = {"num_key_value_heads": shared, "head_dim": head, "rms_norm_eps": given.real(RMS_EPSILON)}
    config |= _rope_config(given, model_type, head)
    if model_type in GEMMA_TYPES:
        return config | _gemma_config(given, model_type, head, dimensions["num_hidden_layers"])
    config["hidden_act"] = "silu"
    if model_type == "phi3":
        config["sliding_window"] = given.metadata.get("phi3.attention.sliding_window") or None
    if model_type == "mistral":
        config["sliding_window"] = None
    return config


def _gemma_config(given: Hyperparameters, model_type: str, head: int, depth: int) -> dict[str, Any]:
    first = model_type == "gemma2"
    capped = first or given.has("final_logit_softcapping")
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": head,
        "sliding_window": given.number("attention.sliding_window", 4096 if first else 1024),
        "layer_types": [layer_type(layer, SLIDING_EVERY[model_type]) for layer in range(depth)],
        "attn_logit_softcapping": given.real("attn_logit_softcapping", 50.0) if first else None,
        "final_logit_softcapping": given.real("final_logit_softcapping", 30.0) if capped else None,
    }


def _token_types(metadata: Mapping[str, Any]) -> int:
    value = metadata.get("tokenizer.ggml.token_type_count", 2)
    return value if type(value) is int else 2


def _rope_config(given: Hyperparameters, model_type: str, head: int) -> dict[str, Any]:
    theta = given.real("rope.freq_base", 10_000.0)
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    scaling = given.metadata.get(f"{given.name}.rope.scaling.type", "none")
    if scaling == "linear":
        rope |= {"rope_type": "linear", "factor": given.real("rope.scaling.factor")}
    elif scaling == "yarn":
        rope |= {
            "rope_type": "yarn",
            "factor": given.real("rope.scaling.factor"),
            "original_max_position_embeddings": given.number("rope.scaling.original_context_length"),
        }
        for ours in ("beta_fast", "beta_slow"):
            if given.has(f"rope.scaling.yarn_{ours}"):
                rope[ours] = given.real(f"rope.scaling.yarn_{ours}")
    elif scaling == "longrope":
        rope["rope_type"] = "longrope"  # its factors are tensors: `with_rope_tensors`
    config: dict[str, Any] = {}
    if model_type == "phi3":
        original = given.number("rope.scaling.original_context_length", given.number("context_length"))
        config["original_max_position_embeddings"] = original
        rotated = given.number("rope.dimension_count", head)
        if rotated != head:
            rope["partial_rotary_factor"] = rotated / head
    if model_type == "gemma3_text":
        local = {"rope_type": "default", "rope_theta": given.real("rope.freq_base_swa", 10_000.0)}
        return {"rope_parameters": {"full_attention": rope, "sliding_attention": local}}
    return config | {"rope_theta": theta, "rope_parameters": rope}


def with_rope_tensors(
    config: dict[str, Any], tensors: Mapping[str, np.ndarray[Any, Any]], where: str
) -> dict[str, Any]:
    """The config with what the file's rotary factors tell.

    Raises:
        ModelError: factors of a scaling that is not known.

    """
    rope = dict(config.get("rope_parameters", {}))
    if ROPE_LONG in tensors and ROPE_SHORT in tensors:
        rope |= {"rope_type": "longrope", "long_factor": tensors[ROPE_LONG].ravel().tolist(),
                 "short_factor": tensors[ROPE_SHORT].ravel().tolist(),
                 "original_max_position_embeddings": config["original_max_position_embeddings"]}  # fmt: skip
    elif ROPE_FREQS in tensors:
        factors = tensors[ROPE_FREQS].ravel().astype(np.float64)
        scaled = {"rope_type": "llama3", "rope_theta": config["rope_theta"], "factor": float(factors.max()),
                "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192}  # fmt: skip
        if not np.allclose(llama3_factors(scaled, len(factors)), factors, rtol=1e-3):
            raise ModelError(f"{where}: its rotary factors are not those of Llama 3; give the model's own folder")
        rope = scaled
    else:
        return config
    return {**config, "rope_parameters": rope}
