"""The types of a GGUF file that can be asked for."""

from __future__ import annotations

PLAIN_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_0", "q5_1", "q4_0", "q4_1")
"""Written here."""
K_TYPES = ("q2_k", "q3_k_s", "q3_k_m", "q3_k_l", "q4_k_s", "q4_k_m", "q5_k_s", "q5_k_m", "q6_k")
"""Made by llama.cpp's llama-quantize."""
TYPES = ("auto", *PLAIN_TYPES, *K_TYPES)
"""`auto`: bf16 where the model is bf16, else f16."""
