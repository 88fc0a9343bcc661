"""What transformers builds of a config: kinds of its layers, and which tensors it would find missing.

Models are built on the meta device: modules and shapes without weights. Only architectures that transformers knows by
itself; a model's own code is never run. transformers is imported at the first question, for that takes seconds.
"""

from __future__ import annotations

import copy
import functools
import json
import re
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from evomerge_merging.engine.architecture import DEPTH_KEYS

Kind = Mapping[str, Any]
"""What a layer is: values by the place where they were found, such as "self_attn.sliding_window"."""

_OWN_NUMBER = re.compile(r"(^|\.)(layer_idx|layer_id|layer_number|layer_index|block_idx|layer_num|index|idx)$")
_OTHER_NUMBER = re.compile(r"layer_(idx|index)$")
_NO_KIND = re.compile(r"(^|\.)(training|max_position\w*|max_seq\w*|n_positions|\w*vocab_size)$|dropout|gradient_ckpt")
_NO_LAYER_LIST = re.compile(r"token|architectures|section|limit|label|dims$|_map$")
_LAYER_WORD = re.compile(r"layer|block|idx|indices|pattern")
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_LOCK = threading.RLock()  # transformers quietens and patches itself process-wide while it builds


@dataclass(frozen=True)
class Reference:
    """A value of a layer that names another layer, such as the one whose keys and values it shares."""

    layer: int


@dataclass(frozen=True)
class Built:
    """A model on the meta device.

    Attributes:
        part: the config of its text model as transformers fills it in.
        kinds: what each layer is; empty where no list of layers of the config's depth was found.
        outside: shapes of the tensors that are in no layer.
        shared: for each layer, the lowest layer that owns each of its tensors, where that is another.

    """

    part: Mapping[str, Any]
    kinds: tuple[Kind, ...]
    outside: Mapping[str, tuple[int, ...]]
    shared: tuple[Mapping[str, int], ...]


@dataclass(frozen=True)
class Faults:
    """What loading would report: names of tensors, and (name, shape in the file, shape in the model)."""

    missing: frozenset[str]
    unexpected: frozenset[str]
    mismatched: frozenset[tuple[str, tuple[int, ...], tuple[int, ...]]]


def knows(config: Mapping[str, Any]) -> bool:
    """Whether transformers is here and knows the architecture."""
    try:
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    except ImportError:
        return False
    return config.get("model_type") in CONFIG_MAPPING_NAMES


def build(config: Mapping[str, Any], stack: str = "") -> Built:
    """Builds the model of a config; the same again from memory.

    Args:
        config: as in config.json, of an architecture that `knows`.
        stack: what the checkpoint calls its list of layers, such as "model.layers".

    Raises:
        Exception: whatever transformers says against the config.

    """
    return _build(json.dumps(config, sort_keys=True), stack.rpartition(".")[2])


def faults(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Faults:
    """Tells what `from_pretrained` would miss, ignore or refuse in a checkpoint of these names and shapes.

    It is transformers' own loader that says so, renamings and conversions included, on tensors without data.

    Raises:
        Exception: whatever transformers says against the config.

    """
    import torch

    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    with _quiet():
        made = _config(config)
        _, info = _class(config, made).from_pretrained(
            None, config=made, state_dict=tensors, device_map={"": "meta"}, dtype=torch.float32,
            output_loading_info=True, ignore_mismatched_sizes=True,
        )  # fmt: skip
    wrong = {(str(name), tuple(there), tuple(here)) for name, there, here in info["mismatched_keys"]}
    if info.get("error_msgs"):
        raise ValueError("; ".join(map(str, info["error_msgs"])))
    return Faults(frozenset(info["missing_keys"]), frozenset(info["unexpected_keys"]), frozenset(wrong))


def loading_names(config: Mapping[str, Any], names: Iterable[str]) -> dict[str, str]:
    """Tells under which name transformers loads each tensor of a checkpoint into the model of a config.

    Its own table of renamings, and the prefix of the base model that it adds or takes away. Where it also joins or
    splits tensors, the name is that of the part. A tensor that the model does not have keeps its name. Layers beyond
    the config's depth are named as those within it.

    Raises:
        Exception: whatever transformers says against the config.

    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        apply_converters,
        apply_renamings,
        dot_natural_key,
    )

    model = _meta_model(config)
    prefix = f"{model.base_model_prefix}." if model.base_model_prefix else ""
    there = {starred(name) for name in model.state_dict()}
    mapping = get_model_conversion_mapping(model)
    renamings = [one for one in mapping if isinstance(one, WeightRenaming)]
    converters = [one for one in mapping if isinstance(one, WeightConverter)]

    def loaded(name: str, *, rename: bool) -> tuple[str, bool]:
        """See core_model_loading.rename_source_key; and whether the model has the tensor."""
        part = apply_renamings(name, renamings) if rename else name
        whole = apply_converters(part, converters)[0] if rename else part
        if prefix and whole.startswith(prefix) and starred(whole.removeprefix(prefix)) in there:
            return part.removeprefix(prefix), True
        if prefix and starred(prefix + whole) in there:
            return prefix + part, True
        return part, starred(whole) in there

    found = {}
    for name in sorted(names, key=dot_natural_key):
        renamed, has = loaded(name, rename=True)
        found[name] = renamed if has or starred(name) not in there else loaded(name, rename=False)[0]
    return found


def starred(name: str) -> str:
    """The name with a star for each number."""
    return _NUMBER.sub("*", name)


def _meta_model(raw: Mapping[str, Any]) -> Any:
    import torch

    with _quiet():
        made = _config(raw)
        with torch.device("meta"):
            model = _class(raw, made)(made)
        model.tie_weights()
    return model


@functools.lru_cache(maxsize=64)
def _build(config: str, stack: str) -> Built:
    model = _meta_model(json.loads(config))
    text = model.config.get_text_config()
    path = _layers_path(model, text, stack)
    layers = list(model.get_submodule(path)) if path else []
    inside = f"{path}."
    outside = {
        name: tuple(one.shape)
        for name, one in (*model.named_parameters(), *model.named_buffers())
        if not path or not name.startswith(inside)
    }
    lists = _layer_values(text, len(layers))
    kinds = tuple({**_kind(layer, i), **lists[i]} for i, layer in enumerate(layers))
    return Built(json.loads(text.to_json_string(use_diff=False)), kinds, outside, _shared(layers))


def _config(raw: Mapping[str, Any]) -> Any:
    from transformers import CONFIG_MAPPING

    fields = {key: value for key, value in copy.deepcopy(dict(raw)).items() if key != "quantization_config"}
    return CONFIG_MAPPING[str(fields["model_type"])].from_dict(fields)


def _class(raw: Mapping[str, Any], made: Any) -> Any:
    import transformers

    for name in raw.get("architectures") or ():
        found = getattr(transformers, str(name), None)
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            return found
    for auto in (transformers.MODEL_FOR_CAUSAL_LM_MAPPING, transformers.MODEL_MAPPING):
        if type(made) in auto:
            return auto[type(made)]
    raise ValueError(f"transformers has no model for {type(made).__name__}")


@contextmanager
def _quiet() -> Iterator[None]:
    from transformers.utils import logging

    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity(logging.CRITICAL)
        logging.disable_progress_bar()
        try:
            yield
        finally:
            logging.set_verbosity(level)
            if bars:
                logging.enable_progress_bar()


def _layers_path(model: Any, text: Any, stack: str) -> str:
    """Finds the text model's list of layers: of the config's depth, in a module that has the text model's config."""
    import torch

    depth = getattr(text, "num_hidden_layers", None)
    found, owner = [], {"": model.config}
    for path, module in model.named_modules():
        parent = owner.get(path.rpartition(".")[0], model.config)
        config = getattr(module, "config", None)
        owner[path] = config if hasattr(config, "to_dict") else parent
        if isinstance(module, torch.nn.ModuleList) and len(module) == depth and type(owner[path]) is type(text):
            found.append(path)
    found = [path for path in found if not any(path.startswith(f"{other}.") for other in found)]
    named = [path for path in found if path.rpartition(".")[2] == stack]
    return min(named or found, key=len, default="")


def _kind(layer: Any, number: int) -> dict[str, Any]:
    """A layer's classes, plain attributes and shapes; its own number left out, numbers of others as references."""
    kind: dict[str, Any] = {}
    for path, module in layer.named_modules():
        place = f"{path}." if path else ""
        kind[f"{place}class"] = type(module).__name__
        for key, value in vars(module).items():
            if key.startswith("_") or key in DEPTH_KEYS or _NO_KIND.search(key):
                continue
            if type(value) is int and _OWN_NUMBER.search(key) and value - number in {0, 1}:
                continue
            if type(value) is int and _OTHER_NUMBER.search(key):
                kind[place + key] = Reference(value)
            elif value is None or isinstance(value, bool | int | float | str):
                kind[place + key] = value
    for name, one in (*layer.named_parameters(remove_duplicate=False), *layer.named_buffers()):
        kind[f"{name} shape"] = tuple(one.shape)
    return kind


def _layer_values(text: Any, depth: int) -> list[dict[str, Any]]:
    """What the config's own lists say of each layer: some models look there while they run."""
    found: list[dict[str, Any]] = [{} for _ in range(depth)]
    fields = dict(text.to_dict())
    for key in dir(type(text)):
        if "layer" in key and isinstance(getattr(type(text), key), property):
            fields.setdefault(key, getattr(text, key, None))
    for key, value in fields.items():
        if _NO_LAYER_LIST.search(key) or not isinstance(value, list | tuple | dict):
            continue
        for i, row in enumerate(found):
            if isinstance(value, dict):
                if value and all(str(name).isdigit() for name in value):
                    row[f"config.{key}"] = value.get(i, value.get(str(i)))
            elif is_index_list(key, value, depth):
                row[f"config.{key}"] = i in value
            elif len(value) == depth and value[i] == "shared":
                owner = max((j for j in range(i) if value[j] != "shared"), default=i)
                row |= {f"config.{key}": "shared", f"config.{key} of": Reference(owner)}
            elif len(value) == depth and not any(type(item) in {list, dict} for item in value):
                row[f"config.{key}"] = value[i]
    return found


def is_index_list(key: str, value: Any, depth: int) -> bool:
    """Whether a config's list holds numbers of layers, not a value for each layer."""
    if not isinstance(value, list | tuple) or not _LAYER_WORD.search(key):
        return False
    numbers = all(type(item) is int and item >= 0 for item in value) and len(set(value)) == len(value)
    return numbers and (len(value) != depth or list(value) == list(range(depth))) and key != "no_rope_layers"


def _shared(layers: list[Any]) -> tuple[Mapping[str, int], ...]:
    owner: dict[int, int] = {}
    found: list[dict[str, int]] = []
    for i, layer in enumerate(layers):
        row: dict[str, int] = {}
        for name, one in layer.named_parameters(remove_duplicate=False):
            first = owner.setdefault(id(one), i)
            if first != i:
                row[name] = first
        found.append(row)
    return tuple(found)
