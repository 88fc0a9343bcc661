"""Which row of the table a file's metadata or a config.json belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evomerge_common.errors import ModelError, did_you_mean
from evomerge_models.gguf.architectures import Architecture
from evomerge_models.gguf.table import ARCHITECTURES, ROWS

WRAPPERS = frozenset(
    {"gemma3", "mistral3", "llava", "llava_next", "llava_onevision", "idefics3", "smolvlm", "internvl", "qwen2_vl",
     "qwen2_5_vl", "qwen3_vl"}
)  # fmt: skip
"""Models of images and text whose text model is one of the above: that is written."""

_WITHOUT_IMAGES = {"qwen2_vl_text": "qwen2", "qwen2_5_vl_text": "qwen2", "qwen3_vl_text": "qwen3"}
"""Text models whose positions have three parts, which are one in a text: what they are then."""

MODEL_TYPE_KEY = "evomerge.model_type"
"""Metadata that we write, since GGUF calls mistral a llama."""


def of_gguf(metadata: Mapping[str, Any], where: str) -> Architecture:
    """The architecture of a file's metadata.

    Raises:
        ModelError: none that is known here.

    """
    name = metadata.get("general.architecture")
    named = metadata.get(MODEL_TYPE_KEY)
    found = [one for one in ROWS if one.name == name]
    if not found:
        valid = sorted({one.name for one in ROWS})
        raise ModelError(
            f"{where} holds a model of architecture {name!r}; read are {', '.join(valid)}: "
            "give the model as a Hugging Face folder"
        )
    mixed = bool(metadata.get(f"{name}.expert_count"))
    found = [one for one in found if one.has_experts == mixed]
    if not found:
        raise ModelError(
            f"{where} holds {'a' if mixed else 'no'} mixture of experts, as which {name} is not read: give its folder"
        )
    if named is None and any(
        "mistral" in str(metadata.get(f"general.{key}", "")).lower() for key in ("name", "basename")
    ):
        named = "mistral"
    if named is None and f"{name}.attention.sliding_window" in metadata:
        found.sort(key=lambda one: not one.window)
    if named is None and metadata.get(f"{name}.expert_shared_feed_forward_length"):
        found.reverse()
    return next((one for one in found if one.model_type == named), found[0])


def of_config(config: Mapping[str, Any], where: str) -> Architecture:
    """The architecture of a config.json, of its text model where that is a part.

    Raises:
        ModelError: GGUF is not written for it.

    """
    kind = str(text_config(config).get("model_type", ""))
    kind = _WITHOUT_IMAGES.get(kind, kind)
    if kind not in ARCHITECTURES:
        kind = str(config.get("model_type", ""))
        raise ModelError(
            f"{where} is a {kind or 'model of unknown type'}, for which GGUF is not written; "
            f"{did_you_mean(kind, ARCHITECTURES)}; export a Hugging Face folder"
        )
    return ARCHITECTURES[kind]


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config that a GGUF file is written of: its own, or its text model's beside images."""
    part = config.get("text_config")
    return part if config.get("model_type") in WRAPPERS and isinstance(part, Mapping) else config
