"""Hyperparameters: GGUF's metadata ↔ config.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from evomerge_common.errors import ModelError, UnsafeFile
from evomerge_models.gguf.architectures import Architecture

_DIMENSIONS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
}
_GPT2 = {
    "context_length": "n_positions",
    "embedding_length": "n_embd",
    "block_count": "n_layer",
    "feed_forward_length": "n_inner",
    "attention.head_count": "n_head",
}
_RMS, _EPSILON = "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"
_GEMMA_TYPES = ("gemma2", "gemma3_text")
_SLIDING_EVERY = {"gemma2": 2, "gemma3_text": 6}
"""llama.cpp lets every layer but each so-manieth look at a window alone."""
_ACTIVATIONS = {
    "gpt2": {"gelu_new", "gelu_pytorch_tanh", "gelu_fast"},
    "bert": {"gelu"},
    "gemma2": {"gelu_pytorch_tanh", "gelu_new"},
    "gemma3_text": {"gelu_pytorch_tanh", "gelu_new"},
}
ROPE_FREQS = "rope_freqs.weight"
ROPE_LONG, ROPE_SHORT = "rope_factors_long.weight", "rope_factors_short.weight"


# ---- config.json → metadata ----


def metadata_of(config: Mapping[str, Any], architecture: Architecture, where: str) -> dict[str, Any]:
    """GGUF's hyperparameters, keys without the architecture's name.

    Raises:
        ModelError: the config asks for something that llama.cpp does not do for this architecture.

    """
    kind = architecture.model_type
    _refuse_what_differs(config, kind, where)
    if kind == "gpt2":
        width = _number(config, "n_embd", where)
        found: dict[str, Any] = {ours: config.get(theirs) for ours, theirs in _GPT2.items()}
        found["feed_forward_length"] = config.get("n_inner") or 4 * width
        found[_EPSILON] = float(config.get("layer_norm_epsilon", 1e-5))
        return _checked(found, where)
    found = {ours: config.get(theirs) for ours, theirs in _DIMENSIONS.items()}
    if kind == "bert":
        del found["attention.head_count_kv"]  # its heads share no keys, whatever its config says
        found |= {_EPSILON: float(config.get("layer_norm_eps", 1e-12)), "attention.causal": False}
        return _checked(found, where)
    heads = _number(config, "num_attention_heads", where)
    found["attention.head_count_kv"] = config.get("num_key_value_heads") or heads
    head = head_dim(config)
    found[_RMS] = float(config.get("rms_norm_eps", 1e-6))
    found |= {"attention.key_length": head, "attention.value_length": head}
    rope = rope_parameters(config)
    found["rope.freq_base"] = float(rope.get("rope_theta", 10_000.0))
    if kind in {"llama", "mistral", "phi3"}:
        found["rope.dimension_count"] = int(head * float(rope.get("partial_rotary_factor", 1.0)))
    found |= _rope_scaling(rope, found["context_length"], where)
    if kind == "phi3":
        original = rope.get("original_max_position_embeddings") or config.get("original_max_position_embeddings")
        found["rope.scaling.original_context_length"] = int(original or found["context_length"])
        found["attention.sliding_window"] = int(config.get("sliding_window") or 0)
    if kind in _GEMMA_TYPES:
        found |= _gemma(config, kind)
    return _checked(found, where)


def rope_tensors(config: Mapping[str, Any], architecture: Architecture, where: str) -> dict[str, np.ndarray[Any, Any]]:
    """Rotary factors that GGUF keeps as tensors (float32): llama3's frequencies, phi3's long and short factors.

    Raises:
        ModelError: factors of the wrong number.

    """
    if architecture.model_type in {"gpt2", "bert"}:
        return {}
    rope = rope_parameters(config)
    kind = rope.get("rope_type") or rope.get("type")
    half = int(head_dim(config) * float(rope.get("partial_rotary_factor", 1.0))) // 2
    if kind == "llama3":
        return {ROPE_FREQS: llama3_factors(rope, half)}
    if kind in {"longrope", "su"}:
        found = {ROPE_LONG: rope.get("long_factor"), ROPE_SHORT: rope.get("short_factor")}
        for name, values in found.items():
            if not isinstance(values, list) or len(values) != half:
                raise ModelError(f"{where}: its config has no {half} rotary factors for {name}")
        return {name: np.asarray(values, np.float32) for name, values in found.items()}
    return {}


def llama3_factors(rope: Mapping[str, Any], half: int) -> np.ndarray[Any, Any]:
    """What each rotary frequency is divided by, float32 [half]: Llama 3.1's scaling.

    Slow frequencies are divided by `factor`, fast ones by 1, those between by something between.
    """
    theta = float(rope.get("rope_theta", 10_000.0))
    factor, original = float(rope.get("factor", 8.0)), float(rope.get("original_max_position_embeddings", 8192))
    low, high = float(rope.get("low_freq_factor", 1.0)), float(rope.get("high_freq_factor", 4.0))
    wavelengths = 2 * math.pi * theta ** (np.arange(half) / half)
    smooth = np.clip((original / wavelengths - low) / (high - low), 0.0, 1.0)
    factors: np.ndarray[Any, Any] = (1.0 / ((1.0 - smooth) / factor + smooth)).astype(np.float32)
    return factors


def head_dim(config: Mapping[str, Any]) -> int:
    """Width of an attention head."""
    return int(config.get("head_dim") or int(config["hidden_size"]) // int(config["num_attention_heads"]))


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
    kind = rope.get("rope_type") or "default"
    if kind in {"default", "llama3"}:
        return {}
    if kind == "linear":
        return {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])}
    if kind == "yarn":
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
    if kind in {"longrope", "su"}:
        original = int(rope.get("original_max_position_embeddings") or context)
        scale = int(context) / original
        factor = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
        return {"rope.scaling.type": "longrope", "rope.scaling.attn_factor": factor}
    raise ModelError(f"{where} scales its rotary positions by {kind!r}, which llama.cpp does not do")


def _gemma(config: Mapping[str, Any], kind: str) -> dict[str, Any]:
    found: dict[str, Any] = {"attention.sliding_window": int(config.get("sliding_window") or 4096)}
    caps = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0} if kind == "gemma2" else {}
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if (value := config.get(key, caps.get(key))) is not None:
            found[key] = float(value)
    local = config.get("rope_local_base_freq")
    new = config.get("rope_parameters")
    if isinstance(new, Mapping) and isinstance(new.get("sliding_attention"), Mapping):
        local = new["sliding_attention"].get("rope_theta", local)
    if kind == "gemma3_text":
        found["rope.freq_base_swa"] = float(local or 10_000.0)
    return found


def _refuse_what_differs(config: Mapping[str, Any], kind: str, where: str) -> None:
    """Settings that llama.cpp has built in: another one would answer differently, so it is refused."""
    activation = config.get("hidden_activation") or config.get("hidden_act") or config.get("activation_function")
    known = _ACTIVATIONS.get(kind, {"silu", "swish"})
    if activation is not None and activation not in known:
        raise ModelError(f"{where} uses the activation {activation!r}; llama.cpp has {' or '.join(sorted(known))} here")
    every = _SLIDING_EVERY.get(kind)
    layers = config.get("layer_types")
    if every and isinstance(layers, list):
        wanted = [_layer_type(number, every) for number in range(len(layers))]
        if layers != wanted:
            raise ModelError(
                f"{where}: llama.cpp has full attention in every layer whose number is a multiple of {every}, and this "
                "model in others (its layers were reordered): export a Hugging Face folder"
            )
    elif isinstance(layers, list) and len(set(layers)) > 1:
        raise ModelError(f"{where} mixes kinds of attention layers, which llama.cpp does not do for {kind}")
    if kind == "gemma2":
        scalar = config.get("query_pre_attn_scalar", 256)
        if config.get("num_hidden_layers") != 46 and scalar != head_dim(config):
            raise ModelError(f"{where} scales queries by {scalar}; llama.cpp by the head's width {head_dim(config)}")
    if kind == "gemma3_text":
        scalar = config.get("query_pre_attn_scalar", 256)
        if config.get("num_hidden_layers") != 62 and scalar != head_dim(config):
            raise ModelError(f"{where} scales queries by {scalar}; llama.cpp by the head's width {head_dim(config)}")
        if config.get("use_bidirectional_attention") or config.get("attn_logit_softcapping"):
            raise ModelError(f"{where} looks both ways or caps its attention; llama.cpp does not do so for gemma3")
    if kind == "gpt2" and (config.get("scale_attn_by_inverse_layer_idx") or config.get("scale_attn_weights") is False):
        raise ModelError(f"{where} scales its attention in a way of its own, which llama.cpp does not do")
    if kind == "bert" and config.get("position_embedding_type", "absolute") not in {"absolute", None}:
        raise ModelError(f"{where} has relative positions, which llama.cpp does not do for BERT")


def _layer_type(number: int, every: int) -> str:
    return "full_attention" if number % every == every - 1 else "sliding_attention"


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


# ---- metadata → config.json ----


@dataclass(frozen=True)
class _Hyperparameters:
    """An architecture's numbers in a file's metadata, each checked when it is read."""

    metadata: Mapping[str, Any]
    name: str
    where: str

    def number(self, key: str, default: int | None = None) -> int:
        value = self.metadata.get(f"{self.name}.{key}", default)
        if isinstance(value, list) and value and all(one == value[0] for one in value):
            value = value[0]
        if type(value) is not int or not 1 <= value < 1 << 31:
            raise self._unsound(key, value)
        return value

    def real(self, key: str, default: float | None = None) -> float:
        value = self.metadata.get(f"{self.name}.{key}", default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self._unsound(key, value)
        return float(str(np.float32(value)))  # as it was written down: 1e-05, not 9.999999747378752e-06

    def _unsound(self, key: str, value: Any) -> UnsafeFile:
        return UnsafeFile(f"{self.where}: its metadata has no sound {self.name}.{key} ({str(value)[:40]})")


def config_of(
    metadata: Mapping[str, Any], architecture: Architecture, where: str, *, vocabulary: int, tied: bool, dtype: str
) -> dict[str, Any]:
    """config.json of a GGUF file's model.

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
    kind, read = architecture.model_type, _Hyperparameters(metadata, architecture.name, where)
    config: dict[str, Any] = {
        "architectures": [architecture.hf_class],
        "model_type": kind,
        "vocab_size": vocabulary,
        "torch_dtype": dtype,
        "tie_word_embeddings": tied,
    }
    for key, special in (("bos", "bos"), ("eos", "eos"), ("padding", "pad")):
        value = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if type(value) is int and value < vocabulary:
            config[f"{special}_token_id"] = value
    if kind == "gpt2":
        return config | _gpt2_config(read)
    config |= {theirs: read.number(ours) for ours, theirs in _DIMENSIONS.items() if ours != "attention.head_count_kv"}
    if kind == "bert":
        config |= {"layer_norm_eps": read.real(_EPSILON, 1e-12), "hidden_act": "gelu"}
        return config | {"type_vocab_size": _token_types(metadata)}
    config |= _attention_config(read, kind, config["num_attention_heads"], config["hidden_size"])
    if kind in _GEMMA_TYPES:
        return config | _gemma_config(read, kind, config["head_dim"], config["num_hidden_layers"])
    config["hidden_act"] = "silu"
    if kind == "phi3":
        config["sliding_window"] = metadata.get("phi3.attention.sliding_window") or None
    if kind == "mistral":
        config["sliding_window"] = None
    return config


def _gpt2_config(read: _Hyperparameters) -> dict[str, Any]:
    config: dict[str, Any] = {
        theirs: read.number(ours) for ours, theirs in _GPT2.items() if ours != "feed_forward_length"
    }
    inner = read.number("feed_forward_length", 4 * config["n_embd"])
    config |= {"n_inner": inner, "n_ctx": config["n_positions"], "layer_norm_epsilon": read.real(_EPSILON, 1e-5)}
    return config | {"activation_function": "gelu_new"}


def _attention_config(read: _Hyperparameters, kind: str, heads: int, hidden_size: int) -> dict[str, Any]:
    shared = read.number("attention.head_count_kv", heads)
    if heads % shared:
        raise UnsafeFile(f"{read.where}: {heads} heads do not share {shared} keys evenly")
    head = read.number("attention.key_length", hidden_size // heads)
    rope = _rope_config(read.metadata, read.name, kind, head, read.real, read.number)
    return {"num_key_value_heads": shared, "head_dim": head, "rms_norm_eps": read.real(_RMS), **rope}


def _gemma_config(read: _Hyperparameters, kind: str, head: int, depth: int) -> dict[str, Any]:
    is_gemma2 = kind == "gemma2"
    capped = is_gemma2 or f"{read.name}.final_logit_softcapping" in read.metadata
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": head,
        "sliding_window": read.number("attention.sliding_window", 4096 if is_gemma2 else 1024),
        "layer_types": [_layer_type(layer, _SLIDING_EVERY[kind]) for layer in range(depth)],
        "attn_logit_softcapping": read.real("attn_logit_softcapping", 50.0) if is_gemma2 else None,
        "final_logit_softcapping": read.real("final_logit_softcapping", 30.0) if capped else None,
    }


def _token_types(metadata: Mapping[str, Any]) -> int:
    value = metadata.get("tokenizer.ggml.token_type_count", 2)
    return value if type(value) is int else 2


def _rope_config(
    metadata: Mapping[str, Any], name: str, kind: str, head: int, real: Any, number: Any
) -> dict[str, Any]:
    theta = real("rope.freq_base", 10_000.0)
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    scaling = metadata.get(f"{name}.rope.scaling.type", "none")
    if scaling == "linear":
        rope |= {"rope_type": "linear", "factor": real("rope.scaling.factor")}
    elif scaling == "yarn":
        rope |= {
            "rope_type": "yarn",
            "factor": real("rope.scaling.factor"),
            "original_max_position_embeddings": number("rope.scaling.original_context_length"),
        }
        for ours in ("beta_fast", "beta_slow"):
            if f"{name}.rope.scaling.yarn_{ours}" in metadata:
                rope[ours] = real(f"rope.scaling.yarn_{ours}")
    elif scaling == "longrope":
        rope["rope_type"] = "longrope"  # its factors are tensors: `with_rope_tensors`
    config: dict[str, Any] = {}
    if kind == "phi3":
        config["original_max_position_embeddings"] = number(
            "rope.scaling.original_context_length", number("context_length")
        )
        rotated = number("rope.dimension_count", head)
        if rotated != head:
            rope["partial_rotary_factor"] = rotated / head
    if kind == "gemma3_text":
        local = {"rope_type": "default", "rope_theta": real("rope.freq_base_swa", 10_000.0)}
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
