"""config.json → GGUF's metadata and rotary factors; what llama.cpp would do otherwise is refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from evomerge_common.errors import ModelError
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
    head_dim,
    layer_type,
    llama3_factors,
)

_ACTIVATIONS = {
    "gpt2": {"gelu_new", "gelu_pytorch_tanh", "gelu_fast"},
    "bert": {"gelu"},
    "gemma2": {"gelu_pytorch_tanh", "gelu_new"},
    "gemma3_text": {"gelu_pytorch_tanh", "gelu_new"},
}


def metadata_of(config: Mapping[str, Any], architecture: Architecture, where: str) -> dict[str, Any]:
    """GGUF's hyperparameters, keys without the architecture's name.

    Raises:
        ModelError: the config asks for something that llama.cpp does not do for this architecture.

    """
    model_type = architecture.model_type
    _refuse_what_differs(config, model_type, where)
    if model_type == "gpt2":
        width = _number(config, "n_embd", where)
        found: dict[str, Any] = {ours: config.get(theirs) for ours, theirs in GPT2_DIMENSIONS.items()}
        found["feed_forward_length"] = config.get("n_inner") or 4 * width
        found[EPSILON] = float(config.get("layer_norm_epsilon", 1e-5))
        return _checked(found, where)
    found = {ours: config.get(theirs) for ours, theirs in DIMENSIONS.items()}
    if model_type == "bert":
        del found["attention.head_count_kv"]  # its heads share no keys, whatever its config says
        found |= {EPSILON: float(config.get("layer_norm_eps", 1e-12)), "attention.causal": False}
        return _checked(found, where)
    heads = _number(config, "num_attention_heads", where)
    found["attention.head_count_kv"] = config.get("num_key_value_heads") or heads
    head = head_dim(config)
    found[RMS_EPSILON] = float(config.get("rms_norm_eps", 1e-6))
    found |= {"attention.key_length": head, "attention.value_length": head}
    rope = rope_parameters(config)
    found["rope.freq_base"] = float(rope.get("rope_theta", 10_000.0))
    if model_type in {"llama", "mistral", "phi3"}:
        found["rope.dimension_count"] = int(head * float(rope.get("partial_rotary_factor", 1.0)))
    found |= _rope_scaling(rope, found["context_length"], where)
    if model_type == "phi3":
        original = rope.get("original_max_position_embeddings") or config.get("original_max_position_embeddings")
        found["rope.scaling.original_context_length"] = int(original or found["context_length"])
        found["attention.sliding_window"] = int(config.get("sliding_window") or 0)
    if model_type in GEMMA_TYPES:
        found |= _gemma(config, model_type)
    return _checked(found, where)


def rope_tensors(config: Mapping[str, Any], architecture: Architecture, where: str) -> dict[str, np.ndarray[Any, Any]]:
    """Rotary factors that GGUF keeps as tensors (float32): llama3's frequencies, phi3's long and short factors.

    Raises:
        ModelError: factors of the wrong number.

    """
    if architecture.model_type in {"gpt2", "bert"}:
        return {}
    rope = rope_parameters(config)
    scaling = rope.get("rope_type") or rope.get("type")
    half = int(head_dim(config) * float(rope.get("partial_rotary_factor", 1.0))) // 2
    if scaling == "llama3":
        return {ROPE_FREQS: llama3_factors(rope, half)}
    if scaling in {"longrope", "su"}:
        found = {ROPE_LONG: rope.get("long_factor"), ROPE_SHORT: rope.get("short_factor")}
        for name, values in found.items():
            if not isinstance(values, list) or len(values) != half:
                raise ModelError(f"{where}: its config has no {half} rotary factors for {name}")
        return {name: np.asarray(values, np.float32) for name, values in found.items()}
    return {}


def rope_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary settings of a config in old or new words; of a model with two kinds of layers, those of full ones."""
    new = config.get("rope_parameters")
    if isinstance(new, Mapping):
        full = new.get("full_attention", new)
        return dict(full) if isinstance(full, Mapping) else {}
    old = config.get("rope_scaling")
    found = dict(old) if isinstance(old, Mapping) else {}
    if "type" in found:
        found.setdefault("rope_type", found["type"])
    for key in ("rope_theta", "partial_rotary_factor"):
        if config.get(key) is not None:
            found[key] = config[key]
    if config.get("model_type") == "gemma3_text":
        found.setdefault("rope_theta", 1_000_000.0)
    return found


def _rope_scaling(rope: Mapping[str, Any], context: Any, where: str) -> dict[str, Any]:
    scaling = rope.get("rope_type") or "default"
    if scaling in {"default", "llama3"}:
        return {}
    if scaling == "linear":
        return {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])}
    if scaling == "yarn":
        original = rope.get("original_max_position_embeddings") or context
        found = {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": float(rope["factor"]),
            "rope.scaling.original_context_length": int(original),
        }
        for theirs, ours in (("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")):
            if rope.get(theirs) is not None:
                found[f"rope.scaling.{ours}"] = float(rope[theirs])
        return found
    if scaling in {"longrope", "su"}:
        original = int(rope.get("original_max_position_embeddings") or context)
        scale = int(context) / original
        factor = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
        return {"rope.scaling.type": "longrope", "rope.scaling.attn_factor": factor}
    raise ModelError(f"{where} scales its rotary positions by {scaling!r}, which llama.cpp does not do")


def _gemma(config: Mapping[str, Any], model_type: str) -> dict[str, Any]:
    found: dict[str, Any] = {"attention.sliding_window": int(config.get("sliding_window") or 4096)}
    caps = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0} if model_type == "gemma2" else {}
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if (value := config.get(key, caps.get(key))) is not None:
            found[key] = float(value)
    local = config.get("rope_local_base_freq")
    new = config.get("rope_parameters")
    if isinstance(new, Mapping) and isinstance(new.get("sliding_attention"), Mapping):
        local = new["sliding_attention"].get("rope_theta", local)
    if model_type == "gemma3_text":
        found["rope.freq_base_swa"] = float(local or 10_000.0)
    return found


def _refuse_what_differs(config: Mapping[str, Any], model_type: str, where: str) -> None:
    """Settings that llama.cpp has built in: another one would answer differently, so it is refused."""
    activation = config.get("hidden_activation") or config.get("hidden_act") or config.get("activation_function")
    known = _ACTIVATIONS.get(model_type, {"silu", "swish"})
    if activation is not None and activation not in known:
        raise ModelError(f"{where} uses the activation {activation!r}; llama.cpp has {' or '.join(sorted(known))} here")
    every = SLIDING_EVERY.get(model_type)
    layers = config.get("layer_types")
    if every and isinstance(layers, list):
        wanted = [layer_type(number, every) for number in range(len(layers))]
        if layers != wanted:
            raise ModelError(
                f"{where}: llama.cpp has full attention in every layer whose number is a multiple of {every}, and this "
                "model in others (its layers were reordered): export a Hugging Face folder"
            )
    elif isinstance(layers, list) and len(set(layers)) > 1:
        raise ModelError(f"{where} mixes kinds of attention layers, which llama.cpp does not do for {model_type}")
    if model_type == "gemma2":
        scalar = config.get("query_pre_attn_scalar", 256)
        if config.get("num_hidden_layers") != 46 and scalar != head_dim(config):
            raise ModelError(f"{where} scales queries by {scalar}; llama.cpp by the head's width {head_dim(config)}")
    if model_type == "gemma3_text":
        scalar = config.get("query_pre_attn_scalar", 256)
        if config.get("num_hidden_layers") != 62 and scalar != head_dim(config):
            raise ModelError(f"{where} scales queries by {scalar}; llama.cpp by the head's width {head_dim(config)}")
        if config.get("use_bidirectional_attention") or config.get("attn_logit_softcapping"):
            raise ModelError(f"{where} looks both ways or caps its attention; llama.cpp does not do so for gemma3")
    own_scale = config.get("scale_attn_by_inverse_layer_idx") or config.get("scale_attn_weights") is False
    if model_type == "gpt2" and own_scale:
        raise ModelError(f"{where} scales its attention in a way of its own, which llama.cpp does not do")
    if model_type == "bert" and config.get("position_embedding_type", "absolute") not in {"absolute", None}:
        raise ModelError(f"{where} has relative positions, which llama.cpp does not do for BERT")


def _checked(found: dict[str, Any], where: str) -> dict[str, Any]:
    for key, value in found.items():
        if value is None:
            raise ModelError(f"{where}: its config says nothing about {key.replace('_', ' ')}")
    return found


def _number(config: Mapping[str, Any], key: str, where: str) -> int:
    value = config.get(key)
    if type(value) is not int or value < 1:
        raise ModelError(f"{where}: its config has no sound {key} ({value!r})")
    return value
