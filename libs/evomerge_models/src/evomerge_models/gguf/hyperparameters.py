"""How GGUF's metadata and config.json call the same hyperparameters, and what llama.cpp has built in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

DIMENSIONS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
}
GPT2_DIMENSIONS = {
    "context_length": "n_positions",
    "embedding_length": "n_embd",
    "block_count": "n_layer",
    "feed_forward_length": "n_inner",
    "attention.head_count": "n_head",
}
RMS_EPSILON, EPSILON = "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"
GEMMA_TYPES = ("gemma2", "gemma3_text")
SLIDING_EVERY = {"gemma2": 2, "gemma3_text": 6}
"""llama.cpp lets every layer but each so-manieth look at a window alone."""
ROPE_FREQS = "rope_freqs.weight"
ROPE_LONG, ROPE_SHORT = "rope_factors_long.weight", "rope_factors_short.weight"


def llama3_factors(rope: Mapping[str, Any], half: int) -> np.ndarray[Any, Any]:
    """What each rotary frequency is divided by, float32 [half]: Llama 3.1's scaling.

    Slow frequencies are divided by `factor`, fast ones by 1, those between by something between.
    """
    theta = float(rope.get("rope_theta", 10_000.0))
    factor, original = float(rope.get("factor", 8.0)), float(rope.get("original_max_position_embeddings", 8192))
    low, high = float(rope.get("low_freq_factor", 1.0)), float(rope.get("high_freq_factor", 4.0))
    wavelengths = 2 * math.pi * theta ** (np.arange(half) / half)
    smooth = np.clip((original / wavelengths - low) / (high - low), 0.0, 1.0)
    factors: np.ndarray[Any, Any] = (1.0 / ((1.0 - smooth) / factor + smooth)).astype(np.float32)
    return factors


def head_dim(config: Mapping[str, Any]) -> int:
    """Width of an attention head."""
    return int(config.get("head_dim") or int(config["hidden_size"]) // int(config["num_attention_heads"]))


def layer_type(number: int, every: int) -> str:
    """What llama.cpp lets a layer do where every so-manieth sees all: its attention's name in `layer_types`."""
    return "full_attention" if number % every == every - 1 else "sliding_attention"
