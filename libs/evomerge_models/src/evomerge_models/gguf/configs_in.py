"""GGUF's metadata and rotary factors → config.json."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from evomerge_common.errors import ModelError, UnsafeFile
from evomerge_models.gguf.architectures import NEEDED, Architecture, Field
from evomerge_models.gguf.hyperparameters import (
    ROPE_FREQS,
    ROPE_LONG,
    ROPE_SHORT,
    layer_type,
    llama3_factors,
    llama3_original,
    yarn_magnitude,
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

    def value(self, field: Field, config: Mapping[str, Any]) -> Any:
        """Reads a hyperparameter, or its default where the file says nothing (0 where the default is nothing).

        Raises:
            UnsafeFile: it is missing, or another thing.

        """
        said = self.metadata.get(f"{self.name}.{field.ours}")
        if said is None or (said == 0 and field.default in {None, 0}):
            if field.default is NEEDED:
                raise self._refusal(field.ours, said)
            return field.fallback(config)
        if field.kind is bool:
            if not isinstance(said, bool):
                raise self._refusal(field.ours, said)
            return said
        return self.real(field.ours) if field.kind is float else self.number(field.ours)

    def _refusal(self, key: str, value: object) -> UnsafeFile:
        return UnsafeFile(f"{self.where}: its metadata has no sound {self.name}.{key} ({str(value)[:40]})")


def config_of(
    metadata: Mapping[str, Any],
    architecture: Architecture,
    where: str,
    *,
    vocabulary: int,
    tensors: Collection[str],
    dtype: str,
) -> dict[str, Any]:
    """Makes config.json of a GGUF file's model.

    Args:
        metadata: the file's.
        architecture: its architecture.
        where: the file's name for errors.
        vocabulary: rows of its embedding.
        tensors: names of all that it holds; without a head it is tied.
        dtype: most of its weights', as config.json calls it.

    Raises:
        UnsafeFile: hyperparameters are missing or impossible.

    """
    config: dict[str, Any] = {
        "architectures": [architecture.hf_class],
        "model_type": architecture.model_type,
        "vocab_size": vocabulary,
        "torch_dtype": dtype,
        "tie_word_embeddings": "output.weight" not in tensors,
    }
    for key, special in (("bos", "bos"), ("eos", "eos"), ("padding", "pad")):
        value = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if type(value) is int and value < vocabulary:
            config[f"{special}_token_id"] = value
    given = Hyperparameters(metadata, architecture.name, where)
    for one in architecture.fields:
        if one.theirs:
            config[one.theirs[0]] = given.value(one, config)
    config |= {key: values[0] for key, values in architecture.fixed.items() if values[0] is not None}
    config |= {key: f"blk.0.{name}" in tensors for key, name in architecture.flags.items()}
    config |= architecture.reads
    if architecture.model_type == "bert":
        config["type_vocab_size"] = _token_types(metadata)
    config |= _attention_config(given, architecture, config) if architecture.positions else {}
    return {key: value for key, value in config.items() if key not in architecture.derived}


def _attention_config(given: Hyperparameters, architecture: Architecture, config: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says of heads, windows and positions."""
    heads, depth = config["num_attention_heads"], config["num_hidden_layers"]
    shared = config.get("num_key_value_heads", heads)
    if heads % shared:
        raise UnsafeFile(f"{given.where}: {heads} heads do not share {shared} keys evenly")
    head = given.number("attention.key_length", config["hidden_size"] // heads)
    found: dict[str, Any] = {"head_dim": head}
    if architecture.latent:
        rotated = given.number("rope.dimension_count")
        found = {"head_dim": rotated, "qk_rope_head_dim": rotated, "qk_nope_head_dim": head - rotated}
        found["v_head_dim"] = given.number("attention.value_length")
        found["q_lora_rank"] = config["q_lora_rank"] or None
        head = rotated
    if architecture.deep:
        found["query_pre_attn_scalar"] = architecture.query_scalar({**config, **found})
    if architecture.window:
        found["layer_types"] = _layer_types(given, architecture, depth)
    return found | _rope_config(given, architecture, config, head)


def _layer_types(given: Hyperparameters, architecture: Architecture, depth: int) -> list[str]:
    pattern = given.metadata.get(f"{given.name}.attention.sliding_window_pattern", architecture.window)
    if isinstance(pattern, list) and len(pattern) == depth:
        return ["sliding_attention" if one else "full_attention" for one in pattern]
    every = pattern if type(pattern) is int and pattern > 0 else architecture.window
    if architecture.window_depth not in {0, depth}:
        every = 1
    return [layer_type(number, every) for number in range(depth)]


def _token_types(metadata: Mapping[str, Any]) -> int:
    value = metadata.get("tokenizer.ggml.token_type_count", 2)
    return value if type(value) is int else 2


def _rope_config(
    given: Hyperparameters, architecture: Architecture, config: Mapping[str, Any], head: int
) -> dict[str, Any]:
    theta = given.real("rope.freq_base", 10_000.0)
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    found: dict[str, Any] = {}
    scaling = given.metadata.get(f"{given.name}.rope.scaling.type", "none")
    original = given.number("rope.scaling.original_context_length", given.number("context_length"))
    magnitude = given.real("rope.scaling.attn_factor") if given.has("rope.scaling.attn_factor") else None
    if scaling == "linear":
        rope |= {"rope_type": "linear", "factor": given.real("rope.scaling.factor")}
    elif scaling == "yarn":
        factor = given.real("rope.scaling.factor")
        rope |= {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
        for ours in ("beta_fast", "beta_slow"):
            if given.has(f"rope.scaling.yarn_{ours}"):
                rope[ours] = given.real(f"rope.scaling.yarn_{ours}")
        if magnitude is not None:
            rope["attention_factor"] = magnitude * yarn_magnitude(factor)
        if given.has("rope.scaling.yarn_log_multiplier"):
            every = 10 * given.real("rope.scaling.yarn_log_multiplier")
            rope |= {"mscale": every, "mscale_all_dim": every}
    elif scaling == "longrope":  # its factors are tensors: `with_rope_tensors`
        rope |= {"rope_type": "longrope", "original_max_position_embeddings": original}
        if magnitude is not None:
            rope["attention_factor"] = magnitude
    if given.has("attention.temperature_scale"):
        rope["llama_4_scaling_beta"] = given.real("attention.temperature_scale")
    rotated = given.number("rope.dimension_count", head)
    if rotated != head:
        rope["partial_rotary_factor"] = rotated / head
    if architecture.model_type == "phi3":
        found["original_max_position_embeddings"] = original
    if architecture.both:
        local = {"rope_type": "default", "rope_theta": given.real("rope.freq_base_swa", 10_000.0)}
        return {**found, "rope_parameters": {"full_attention": rope, "sliding_attention": local}}
    return {**found, "rope_theta": theta, "rope_parameters": rope}


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
                 "short_factor": tensors[ROPE_SHORT].ravel().tolist()}  # fmt: skip
        rope.setdefault("original_max_position_embeddings", config["max_position_embeddings"])
    elif ROPE_FREQS in tensors:
        factors = tensors[ROPE_FREQS].ravel().astype(np.float64)
        scaled = {"rope_type": "llama3", "rope_theta": config["rope_theta"], "factor": float(factors.max()),
                  "low_freq_factor": 1.0, "high_freq_factor": 4.0}  # fmt: skip
        scaled["original_max_position_embeddings"] = llama3_original(scaled, factors)
        if not np.allclose(llama3_factors(scaled, len(factors)), factors, rtol=1e-3):
            raise ModelError(f"{where}: its rotary factors are not those of Llama 3; give the model's own folder")
        rope = scaled
    else:
        return config
    return {**config, "rope_parameters": rope}
