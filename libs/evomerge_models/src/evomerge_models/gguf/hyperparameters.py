"""GGUF's keys and tensors of positions, and Llama 3's factors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

RMS_EPSILON, EPSILON = "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"
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


def llama3_original(rope: Mapping[str, Any], factors: np.ndarray[Any, Any]) -> int:
    """The context before scaling (`original_max_position_embeddings`) that a model's factors tell, else 8192."""
    theta, factor = float(rope["rope_theta"]), float(rope["factor"])
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    wavelengths = 2 * math.pi * theta ** (np.arange(len(factors)) / len(factors))
    between = (factors > 1.001) & (factors < 0.999 * factor)
    if not between.any():
        return 8192
    smooth = (1.0 / factors[between] - 1.0 / factor) / (1.0 - 1.0 / factor)
    return round(float(np.median(wavelengths[between] * (smooth * (high - low) + low))))


def yarn_magnitude(factor: float) -> float:
    """By what llama.cpp multiplies rotated queries and keys of YaRN when nothing else is said."""
    return 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0


def layer_type(number: int, every: int) -> str:
    """What llama.cpp lets a layer do where every so-manieth sees all: its attention's name in `layer_types`."""
    return "full_attention" if number % every == every - 1 else "sliding_attention"
