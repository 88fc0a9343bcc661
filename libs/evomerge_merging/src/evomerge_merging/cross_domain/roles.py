"""Which part of a transformer each tensor is: the table of roles by which models of different builds meet.

A role has the same meaning in every family ("query", "attention output", "down" …); its canonical form is a matrix
[out, in] in float32, whatever the family stores: fused (GPT-2's c_attn, Phi-3's qkv_proj and gate_up_proj, GPT-NeoX's
query_key_value by head), transposed (GPT-2's Conv1D) or with norm weights counted from zero (Gemma).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

AXES: Mapping[str, tuple[str, ...]] = {
    "token embedding": ("vocabulary", "hidden"),
    "position embedding": ("position", "hidden"),
    "type embedding": ("type", "hidden"),
    "embedding norm": ("hidden",),
    "query": ("query", "hidden"),
    "key": ("key", "hidden"),
    "value": ("value", "hidden"),
    "attention output": ("hidden", "context"),
    "query norm": ("head",),
    "key norm": ("head",),
    "up": ("unit", "hidden"),
    "gate": ("unit", "hidden"),
    "down": ("hidden", "unit"),
    "attention input norm": ("hidden",),
    "attention output norm": ("hidden",),
    "attention branch norm": ("hidden",),
    "mlp input norm": ("hidden",),
    "mlp output norm": ("hidden",),
    "mlp branch norm": ("hidden",),
    "final norm": ("hidden",),
    "head": ("vocabulary", "hidden"),
    "head transform": ("hidden", "hidden"),
    "head norm": ("hidden",),
    "pooler": ("pooled", "hidden"),
}
"""Role → what its weight's axes stand for; a bias has the first. "hidden": the residual stream. "query", "key",
"value", "context": heads times head size. "unit": the neurons between up and down."""


@dataclass(frozen=True)
class Family:
    """Names of one family of architectures.

    Attributes:
        inside: module inside a layer → role, several joined by "+" where they are stored as one tensor.
        outside: module outside the layers (the end of its name) → role.
        transposed: whether layers' matrices are stored [in, out].
        by_head: fused query, key and value alternate by head instead of following each other.
        optional: modules of a layer that not every model of the family has.

    """

    inside: Mapping[str, str]
    outside: Mapping[str, str]
    transposed: bool = False
    by_head: bool = False
    optional: frozenset[str] = field(default_factory=frozenset)


_DECODER = {"embed_tokens": "token embedding", "norm": "final norm", "lm_head": "head"}
_BERT_INSIDE = {
    "attention.self.query": "query", "attention.self.key": "key", "attention.self.value": "value",
    "attention.output.dense": "attention output", "attention.output.LayerNorm": "attention output norm",
    "intermediate.dense": "up", "output.dense": "down", "output.LayerNorm": "mlp output norm",
}  # fmt: skip
_BERT_OUTSIDE = {
    "embeddings.word_embeddings": "token embedding", "embeddings.position_embeddings": "position embedding",
    "embeddings.token_type_embeddings": "type embedding", "embeddings.LayerNorm": "embedding norm",
    "pooler.dense": "pooler", "cls.predictions.transform.dense": "head transform",
    "cls.predictions.transform.LayerNorm": "head norm", "cls.predictions.decoder": "head", "cls.predictions": "head",
    "lm_head.dense": "head transform", "lm_head.layer_norm": "head norm", "lm_head.decoder": "head", "lm_head": "head",
    "generator_predictions.dense": "head transform", "generator_predictions.LayerNorm": "head norm",
    "generator_lm_head": "head",
}  # fmt: skip
_SELF_ATTENTION = {
    "self_attn.q_proj": "query", "self_attn.k_proj": "key", "self_attn.v_proj": "value",
    "self_attn.q_norm": "query norm", "self_attn.k_norm": "key norm",
}  # fmt: skip

FAMILIES: Mapping[str, Family] = {
    "bert": Family(_BERT_INSIDE, _BERT_OUTSIDE),
    "distilbert": Family(
        {
            "attention.q_lin": "query", "attention.k_lin": "key", "attention.v_lin": "value",
            "attention.out_lin": "attention output", "sa_layer_norm": "attention output norm",
            "ffn.lin1": "up", "ffn.lin2": "down", "output_layer_norm": "mlp output norm",
        },
        {
            "embeddings.word_embeddings": "token embedding", "embeddings.position_embeddings": "position embedding",
            "embeddings.LayerNorm": "embedding norm", "vocab_transform": "head transform",
            "vocab_layer_norm": "head norm", "vocab_projector": "head",
        },
    ),
    "llama": Family(
        {
            **_SELF_ATTENTION, "self_attn.o_proj": "attention output", "self_attn.qkv_proj": "query+key+value",
            "mlp.gate_proj": "gate", "mlp.up_proj": "up", "mlp.gate_up_proj": "gate+up", "mlp.down_proj": "down",
            "input_layernorm": "attention input norm", "post_attention_layernorm": "mlp input norm",
        },
        _DECODER,
    ),
    "gemma2": Family(
        {
            **_SELF_ATTENTION, "self_attn.o_proj": "attention output",
            "mlp.gate_proj": "gate", "mlp.up_proj": "up", "mlp.down_proj": "down",
            "input_layernorm": "attention input norm", "post_attention_layernorm": "attention branch norm",
            "pre_feedforward_layernorm": "mlp input norm", "post_feedforward_layernorm": "mlp branch norm",
        },
        _DECODER,
    ),
    "gpt2": Family(
        {
            "attn.c_attn": "query+key+value", "attn.c_proj": "attention output", "mlp.c_fc": "up", "mlp.c_proj": "down",
            "ln_1": "attention input norm", "ln_2": "mlp input norm",
        },
        {"wte": "token embedding", "wpe": "position embedding", "ln_f": "final norm", "lm_head": "head"},
        transposed=True,
    ),
    "gpt_neox": Family(
        {
            "attention.query_key_value": "query+key+value", "attention.dense": "attention output",
            "mlp.dense_h_to_4h": "up", "mlp.dense_4h_to_h": "down", "input_layernorm": "attention input norm",
            "post_attention_layernorm": "mlp input norm",
        },
        {"embed_in": "token embedding", "final_layer_norm": "final norm", "embed_out": "head"},
        by_head=True,
    ),
    "opt": Family(
        {
            **_SELF_ATTENTION, "self_attn.out_proj": "attention output", "fc1": "up", "fc2": "down",
            "self_attn_layer_norm": "attention input norm", "final_layer_norm": "mlp input norm",
        },
        {
            "embed_tokens": "token embedding", "embed_positions": "position embedding",
            "decoder.final_layer_norm": "final norm", "lm_head": "head",
        },
    ),
    "phi": Family(
        {
            **_SELF_ATTENTION, "self_attn.dense": "attention output", "mlp.fc1": "up", "mlp.fc2": "down",
            "input_layernorm": "attention input norm",
        },
        {"embed_tokens": "token embedding", "final_layernorm": "final norm", "lm_head": "head"},
    ),
}  # fmt: skip

POSITIONS_FROM_TWO = frozenset({"roberta", "xlm-roberta", "camembert", "opt", "mpnet"})
"""Model types whose position embeddings have two rows before that of the first position."""
NORMS_FROM_ZERO = frozenset({"gemma", "gemma2", "gemma3", "gemma3_text"})
"""Model types whose norms multiply by one plus their weight."""
_KIND = re.compile(r"\.(weight|bias)$")


def split_suffix(name: str) -> tuple[str, str]:
    """Returns module and "weight" or "bias"; the latter is empty for any other tensor."""
    match = _KIND.search(name)
    return (name[: match.start()], match[1]) if match else (name, "")


def outside_role(family: Family, module: str) -> str:
    """Returns the role of a module outside the layers; empty when the family has no such module."""
    fitting = [end for end in family.outside if module == end or module.endswith("." + end)]
    return family.outside[max(fitting, key=len)] if fitting else ""
