"""Models whose weights are stored as codes and scales are refused: merging arithmetic means nothing on codes.

What the tensors are counts for more than what the config says: a model tuned with QLoRA and merged into 16 bits often
still has the `quantization_config` of the 4 bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evomerge_common.errors import QuantisedModel
from evomerge_models.dtypes import BF16, F16, F32, F64, TYPES

_METHODS = {
    "gptq": "GPTQ", "awq": "AWQ", "bitsandbytes": "bitsandbytes", "compressed-tensors": "compressed-tensors",
    "fp8": "float8 with scales", "fbgemm_fp8": "float8 with scales", "mxfp4": "MXFP4", "modelopt": "ModelOpt",
}  # fmt: skip
"""`quant_method` of a config → how people call it; others are called as they call themselves."""
_CODES = {
    ".qweight": "GPTQ or AWQ", ".weight_packed": "compressed-tensors", ".SCB": "bitsandbytes, 8 bits",
    ".weight.absmax": "bitsandbytes, 4 bits",
}  # fmt: skip
"""Endings of tensors that only such models have."""
_CONFIG_KEYS = ("quantization_config", "compression_config")
_PLAIN = (F64, F32, F16, BF16)
_SCALES = ("_scale", "_scale_inv")
"""What the name of a float8 tensor's scale ends in. Float8 without scales is an element type like another."""


def check_plain(config: Mapping[str, Any], dtypes: Mapping[str, str], where: str) -> None:
    """Refuses a quantised model, from config and headers alone.

    Args:
        config: config.json.
        dtypes: tensor name → element type as safetensors calls it; empty where only the config is known yet.
        where: how to call the model in an error.

    Raises:
        QuantisedModel: says how it is quantised and what to give instead.

    """
    of_config = "" if is_stale(config, dtypes) else _of_config(config)
    kind = of_config or next((kind for name in dtypes if (kind := _of_tensor(name, dtypes))), "")
    if kind:
        what = "its tensors are codes, not weights" if dtypes else "its config.json says so"
        raise QuantisedModel(
            f"{where} is quantised ({kind}): {what}. Give the model that it was made from, "
            "or save it dequantised first (transformers: model.dequantize(), save_pretrained)"
        )


def is_stale(config: Mapping[str, Any], dtypes: Mapping[str, str]) -> bool:
    """Whether the config speaks of a quantisation that none of the tensors (name → element type) has.

    Codes are bytes, integers or float8; of whole numbers only counters as wide as positions are found in plain models.
    """
    return bool(dtypes and _of_config(config)) and all(
        TYPES[dtype] in _PLAIN or dtype == "I64" for dtype in dtypes.values()
    )


def without_quantisation(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config without its words about quantisation, those of its text part included."""
    result = {key: value for key, value in config.items() if key not in _CONFIG_KEYS}
    part = result.get("text_config")
    if isinstance(part, Mapping):
        result["text_config"] = {key: value for key, value in part.items() if key not in _CONFIG_KEYS}
    return result


def _of_config(config: Mapping[str, Any]) -> str:
    """What the config says of itself, such as "GPTQ, 4 bits"; "" where it says nothing."""
    for part in (config, config.get("text_config")):
        if not isinstance(part, Mapping):
            continue
        found = next((part[key] for key in _CONFIG_KEYS if part.get(key)), None)
        if not found:
            continue
        settings = found if isinstance(found, Mapping) else {}
        method = str(settings.get("quant_method") or "quantization_config")
        bits = settings.get("bits") or next(
            (bits for key, bits in (("load_in_4bit", 4), ("load_in_8bit", 8)) if settings.get(key)), None
        )
        return _METHODS.get(method, method) + (f", {bits} bits" if bits else "")
    return ""


def _of_tensor(name: str, dtypes: Mapping[str, str]) -> str:
    """How one tensor shows that it holds codes; "" where it does not."""
    if TYPES[dtypes[name]].is_packed:
        return f"packed {TYPES[dtypes[name]]}"
    if dtypes[name].startswith("F8_") and any(name + ending in dtypes for ending in _SCALES):
        return "float8 with scales"
    return next((kind for ending, kind in _CODES.items() if name.endswith(ending)), "")
