"""A small GGUF file, by gguf-py's own writer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np


def tiny_model(path: Path, **changes: Any) -> Path:
    """A llama of one layer; `changes` replace metadata (None removes), tensors by `tensor:NAME`."""
    meta: dict[str, Any] = {
        "llama.block_count": 1, "llama.context_length": 16, "llama.embedding_length": 8,
        "llama.feed_forward_length": 12,
        "llama.attention.head_count": 2, "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": ["a", "b", "ab", "</s>"],
        "tokenizer.ggml.token_type": [1, 1, 1, 3], "tokenizer.ggml.merges": ["a b"], "tokenizer.ggml.eos_token_id": 3,
    }  # fmt: skip
    shapes = {"token_embd": (4, 8), "output_norm": (8,), "blk.0.attn_norm": (8,), "blk.0.ffn_norm": (8,),
              **{f"blk.0.attn_{one}": (8, 8) for one in ("q", "k", "v", "output")},
              "blk.0.ffn_gate": (12, 8), "blk.0.ffn_up": (12, 8), "blk.0.ffn_down": (8, 12)}  # fmt: skip
    numbers = np.random.default_rng(0)
    tensors = {f"{name}.weight": numbers.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    architecture = changes.pop("architecture", "llama")
    tensors |= {key.removeprefix("tensor:"): changes.pop(key) for key in list(changes) if key.startswith("tensor:")}
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in (meta | changes).items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif value is not None:
            writer.add_array(key, value)
    for name, values in tensors.items():
        if values is not None:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
