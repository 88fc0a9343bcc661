"""What tensor names and config tell about a model's build: its stack of layers, embeddings, head, residual writers."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from evomerge_models.layers import (
    DEPTH_KEYS,
    INPUT_EMBEDDING,
    OUTPUT_NORMS,
    POST_NORM_WRITER,
    WRITERS,
    LayerStack,
    depth_of,
    input_embedding,
    layer_stack,
    numbered,
    text_config,
)

__all__ = [
    "DEPTH_KEYS", "LayerStack", "depth_of", "hop_factors", "input_embedding", "is_buffer", "is_embedding", "is_head",
    "is_post_norm", "is_tied", "is_token_embedding", "layer_stack", "numbered", "text_config",
]  # fmt: skip

_EMBEDDING = re.compile(r"(^|\.)(embed\w*|wte|wpe|word_embeddings\w*|tok_embeddings)(\.|$)")
_HEAD = re.compile(
    r"(^|\.)(lm_head|lm_head\.decoder|embed_out|vocab_projector|generator_lm_head)\.weight$"
    r"|^cls\.predictions\.decoder\.weight$"
)
_HEADLESS = re.compile(r"(?<!LMHead)Model$|For(Sequence|Token)Classification$|ForQuestionAnswering$|ForMultipleChoice$")
_BUFFER = re.compile(r"(\.|^)(position_ids|token_type_ids|inv_freq|masked_bias|attn\.bias)$")

_POST_NORM_READERS = re.compile(r"(^|\.)attention\.self\.(query|key|value)\.weight$")


def is_embedding(name: str) -> bool:
    """Whether a tensor outside the stack comes before its layers (else it comes after: norm, head, pooler)."""
    return _EMBEDDING.search(name) is not None and not is_head(name)


def is_token_embedding(name: str) -> bool:
    """Whether it has a row for each token."""
    return INPUT_EMBEDDING.search(name) is not None


def is_head(name: str) -> bool:
    """Whether it is the output projection, which may be tied to the input embedding."""
    return _HEAD.search(name) is not None


def is_buffer(name: str) -> bool:
    """Whether it holds constants that a model makes itself."""
    return _BUFFER.search(name) is not None


def is_tied(config: Mapping[str, Any], names: Collection[str]) -> bool:
    """Whether head and input embedding are one tensor.

    Configs leave out what is the default of their class, so without a word the absence of a head that the class should
    have tells it. A head beside no embedding that it could be is the model's own, whatever the flag.
    """
    flag = tie_flag(config)
    if flag and input_embedding(names) is None and any(is_head(name) for name in names):
        return False
    if flag is not None:
        return flag
    return "LM" in class_name(config) and not any(is_head(name) for name in names)


def tie_flag(config: Mapping[str, Any]) -> bool | None:
    """What the config says of `tie_word_embeddings`; None where it has no word about it."""
    flag = config.get("tie_word_embeddings", text_config(config).get("tie_word_embeddings"))
    return flag if isinstance(flag, bool) else None


def untied(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a model with a head of its own, in its text part too where that has a word about it."""
    result = {**config, "tie_word_embeddings": False}
    part = text_config(config)
    if part is not config and "tie_word_embeddings" in part:
        result["text_config"] = {**part, "tie_word_embeddings": False}
    return result


def class_name(config: Mapping[str, Any]) -> str:
    """The class that the config names first; empty where it names none."""
    names = config.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else ""


def is_headless(config: Mapping[str, Any], names: Iterable[str]) -> bool:
    """Whether a model is of a class without a language model's head (MistralModel, …ForSequenceClassification)."""
    return _HEADLESS.search(class_name(config)) is not None and not any(is_head(name) for name in names)


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
        factors |= {name: 1.0 / scale for name in names if POST_NORM_WRITER.search(name)}
        return factors or None
    if before == 1.0:
        return {}
    if any(OUTPUT_NORMS.search(name) for name in names):
        return None
    return {name: 1.0 / before for name in names if WRITERS.search(name)} or None


def is_post_norm(names: Iterable[str]) -> bool:
    """Whether layers normalise after the residual sum (BERT and its kin)."""
    return any(POST_NORM_WRITER.search(name) for name in names)
