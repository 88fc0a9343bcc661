"""What tensor names and config tell about a model's build: its stack of layers, embeddings, head, residual writers."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

DEPTH_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_NUMBERED = re.compile(r"^((?:[^.]+\.)*?[^.\d][^.]*)\.(\d+)\.(.+)$")
_EMBEDDING = re.compile(r"(^|\.)(embed\w*|wte|wpe|word_embeddings\w*|tok_embeddings)(\.|$)")
_INPUT_EMBEDDING = re.compile(r"(^|\.)(embed_tokens|wte|word_embeddings|embed_in|tok_embeddings|shared)\.weight$")
_HEAD = re.compile(
    r"(^|\.)(lm_head|lm_head\.decoder|embed_out|vocab_projector|generator_lm_head)\.weight$"
    r"|^cls\.predictions\.decoder\.weight$"
)
_TOWER = re.compile(r"(^|[._])(vision|visual|image|img|audio|speech|video)\w*(\.|$)")
_BUFFER = re.compile(r"(\.|^)(position_ids|token_type_ids|inv_freq|masked_bias|attn\.bias)$")

# Linear layers whose output is added to the residual stream, by their names' ends.
_WRITERS = re.compile(
    r"(^|\.)(o_proj|down_proj|c_proj|out_proj|fc2|dense_4h_to_h|wo|w2|attention\.dense|self_attention\.dense)\.(weight|bias)$"
)
_POST_NORM_READERS = re.compile(r"(^|\.)attention\.self\.(query|key|value)\.weight$")
_POST_NORM_WRITER = re.compile(r"(^|\.)attention\.output\.dense\.(weight|bias)$")
_OUTPUT_NORMS = re.compile(r"(^|\.)post_feedforward_layernorm\.")


@dataclass(frozen=True)
class LayerStack:
    """The repeated blocks: tensors `<prefix>.<n>.<rest>` for n from 0 to depth - 1."""

    prefix: str
    depth: int

    def split(self, name: str) -> tuple[int, str] | None:
        """Layer number and the rest of a tensor's name, or None when it is not in the stack."""
        match = _NUMBERED.match(name)
        if match is None or match[1] != self.prefix:
            return None
        return int(match[2]), match[3]

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
    """The text model's layers: of the stacks as deep as the config says, the one beside the token embedding.

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
    fitting = [
        prefix
        for prefix, found in numbers.items()
        if found == set(range(len(found))) and (depth is None or len(found) == depth)
    ]
    if not fitting:
        return None
    home = (input_embedding(names) or "").split(".")

    def nearness(prefix: str) -> tuple[bool, int, int, int, str]:
        path = prefix.split(".")
        together = next((i for i, (one, other) in enumerate(zip(path, home, strict=False)) if one != other), len(path))
        return _TOWER.search(prefix) is None, together, -len(path), counts[prefix], prefix

    prefix = max(fitting, key=nearness)
    return LayerStack(prefix, len(numbers[prefix]))


def numbered(name: str) -> tuple[str, int] | None:
    """Prefix and number of a name such as "decoder.block.3.…"; None when it has no number."""
    match = _NUMBERED.match(name)
    return (match[1], int(match[2])) if match else None


def is_embedding(name: str) -> bool:
    """Whether a tensor outside the stack comes before its layers (else it comes after: norm, head, pooler)."""
    return _EMBEDDING.search(name) is not None and not is_head(name)


def is_token_embedding(name: str) -> bool:
    """Whether it has a row for each token."""
    return _INPUT_EMBEDDING.search(name) is not None


def is_head(name: str) -> bool:
    """Whether it is the output projection, which may be tied to the input embedding."""
    return _HEAD.search(name) is not None


def is_buffer(name: str) -> bool:
    """Whether it holds constants that a model makes itself."""
    return _BUFFER.search(name) is not None


def input_embedding(names: Collection[str]) -> str | None:
    """The token embedding's name."""
    return min((name for name in names if _INPUT_EMBEDDING.search(name)), key=len, default=None)


def is_tied(config: Mapping[str, Any], names: Collection[str]) -> bool:
    """Whether head and input embedding are one tensor.

    Configs leave out what is the default of their class, so without a word the absence of a head that the class should
    have tells it.
    """
    told = config.get("tie_word_embeddings", text_config(config).get("tie_word_embeddings"))
    if isinstance(told, bool):
        return told
    architectures = config.get("architectures") or [""]
    return "LM" in str(architectures[0]) and not any(is_head(name) for name in names)


def hop_factors(names: Iterable[str], scale: float, before: float, *, post_norm: bool) -> dict[str, float] | None:
    """How one layer's tensors show that the hidden state was scaled on its way through the model.

    Pre-norm layers read the hidden state through a norm, to which its scale is nothing; so a hidden state scaled by s
    is the same as everything that later layers add to it divided by s, and the final norm takes the rest. Post-norm
    layers (BERT) normalise their output, so only the layer behind the hop sees the scale: in its attention's inputs,
    and against what is added to it. Exact but for the norms' epsilon.

    Args:
        names: the layer's tensors.
        scale: of the hop right before this layer (1: none).
        before: product of all scales up to and including this layer's.
        post_norm: whether layers normalise after the residual sum.

    Returns:
        Factors other than 1 by tensor name, or None when this build is not known well enough.

    """
    names = list(names)
    if post_norm:
        if scale == 1.0:
            return {}
        factors = {name: scale for name in names if _POST_NORM_READERS.search(name)}
        factors |= {name: 1.0 / scale for name in names if _POST_NORM_WRITER.search(name)}
        return factors or None
    if before == 1.0:
        return {}
    if any(_OUTPUT_NORMS.search(name) for name in names):
        return None
    return {name: 1.0 / before for name in names if _WRITERS.search(name)} or None


def is_post_norm(names: Iterable[str]) -> bool:
    """Whether layers normalise after the residual sum (BERT and its kin)."""
    return any(_POST_NORM_WRITER.search(name) for name in names)
