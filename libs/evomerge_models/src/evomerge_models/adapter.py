"""A LoRA or DoRA adapter as PEFT writes it, read and found sound in itself, from config and header alone.

An adapter is adapter_config.json and adapter_model.safetensors. Every key of the config that changes what the weights
mean is understood or refused by name. What it makes of a base is `adapter_changes`.
Format: https://huggingface.co/docs/peft/developer_guides/checkpoint; LoRA: Hu et al. 2021; rsLoRA: Kalajdzievski
2023; DoRA: Liu et al. 2024.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evomerge_common.domain.reference import ModelReference
from evomerge_common.errors import ModelError, NotAModel
from evomerge_models.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, check_adapter_files, names_in, read_json_object
from evomerge_models.headers import read_header
from evomerge_models.quantised import check_plain

_INERT = frozenset(
    {
        "auto_mapping", "base_model_name_or_path", "revision", "peft_type", "task_type", "inference_mode",
        "peft_version", "r", "target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out",
        "bias", "use_rslora", "modules_to_save", "layers_to_transform", "layers_pattern", "rank_pattern",
        "alpha_pattern", "megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config", "use_dora",
        "qalora_group_size", "runtime_config", "lora_bias", "ensure_weight_tying", "trainable_token_indices",
        "init_lora_weights", "velora_config",
    }
)  # fmt: skip
"""Config keys that are read here, or that only matter in training."""
_CHANGES_BASE = ("pissa", "corda", "olora", "loftq", "lora_ga")
"""Initialisations that subtract from the base what the factors start with."""
_PLAIN = re.compile(r"\^?[\w.\-]+")
_MAX_PATTERN = 300

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Adapter:
    """An adapter folder, read and found sound in itself."""

    folder: Path
    config: Mapping[str, Any]
    tensors: Shapes = field(repr=False)

    @property
    def base(self) -> ModelReference | None:
        """The model that it says it was trained on, such as org/name@revision; None when it does not say."""
        name, revision = self.config.get("base_model_name_or_path"), self.config.get("revision")
        if not isinstance(name, str) or not name:
            return None
        pinned = isinstance(revision, str) and revision not in {"", "main"} and not name.startswith((".", "/", "~"))
        return ModelReference(name, str(revision)) if pinned else ModelReference.of_name(name)

    @property
    def parameters(self) -> int:
        """Numbers in its tensors."""
        return sum(math.prod(shape) for shape in self.tensors.values())


def read_adapter(folder: Path) -> Adapter:
    """Reads config and header.

    Raises:
        NotAModel: a file is missing, or the config is none.
        ModelError: a key of the config that this version does not apply, by name.
        UnsafeFile: a pickle, or a header that lies.

    """
    config = read_json_object(folder / ADAPTER_CONFIG)
    check_adapter_config(config, str(folder / ADAPTER_CONFIG))
    check_adapter_files(names_in(folder), str(folder))
    tensors = read_header(folder / ADAPTER_WEIGHTS).tensors
    if not tensors:
        raise NotAModel(f"{folder / ADAPTER_WEIGHTS} holds no tensor")
    check_plain({}, {name: info.dtype.name for name, info in tensors.items()}, str(folder / ADAPTER_WEIGHTS))
    return Adapter(folder, config, {name: info.shape for name, info in tensors.items()})


def check_adapter_config(config: Mapping[str, Any], where: str) -> None:
    """Refuses whatever would make the weights mean something else than this module applies, naming the key.

    Raises:
        ModelError: see above.

    """

    def refuse(key: str, why: str) -> ModelError:
        return ModelError(f"{where}: {key}: {why}")

    kind = config.get("peft_type")
    if kind != "LORA":
        raise refuse("peft_type", f"{kind!r} adapters are not applied; LORA ones are (DoRA and rsLoRA among them)")
    for key, value in config.items():
        if key not in _INERT and value not in (None, False, "", 0, [], {}):
            raise refuse(key, f"{str(value)[:60]!r} is not supported; merge the adapter into its base with PEFT first")
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        raise refuse(
            "init_lora_weights",
            f"{start!r} changes the base's weights too, which this folder does not hold; save the adapter converted to "
            "plain LoRA (path_initial_model_for_weight_conversion of PEFT's save_pretrained)",
        )
    for key in ("r", "lora_alpha"):
        value = config.get(key, 8)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
            raise refuse(key, f"must be a number above zero, not {value!r}")
    for key in ("rank_pattern", "alpha_pattern"):
        patterns = config.get(key) or {}
        if not isinstance(patterns, Mapping):
            raise refuse(key, f"must be modules and numbers, not {str(patterns)[:60]!r}")
        for name, value in patterns.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 2**31:
                raise refuse(key, f"{name!r} must have a number above zero, not {value!r}")
            module_pattern(str(name), f"{where}: {key}")
    bias = config.get("bias", "none")
    if bias not in {"none", "all", "lora_only", None}:
        raise refuse("bias", f"must be none, all or lora_only, not {bias!r}")


def module_pattern(text: str, where: str) -> re.Pattern[str]:
    """A name or regular expression of modules, at the end of a module's name as PEFT matches it."""
    if not _PLAIN.fullmatch(text) and (len(text) > _MAX_PATTERN or re.search(r"\)[*+{?]|[*+}][*+{]", text)):
        # What strangers wrote must not keep a machine busy: repeated groups can take exponential time.
        raise ModelError(f"{where}: the pattern {text[:60]!r} is too involved; name the modules instead")
    try:
        return re.compile(rf"(?:.*\.)?(?:{text})$")
    except re.error as error:
        raise ModelError(f"{where}: {text[:60]!r} is no regular expression: {error}") from error
