"""Config fields that follow the layers: what each comes to when layers are left out, repeated or put in another order.

Pure: nothing is built here. Which of the ways is right is judged by what transformers builds of it (`layer_kinds.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from evomerge_merging.engine.architecture import DEPTH_KEYS, text_config

Origin = Sequence[tuple[Mapping[str, Any], int]]
"""For each layer of the output, the config of the model that it comes from and its number there."""

_OF_NO_BUILD = {"dtype", "torch_dtype", "_name_or_path", "auto_map", "transformers_version", "vocab_size", "use_cache"}
_NOT_OF_LAYERS = re.compile(r"token|architectures|section|limit|label|dims$")
_NUMBERS = re.compile(r"only_layers$|indices$|_idxs$|layer_ids$|moe_layers$|cross_attention_layers$|_index(es)?$")
_SCALAR = re.compile(
    r"layer|dense|period|offset|interval|sparse_step|layer_step|every|pattern|freq|window|start|end_index|shared|first"
)
_NO_SCALAR = re.compile(r"size|norm|time_|eps$|token|dim$|head|expert_inter|scale|std$")


def essence(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a config says of the build: without types, names, versions and the vocabulary."""
    return {
        key: essence(value) if key == "text_config" and isinstance(value, Mapping) else value
        for key, value in config.items()
        if key not in _OF_NO_BUILD and not key.endswith("_token_id")
    }


def rewritten(config: Mapping[str, Any], origin: Origin, depth: int, *, every_list: bool = False) -> dict[str, Any]:
    """The config for other layers: depth, lists, sets of layer numbers, patterns and dicts by number.

    Args:
        config: the donor's, unchanged here.
        origin: where each layer comes from.
        depth: the donor's number of layers.
        every_list: whether lists of that length count whose names do not speak of layers.

    """
    part = dict(text_config(config))
    for key in DEPTH_KEYS:
        if type(part.get(key)) is int and part[key] == depth:
            part[key] = len(origin)
    for key, value in part.items():
        part[key] = _moved(key, value, origin, depth, every_list=every_list)
    return with_part(config, part)


def with_part(config: Mapping[str, Any], part: Mapping[str, Any]) -> dict[str, Any]:
    """The config with another text part."""
    return dict(part) if text_config(config) is config else {**config, "text_config": dict(part)}


def _moved(key: str, value: Any, origin: Origin, depth: int, *, every_list: bool) -> Any:
    if _NOT_OF_LAYERS.search(key):
        return value
    said = [(text_config(source).get(key, value), layer) for source, layer in origin]
    if isinstance(value, list) and _NUMBERS.search(key) and _are_numbers(value):
        return [i for i, (other, layer) in enumerate(said) if isinstance(other, list) and layer in other]
    if isinstance(value, list) and len(value) == depth and ("layer" in key or every_list):
        return [_entry(other, layer, value) for other, layer in said]
    if isinstance(value, str) and len(value) == depth and "pattern" in key:
        return "".join(str(_entry(other, layer, value)) for other, layer in said)
    if isinstance(value, dict) and value and all(str(name).isdigit() for name in value):
        return {
            str(i): other[str(layer)]
            for i, (other, layer) in enumerate(said)
            if isinstance(other, dict) and str(layer) in other
        }
    return value


def _are_numbers(value: Sequence[Any]) -> bool:
    """Whether they can be numbers of layers; some configs name more than the model has."""
    return all(type(item) is int and item >= 0 for item in value) and len(set(value)) == len(value)


def _entry(values: Any, layer: int, fallback: Sequence[Any]) -> Any:
    if isinstance(values, list | str) and layer < len(values):
        return values[layer]
    return fallback[layer % len(fallback)]


def spelled_out(config: Mapping[str, Any], part: Mapping[str, Any], depth: int) -> dict[str, Any]:
    """The config with the lists written that its class derives from the number of a layer.

    Args:
        config: as in config.json.
        part: its text part as transformers fills it in.
        depth: number of layers.

    """
    given = text_config(config)
    lists = {
        key: value
        for key, value in part.items()
        if given.get(key) is None
        and not _NOT_OF_LAYERS.search(key)
        and isinstance(value, list)
        and value
        and (len(value) == depth or (_NUMBERS.search(key) and _are_numbers(value)))
    }
    return with_part(config, {**given, **lists})


def periods(config: Mapping[str, Any], part: Mapping[str, Any], origin: Origin, depth: int) -> dict[str, Any]:
    """The config with each period and offset (`attn_layer_period`, …) as the moved layers have them, where they can."""
    changes: dict[str, Any] = {}
    for key, period in part.items():
        offset = part.get(stem + "offset") if (stem := key.removesuffix("period")) != key else None
        if type(period) is not int or type(offset) is not int or period < 1:
            continue
        places = [i for i, (_, layer) in enumerate(origin) if layer % period == offset]
        never = len(origin) + 1
        if len(places) < 2:
            changes |= {key: never, stem + "offset": places[0] if places else never - 1}
        else:
            changes |= {key: places[1] - places[0], stem + "offset": places[0]}
    return with_part(config, {**text_config(config), **changes})


def scalars(part: Mapping[str, Any]) -> Iterator[str]:
    """Fields of a text config, one number each, that may say where in the stack a kind of layer starts or recurs."""
    for key, value in part.items():
        if type(value) is int and key not in DEPTH_KEYS and _SCALAR.search(key) and not _NO_SCALAR.search(key):
            yield key
