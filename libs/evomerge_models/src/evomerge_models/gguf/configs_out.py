"""config.json → GGUF's metadata and rotary factors; what llama.cpp would do otherwise is refused.

Configs are as transformers reads them (every field there, positions in `rope_parameters`); `check` takes any.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from evomerge_common.errors import ModelError
from evomerge_models.gguf.architectures import Architecture, head_dim
from evomerge_models.gguf.hyperparameters import (
    ROPE_FREQS,
    ROPE_LONG,
    ROPE_SHORT,
    layer_type,
    llama3_factors,
    yarn_magnitude,
)

Config = Mapping[str, Any]
_SCALINGS = {None, "default", "linear", "yarn", "llama3", "longrope", "su"}


def metadata_of(config: Config, architecture: Architecture, where: str) -> dict[str, Any]:
    """GGUF's hyperparameters, keys without the architecture's name.

    What llama.cpp does otherwise is not looked for: `check` does.

    Raises:
        ModelError: the config lacks one.

    """
    found: dict[str, Any] = {}
    for one in architecture.fields:
        value = one.of(config)
        if value is not None:
            found[one.ours] = value
        elif one.default is not None:
            raise ModelError(f"{where}: its config says nothing about {one.ours.replace('_', ' ')} ({one.theirs[0]})")
    found |= architecture.writes
    if architecture.positions:
        head = head_dim(config)
        found |= {"attention.key_length": head, "attention.value_length": int(config.get("v_head_dim") or head)}
        found |= _positions(config, architecture, head)
    if architecture.window and (pattern := _pattern(config, architecture)) is not None:
        found["attention.sliding_window_pattern"] = pattern
    return found


def check(config: Config, architecture: Architecture, where: str) -> None:
    """Refuses settings that llama.cpp does not know or has built in otherwise: it would answer differently.

    Raises:
        ModelError: there are some.

    """
    for key, values in architecture.fixed.items():
        if key in config and config[key] not in values and not (key == "activation_function" and config[key] is None):
            raise ModelError(
                f"{where} has {config[key]!r} as its {key}; llama.cpp's {architecture.name} has "
                f"{' or '.join(repr(one) for one in values[:2])} built in: export a Hugging Face folder"
            )
    if architecture.plain_heads and config.get("head_dim"):
        heads, width = int(config["num_attention_heads"]), int(config["hidden_size"])
        if heads * head_dim(config) != width:
            raise ModelError(
                f"{where} has {heads} heads of {head_dim(config)} numbers each for a width of {width}; llama.cpp's "
                f"{architecture.name} needs heads that share the width: export a Hugging Face folder"
            )
    shared = config.get("num_key_value_heads") or config.get("num_attention_heads")
    if architecture.own_keys and shared != config.get("num_attention_heads"):
        raise ModelError(f"{where} has heads that share keys, which llama.cpp does not do for {architecture.name}")
    if architecture.positions:
        _check_positions(config, architecture, where)
    _check_layers(config, architecture, where)


def _check_positions(config: Config, architecture: Architecture, where: str) -> None:
    rope = rope_parameters(config)
    scaling = rope.get("rope_type")
    if scaling == "dynamic" and rope.get("alpha") and architecture.alpha:
        return
    if scaling not in _SCALINGS:
        raise ModelError(f"{where} scales its rotary positions by {scaling!r}, which llama.cpp does not do")
    if scaling in {"llama3", "longrope", "su"} and not architecture.factors:
        raise ModelError(
            f"{where} scales its rotary positions by {scaling!r}, which llama.cpp does not do for {architecture.name}"
        )
    some, every = rope.get("mscale"), rope.get("mscale_all_dim")
    if scaling == "yarn" and architecture.latent and (not every or some != every or rope.get("attention_factor")):
        raise ModelError(
            f"{where} has {some!r} as YaRN's mscale and {every!r} as its mscale_all_dim; llama.cpp's "
            f"{architecture.name} takes them to be equal: export a Hugging Face folder"
        )
    betas = float(rope.get("beta_fast") or 32), float(rope.get("beta_slow") or 1)
    if scaling == "yarn" and betas != (32.0, 1.0) and not architecture.betas:
        raise ModelError(
            f"{where} has {betas[0]:g} and {betas[1]:g} as YaRN's beta_fast and beta_slow; llama.cpp has 32 and 1 for "
            f"{architecture.name}: export a Hugging Face folder"
        )
    if scaling == "yarn" and rope.get("truncate") is False:
        raise ModelError(f"{where}: YaRN without truncation is what llama.cpp does not do")
    local = _local_positions(config)
    if local.get("rope_type", "default") != "default":
        raise ModelError(f"{where} scales the rotary positions of its sliding layers, which llama.cpp does not do")
    if architecture.one_base and local.get("rope_theta", rope.get("rope_theta")) != rope.get("rope_theta"):
        raise ModelError(f"{where} has sliding layers with a rope_theta of their own, unlike {architecture.name}'s")


def _check_layers(config: Config, architecture: Architecture, where: str) -> None:
    layers = config.get("layer_types")
    kinds = {*layers} if isinstance(layers, list) else set()
    if kinds - {"full_attention", "sliding_attention"}:
        other = sorted(kinds - {"full_attention", "sliding_attention"})
        raise ModelError(
            f"{where} has layers of kind {other[0]!r}, which llama.cpp's {architecture.name} does not have"
        )
    depth = architecture.window_depth
    if depth and bool(config.get("sliding_window")) != (config.get("num_hidden_layers") == depth):
        raise ModelError(
            f"{where}: llama.cpp's {architecture.name} has a sliding window in models of {depth} layers and in no "
            "others: export a Hugging Face folder"
        )
    if not architecture.window and len(kinds) > 1:
        raise ModelError(
            f"{where} mixes kinds of attention layers, which llama.cpp does not do for {architecture.name}"
        )
    every, used = architecture.no_rope, config.get("no_rope_layers")
    if every and isinstance(used, list) and used != [int((number + 1) % every != 0) for number in range(len(used))]:
        raise ModelError(
            f"{where}: llama.cpp has no positions in every layer whose number is a multiple of {every}, and this model "
            "in others (its layers were reordered): export a Hugging Face folder"
        )


def _pattern(config: Config, architecture: Architecture) -> list[bool] | None:
    """Which layers see a window; None: what llama.cpp takes them to see without a word."""
    layers = config.get("layer_types")
    if not isinstance(layers, list) or layers == [layer_type(i, architecture.window) for i in range(len(layers))]:
        return None
    return [one == "sliding_attention" for one in layers]


def rope_tensors(config: Config, architecture: Architecture, where: str) -> dict[str, np.ndarray[Any, Any]]:
    """Rotary factors that GGUF keeps as tensors (float32): llama3's frequencies, long and short factors of longrope.

    Raises:
        ModelError: factors of the wrong number.

    """
    if not architecture.positions:
        return {}
    rope = rope_parameters(config)
    half = _rotated(config, rope) // 2
    if rope.get("rope_type") == "llama3":
        return {ROPE_FREQS: llama3_factors(rope, half)}
    if rope.get("rope_type") in {"longrope", "su"}:
        found = {ROPE_LONG: rope.get("long_factor"), ROPE_SHORT: rope.get("short_factor")}
        for name, values in found.items():
            if not isinstance(values, list) or len(values) != half:
                raise ModelError(f"{where}: its config has no {half} rotary factors for {name}")
        return {name: np.asarray(values, np.float32) for name, values in found.items()}
    return {}


def rope_parameters(config: Config) -> dict[str, Any]:
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
    return found


def _local_positions(config: Config) -> dict[str, Any]:
    new = config.get("rope_parameters")
    local = new.get("sliding_attention") if isinstance(new, Mapping) else None
    return dict(local) if isinstance(local, Mapping) else {}


def _rotated(config: Config, rope: Config) -> int:
    """How much of a head has positions."""
    return int(config.get("qk_rope_head_dim") or head_dim(config) * float(rope.get("partial_rotary_factor") or 1.0))


def _positions(config: Config, architecture: Architecture, head: int) -> dict[str, Any]:
    rope = rope_parameters(config)
    theta, rotated = float(rope.get("rope_theta", 10_000.0)), _rotated(config, rope)
    if rope.get("rope_type") == "dynamic":  # with a fixed alpha: the base alone is another
        theta *= float(rope["alpha"]) ** (head / (head - 2))
    found: dict[str, Any] = {"rope.freq_base": theta, "rope.dimension_count": rotated}
    if rope.get("llama_4_scaling_beta"):
        found["attention.temperature_scale"] = float(rope["llama_4_scaling_beta"])
    if architecture.both:
        found["rope.freq_base_swa"] = float(_local_positions(config).get("rope_theta", 10_000.0))
    context = config.get("max_position_embeddings")
    if architecture.latent and rope.get("rope_type") == "yarn":
        found["rope.scaling.yarn_log_multiplier"] = 0.1 * float(rope["mscale_all_dim"])
        rope["mscale"] = None  # it is no factor of its own there
        return found | _scaling(rope, context) | _original(rope, config, context)
    return found | _scaling(rope, context) | _original(rope, config, context)


def _scaling(rope: Config, context: Any) -> dict[str, Any]:
    scaling = rope.get("rope_type")
    if scaling == "linear":
        return {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])}
    original = int(rope.get("original_max_position_embeddings") or context or 0)
    given = rope.get("attention_factor")
    if scaling == "yarn":
        factor = float(rope.get("factor") or context / original)
        found = {"rope.scaling.type": "yarn", "rope.scaling.factor": factor}
        for key in ("beta_fast", "beta_slow"):
            if rope.get(key) is not None:
                found[f"rope.scaling.yarn_{key}"] = float(rope[key])
        some, every = rope.get("mscale"), rope.get("mscale_all_dim")
        if given is None and some and every:
            given = (some * (yarn_magnitude(factor) - 1) + 1) / (every * (yarn_magnitude(factor) - 1) + 1)
        if given is not None:
            found["rope.scaling.attn_factor"] = float(given) / yarn_magnitude(factor)
        return found
    if scaling in {"longrope", "su"}:
        scale = float(rope.get("factor") or context / original)
        if given is None:
            given = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
        return {"rope.scaling.type": "longrope", "rope.scaling.attn_factor": float(given)}
    return {}


def _original(rope: Config, config: Config, context: Any) -> dict[str, Any]:
    """The context before scaling, where llama.cpp needs it."""
    if rope.get("rope_type") not in {"yarn", "longrope", "su"} and "original_max_position_embeddings" not in config:
        return {}
    original = rope.get("original_max_position_embeddings") or config.get("original_max_position_embeddings")
    return {"rope.scaling.original_context_length": int(original or context)}
