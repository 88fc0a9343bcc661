"""Where a model's layers are, by names and config alone, and what may be done with them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

DEPTH_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_NUMBERED = re.compile(r"^((?:[^.]+\.)*?[^.\d][^.]*)\.(\d+)\.(.+)$")
INPUT_EMBEDDING = re.compile(r"(^|\.)(embed_tokens|wte|word_embeddings|embed_in|tok_embeddings|shared)\.weight$")
_TOWER = re.compile(r"(^|[._])(vision|visual|image|img|audio|speech|video)\w*(\.|$)")

# Linear layers whose output is added to the residual stream, by their names' ends.
WRITERS = re.compile(
    r"(^|\.)(o_proj|down_proj|c_proj|out_proj|fc2|dense_4h_to_h|wo|w2|attention\.dense|self_attention\.dense)\.(weight|bias)$"
)
POST_NORM_WRITER = re.compile(r"(^|\.)attention\.output\.dense\.(weight|bias)$")
OUTPUT_NORMS = re.compile(r"(^|\.)post_feedforward_layernorm\.")

WHOLE, IN_PLACE, MOVABLE = "whole", "in_place", ""
"""What may be done with layers: nothing, for they cannot be told apart; each may come from another model but stays at
its place; they may be left out, repeated and reordered.
"""
_BY_PLACE = re.compile(
    r"^(first_k_dense_replace|moe_layer_(start|end)_index|(attn|expert)_layer_period|num_kv_shared_layers"
    r"|hidden_size_per_layer_input|num_dense_layers|cross_layer_interval|ple_layer_ids"
    r"|(num_)?decoder_layers|num_blocks|indexer_types)$"
)
_NUMBERS = re.compile(r"only_layers$|indices$|_idxs$|layer_ids$|moe_layers$|cross_attention_layers$")
_OF_FAMILIES_BY_PLACE = frozenset({
    "beam", "big_bird", "diffllama", "esm", "funnel", "gemma4_unified", "gemma4_unified_text", "inkling2_text",
    "minicpm3", "olmo_hybrid",
})  # fmt: skip
"""Families that do something else at each place, without a word in config or names (docs/families.md)."""


@dataclass(frozen=True)
class LayerStack:
    """The repeated blocks: tensors `<prefix>.<n>.<rest>` for n from 0 to depth - 1.

    Blocks beyond them (multi-token prediction) are none of the model's layers: transformers does not load them.
    """

    prefix: str
    depth: int

    def split(self, name: str) -> tuple[int, str] | None:
        """Layer number and the rest of a tensor's name, or None when it is not in the stack."""
        match = _NUMBERED.match(name)
        if match is None or match[1] != self.prefix or int(match[2]) >= self.depth:
            return None
        return int(match[2]), match[3]

    def beyond(self, name: str) -> int | None:
        """Number of the block beyond the layers that a tensor is in; None when it is in none."""
        match = _NUMBERED.match(name)
        return int(match[2]) if match and match[1] == self.prefix and int(match[2]) >= self.depth else None

    def name(self, layer: int, rest: str) -> str:
        """The tensor's full name."""
        return f"{self.prefix}.{layer}.{rest}"


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of the config that describes the language model."""
    nested = config.get("text_config")
    return nested if isinstance(nested, Mapping) else config


def depth_of(config: Mapping[str, Any]) -> int | None:
    """Number of layers that the config tells."""
    for key in DEPTH_KEYS:
        value = text_config(config).get(key)
        if type(value) is int:
            return value
    return None


def layer_stack(names: Iterable[str], config: Mapping[str, Any]) -> LayerStack | None:
    """The text model's layers: of the stacks as deep as the config says (or deeper), the one beside the embedding.

    A vision or audio tower may be as deep, and have more tensors; but it lies in a module of its own, away from the
    embedding. None: no such stack.
    """
    names = list(names)
    numbers: dict[str, set[int]] = {}
    counts: dict[str, int] = {}
    for name in names:
        if match := _NUMBERED.match(name):
            numbers.setdefault(match[1], set()).add(int(match[2]))
            counts[match[1]] = counts.get(match[1], 0) + 1
    depth = depth_of(config)
    whole = [prefix for prefix, found in numbers.items() if found == set(range(len(found)))]
    fitting = [prefix for prefix in whole if depth is None or len(numbers[prefix]) == depth]
    if depth and not fitting:
        fitting = [prefix for prefix in whole if len(numbers[prefix]) > depth]
    if not fitting:
        return None
    embedding = input_embedding(names) or ""
    if embedding and not _TOWER.search(embedding):
        fitting = [prefix for prefix in fitting if not _TOWER.search(prefix)]
        if not fitting:
            return None
    home = embedding.split(".")

    def nearness(prefix: str) -> tuple[int, int, bool, int, str]:
        path = prefix.split(".")
        together = next((i for i, (one, other) in enumerate(zip(path, home, strict=False)) if one != other), len(path))
        return together, -len(path), path[-1] in {"layers", "layer", "h"}, counts[prefix], prefix

    prefix = max(fitting, key=nearness)
    return LayerStack(prefix, depth or len(numbers[prefix]))


def numbered(name: str) -> tuple[str, int] | None:
    """Prefix and number of a name such as "decoder.block.3.…"; None when it has no number."""
    match = _NUMBERED.match(name)
    return (match[1], int(match[2])) if match else None


def input_embedding(names: Collection[str]) -> str | None:
    """The token embedding's name."""
    return min((name for name in names if INPUT_EMBEDDING.search(name)), key=len, default=None)


def movement(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Tells what may be done with a model's layers: `WHOLE`, `IN_PLACE` or `MOVABLE`.

    On the safe side: a search draws no layers in an order that this model might not hold. A single recipe is judged by
    what transformers builds of it.

    Args:
        config: config.json.
        shapes: the stored tensors; empty where they are not known, and nothing is said against moving then.

    """
    if config.get("is_encoder_decoder"):
        return WHOLE
    if not shapes:
        return MOVABLE
    stack = layer_stack(shapes, config)
    if stack is None:
        return WHOLE
    part = text_config(config)
    if config.get("model_type") in _OF_FAMILIES_BY_PLACE:
        return IN_PLACE
    if any(_BY_PLACE.search(key) and _acts(key, value) for key, value in part.items()):
        return IN_PLACE
    beside = {match[1] for name in shapes if (match := _NUMBERED.match(name))} - {stack.prefix}
    parent = stack.prefix.rpartition(".")[0]
    if any(prefix.rpartition(".")[0] == parent for prefix in beside):
        return IN_PLACE  # a layer is spread over several lists
    builds: list[dict[str, tuple[int, ...]]] = [{} for _ in range(stack.depth)]
    for name, shape in shapes.items():
        if split := stack.split(name):
            builds[split[0]][split[1]] = shape
    said = [_said(part, layer, stack.depth) for layer in range(stack.depth)]
    told_apart = all(
        one == other for i, one in enumerate(builds) for j, other in enumerate(builds[:i]) if said[i] == said[j]
    )
    return MOVABLE if told_apart else IN_PLACE


def hops_scale(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether the hidden state can be scaled between layers by changing weights alone (method dfs)."""
    stack = layer_stack(shapes, config) if shapes else None
    names = [split[1] for name in shapes if stack is not None and (split := stack.split(name)) and split[0] == 0]
    if any(POST_NORM_WRITER.search(name) for name in names):
        return True
    return not shapes or (
        any(WRITERS.search(name) for name in names) and not any(OUTPUT_NORMS.search(name) for name in names)
    )


def _acts(key: str, value: Any) -> bool:
    """Whether a field that counts layers makes some of them other than the rest."""
    if isinstance(value, list):
        return "shared" in value if key.endswith("types") else bool(value)
    return type(value) is int and value > 0 and not (key.endswith("period") and value == 1)


def _said(part: Mapping[str, Any], layer: int, depth: int) -> tuple[Any, ...]:
    """What a config that lists its layers says of one."""
    found: list[Any] = []
    for key, value in part.items():
        if isinstance(value, list) and _NUMBERS.search(key):
            found.append(layer in value)
        elif isinstance(value, list | str) and len(value) == depth and re.search(r"layer|pattern|block", key):
            found.append(str(value[layer]))
    return tuple(found)
