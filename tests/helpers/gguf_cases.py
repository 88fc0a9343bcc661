"""A tiny model of every architecture that is written as GGUF, with settings that would show if they were lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from helpers import tiny_models

LONG = tiny_models.CORPUS[0] + " " + "1 + 1 = 2, naïve café; " * 3
PROMPTS = ["The quick brown fox", "1 + 1 = 2, 2 + 2 =", "Review: the soup was good.\nVerdict:", LONG]
"""The last is longer than the windows and the contexts before scaling below."""
CONTEXT, WINDOW, ORIGINAL = 128, 8, 16

_ROUTED = {"num_experts_per_tok": 2, "num_local_experts": 4}
_EXPERTS = {"num_experts_per_tok": 2, "num_experts": 4}
_NARROW = {**_EXPERTS, "moe_intermediate_size": 24}
_SHARED = {"num_experts_per_tok": 2, "n_routed_experts": 4, "n_shared_experts": 2, "moe_intermediate_size": 24,
           "first_k_dense_replace": 1, "num_hidden_layers": 3, "routed_scaling_factor": 1.5}  # fmt: skip
_LATENT = {"kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 12, "v_head_dim": 10,
           "num_key_value_heads": 4}  # fmt: skip
_MULTIPLIERS = {"embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.7,
                "attention_multiplier": 0.2}  # fmt: skip
_MOVED = {"num_hidden_layers": 5, "sliding_window": WINDOW,
          "layer_types": [f"{one}_attention" for one in ("full", "sliding", "sliding", "full", "full")]}  # fmt: skip
"""Layers that see all where no pattern has them."""
_PLAIN = {"rope_type": "default", "rope_theta": 10_000.0}
_LINEAR = {"rope_type": "linear", "rope_theta": 1_000_000.0, "factor": 4.0}
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 8.0, "original_max_position_embeddings": ORIGINAL}
_LLAMA3 = {"rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0,
           "high_freq_factor": 4.0, "original_max_position_embeddings": ORIGINAL}  # fmt: skip
_LONGROPE = {"rope_type": "longrope", "rope_theta": 10_000.0, "partial_rotary_factor": 0.75, "short_factor": [1.0] * 3,
             "long_factor": [1.5, 2.0, 3.0], "original_max_position_embeddings": ORIGINAL}  # fmt: skip


def _two(full: dict[str, Any], theta: float = 2_000.0) -> dict[str, Any]:
    return {"rope_parameters": {"full_attention": full, "sliding_attention": {**_PLAIN, "rope_theta": theta}}}


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"rope_parameters": _LLAMA3, "attention_bias": True, "mlp_bias": True, "head_dim": 16}),
    "llama linear": ("llama", {"rope_parameters": _LINEAR, "tie_word_embeddings": True}),
    "mistral": ("mistral", {"sliding_window": None, "head_dim": 8, "rope_parameters": YARN}),
    "mixtral": ("mixtral", _ROUTED),
    "qwen2": ("qwen2", {"rope_parameters": YARN}),
    "qwen2_moe": ("qwen2_moe", {**_NARROW, "shared_expert_intermediate_size": 40, "tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"rope_parameters": {**YARN, "attention_factor": 0.8}, "head_dim": 16}),
    "qwen3_moe": ("qwen3_moe", {**_NARROW, "norm_topk_prob": True, "head_dim": 8}),
    "gemma": ("gemma", {"head_dim": 16}),
    "gemma2": ("gemma2", {**_MOVED, "final_logit_softcapping": 5.0, "query_pre_attn_scalar": 23}),
    "gemma3_text": ("gemma3_text", {**_MOVED, "query_pre_attn_scalar": 23, **_two(_LINEAR)}),
    "phi": ("phi", {"partial_rotary_factor": 0.5}),
    "phi3": ("phi3", {"rope_parameters": _LONGROPE, "original_max_position_embeddings": ORIGINAL}),
    "olmo2": ("olmo2", {}),
    "olmo3": ("olmo3", {**_MOVED, **_two(YARN, 10_000.0)}),
    "olmoe": ("olmoe", {**_EXPERTS, "num_key_value_heads": 4}),
    "granite": ("granite", {**_MULTIPLIERS, "attention_bias": True}),
    "granitemoe": ("granitemoe", {**_MULTIPLIERS, **_ROUTED}),
    "granitemoeshared": ("granitemoeshared", {**_MULTIPLIERS, **_ROUTED, "shared_intermediate_size": 40}),
    "smollm3": ("smollm3", {"num_hidden_layers": 5}),
    "glm4": ("glm4", {"head_dim": 8, "attention_bias": True}),
    "glm4_moe": ("glm4_moe", {**_SHARED, "head_dim": 8, "n_group": 2, "topk_group": 1, "norm_topk_prob": True,
                              "partial_rotary_factor": 0.5, "use_qk_norm": True}),
    "deepseek_v2": ("deepseek_v2", {**_SHARED, **_LATENT, "q_lora_rank": None, "topk_method": "greedy"}),
    "deepseek_v3": ("deepseek_v3", {**_SHARED, **_LATENT, "q_lora_rank": 16, "n_group": 2, "topk_group": 1,
                                    "rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 0.7}}),
    "ernie4_5_moe": ("ernie4_5_moe", {"head_dim": 8, "moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 24,
                                      "moe_layer_start_index": 1, "moe_layer_end_index": 2, "num_hidden_layers": 3}),
    "cohere": ("cohere", {"logit_scale": 0.25}),
    "cohere2": ("cohere2", {**_MOVED, "head_dim": 8}),
    "starcoder2": ("starcoder2", {"tie_word_embeddings": False}),
    "stablelm": ("stablelm", {"use_qkv_bias": True}),
    "stablelm parallel": ("stablelm", {"use_parallel_residual": True, "partial_rotary_factor": 0.5}),
    "nemotron": ("nemotron", {"head_dim": 8}),
    "exaone4": ("exaone4", {"sliding_window": None, "layer_types": ["full_attention"] * 2}),
    "ernie4_5": ("ernie4_5", {"head_dim": 8}),
    "hunyuan_v1_dense": ("hunyuan_v1_dense", {"head_dim": 8, "rope_parameters": {
        "rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 1.0, "alpha": 50.0}}),
    "hunyuan_v1_moe": ("hunyuan_v1_moe", {"head_dim": 8, "num_experts": 4, "moe_topk": 2}),
    "dots1": ("dots1", {**_SHARED, "head_dim": 8, "num_key_value_heads": 4, "norm_topk_prob": True,
                        "sliding_window": None, "layer_types": ["full_attention"] * 3}),
    "glm": ("glm", {"head_dim": 8, "attention_bias": True}),
    "olmo": ("olmo", {"clip_qkv": 0.5}),
    "ministral3": ("ministral3", {"head_dim": 8, "rope_parameters": {
        **YARN, "mscale": 1.0, "mscale_all_dim": 1.0, "beta_slow": 0.05, "llama_4_scaling_beta": 0.3}}),
    "seed_oss": ("seed_oss", {"head_dim": 8}),
    "arcee": ("arcee", {"head_dim": 8, "rope_parameters": YARN}),
    "gpt_neox": ("gpt_neox", {"use_parallel_residual": False}),
    "falcon": ("falcon", {"num_kv_heads": 1, "ffn_hidden_size": 48}),
    "gpt2": ("gpt2", {}),
}  # fmt: skip
"""Name → model type and settings."""

WRAPPED: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma3": ("gemma3_text", {**_MOVED, "query_pre_attn_scalar": 8, **_two(_LINEAR)}),
    "mistral3": ("mistral", {"sliding_window": None, "head_dim": 8}),
    "llava": ("llama", {}),
    "internvl": ("qwen2", {}),
    "qwen2_vl": ("qwen2", {"rope_parameters": {**_PLAIN, "mrope_section": [1, 1, 2]}}),
    "qwen3_vl": ("qwen3", {"head_dim": 8}),
}
"""Model of images and text → its text model's type and settings."""


def make(folder: Path, name: str) -> Path:
    """The model of a case as a folder."""
    kind, settings = CASES[name]
    long = {"n_positions": CONTEXT} if kind == "gpt2" else {"max_position_embeddings": CONTEXT}
    if kind == "gpt2":
        settings = {**settings, "max_position_embeddings": CONTEXT}
    return tiny_models.make(folder, kind, **long, **settings)


def make_wrapped(folder: Path, name: str) -> Path:
    """A model of images and text as a folder: the text model of a case, and a small tower."""
    kind, settings = WRAPPED[name]
    text = tiny_models.make(folder.with_name(f"{folder.name}-text"), kind, max_position_embeddings=CONTEXT, **settings)
    size, patch = ([16, 16], [4, 4]) if name == "internvl" else (16, 4)
    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
             "image_size": size, "patch_size": patch}  # fmt: skip
    config = AutoConfig.for_model(name, text_config=AutoConfig.from_pretrained(text).to_dict(), vision_config=tower)
    model = AutoModelForImageTextToText.from_config(config)
    inner = AutoModelForCausalLM.from_pretrained(text)
    model.model.language_model.load_state_dict(inner.model.state_dict())
    with torch.no_grad():
        model.lm_head.weight.copy_(inner.lm_head.weight)
    model.save_pretrained(folder)
    for file in text.glob("token*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder
