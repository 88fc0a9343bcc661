"""GGUF files that nobody vouches for: what is sound is read as it is, what lies is told at once."""

from __future__ import annotations

import hashlib
import random
import struct
import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from evomerge_common.errors import EvoMergeException, ModelError, UnsafeFile
from evomerge_models.describe import check_model_folder, describe_model
from evomerge_models.gguf.describe import in_words, inspect_gguf, one_line
from evomerge_models.gguf.file import GgufFile
from evomerge_models.gguf.folder import CONVERTER, write_model_folder
from helpers.tiny_gguf import tiny_model

Kind = gguf.GGMLQuantizationType


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def entry(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def tensor(name: str = "t", shape: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def file_of(
    *parts: bytes, tensors: int = 0, entries: int = 0, version: int = 3, data: bytes = b"", magic: bytes = b"GGUF"
) -> bytes:
    head = magic + struct.pack("<IQQ", version, tensors, entries) + b"".join(parts)
    return head + b"\0" * (-len(head) % 32) + data


SOUND = file_of(tensor(), tensors=1, data=b"\0" * 16)


def test_the_sound_one_is_read(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(SOUND)
    with GgufFile(path) as file:
        assert file.values("t").tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "beginning"),
        (b"GGUF", "beginning"),
        (file_of(magic=b"GGML"), "no GGUF file"),
        (file_of(version=1), "version 1"),
        (file_of(version=3 << 24), "big-endian"),
        (file_of(tensors=2**63), "tensors in"),
        (file_of(entries=2**64 - 1), "metadata entries"),
        (file_of(struct.pack("<Q", 2**62), entries=1), "a metadata key"),
        (file_of(entry("k", 8, struct.pack("<Q", 2**63)), entries=1), "needs"),
        (file_of(entry("k", 9, struct.pack("<IQ", 8, 2**61)), entries=1), "elements"),
        (file_of(entry("k", 9, struct.pack("<IQ", 5, 2**62)), entries=1), "elements"),
        (file_of(entry("k", 9, struct.pack("<IQ", 9, 1)), entries=1), "unknown type 9"),
        (file_of(entry("k", 99, b""), entries=1), "unknown type 99"),
        (file_of(entry("k", 7, b"\7"), entries=1), "truth value"),
        (file_of(entry("k", 4, b"\1\0\0\0") * 2, entries=2), "given twice"),
        (file_of(entry("general.alignment", 4, struct.pack("<I", 7)), entries=1), "power of two"),
        (file_of(tensor() + tensor(), tensors=2, data=b"\0" * 64), "given twice"),
        (file_of(tensor() + tensor("u"), tensors=2, data=b"\0" * 64), "overlap"),
        (file_of(tensor("x" * 65), tensors=1, data=b"\0" * 16), "65 bytes"),
        (file_of(tensor(shape=(2,) * 5), tensors=1, data=b"\0" * 128), "5 dimensions"),
        (file_of(tensor(shape=(0,)), tensors=1), "shape"),
        (file_of(tensor(shape=(2**39, 2**39)), tensors=1), "shape"),
        (file_of(tensor(shape=(2**32, 2**31)), tensors=1), "shape"),
        (file_of(tensor(shape=(33,), kind=8), tensors=1, data=b"\0" * 64), "blocks of 32"),
        (file_of(tensor(kind=77), tensors=1, data=b"\0" * 16), "type 77"),
        (file_of(tensor(offset=16), tensors=1, data=b"\0" * 64), "not aligned"),
        (file_of(tensor(offset=2**63), tensors=1, data=b"\0" * 64), "ends at byte"),
        (file_of(tensor(), tensors=1, data=b"\0" * 15), "ends at byte"),
    ],
)
def test_a_lie_is_told_at_once(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content + b"\0" * 40 if "beginning" not in words and "ends" not in words else content)
    begun = time.monotonic()
    with pytest.raises(ModelError, match=words):
        GgufFile(path)
    assert time.monotonic() - begun < 1


def test_a_model_becomes_a_folder_and_is_told_in_words(tmp_path: Path) -> None:
    path = tiny_model(tmp_path / "m.gguf")
    write_model_folder(path, tmp_path / "out")
    check_model_folder(tmp_path / "out")
    assert describe_model(path).num_layers == 1
    assert {one.name for one in (tmp_path / "out").iterdir()} == {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json",
    }  # fmt: skip
    told = inspect_gguf(path)
    assert told["readable"]
    assert told["bits_per_weight"] == 32.0
    assert "EvoMerge reads it" in "\n".join(in_words(told))
    assert one_line({"length": 9, "first": ["a"]}) == "9 entries: 'a', …"


def test_the_converter_has_another_name_where_its_folders_are_others(tmp_path: Path) -> None:
    """The store keeps folders by it; before gguf-2 there were no biases, factors of attention, scales of queries."""
    write_model_folder(tiny_model(tmp_path / "m.gguf"), tmp_path / "out")
    config = hashlib.sha256((tmp_path / "out" / "config.json").read_bytes()).hexdigest()
    assert (CONVERTER, config[:16]) == ("gguf-2", "a4903cb950ffbe4e")


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"architecture": "mamba"}, ModelError, "mamba"),
        ({"architecture": "qwen2", "qwen2.expert_count": 4}, ModelError, "experts"),
        ({"llama.expert_count": 4}, ModelError, "ffn_gate"),
        ({"llama.block_count": 2}, UnsafeFile, "1 of its 2 layers"),
        ({"llama.block_count": None}, UnsafeFile, "block_count"),
        ({"llama.embedding_length": 4_000_000_000}, UnsafeFile, "embedding_length"),
        ({"llama.embedding_length": 16}, UnsafeFile, "8 wide"),
        ({"llama.attention.head_count": 3}, UnsafeFile, "3 heads"),
        ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, UnsafeFile, "epsilon"),
        ({"tokenizer.ggml.tokens": None}, ModelError, "no vocabulary"),
        ({"tokenizer.ggml.model": "rwkv"}, ModelError, "rwkv"),
        ({"tokenizer.ggml.pre": "never-heard-of"}, ModelError, "never-heard-of"),
        ({"tokenizer.ggml.eos_token_id": 4}, UnsafeFile, "eos"),
        ({"tokenizer.ggml.token_type": [1]}, UnsafeFile, "token_type"),
        ({"tokenizer.ggml.merges": ["ab"]}, UnsafeFile, "merges"),
        ({"tensor:token_embd.weight": None}, UnsafeFile, "token embedding"),
        ({"tensor:blk.0.odd.weight": np.zeros(4, np.float32)}, ModelError, "odd"),
        (
            {f"tensor:blk.0.attn_{one}.bias": np.ones(8, np.float32) for one in "qkv"},
            ModelError,
            r"bias 'blk.0.attn_q.b",
        ),
        ({"tensor:blk.0.ffn_up.bias": np.ones(12, np.float32)}, ModelError, r"bias 'blk.0.ffn_up.bias'"),
        ({"tensor:output_norm.bias": np.ones(8, np.float32)}, ModelError, r"bias 'output_norm.bias'"),
        ({"tensor:blk.7.attn_q.weight": np.zeros((8, 8), np.float32)}, UnsafeFile, "beyond"),
        ({"tensor:output_norm.weight": np.full(8, np.nan, np.float32)}, ModelError, "NaN"),
        ({"tensor:rope_freqs.weight": np.full(2, 3.0, np.float32)}, ModelError, "Llama 3"),
    ],
)
def test_what_does_not_agree_with_itself_leaves_nothing_behind(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception], words: str
) -> None:
    path = tiny_model(tmp_path / "m.gguf", **changes)
    with pytest.raises(error, match=words):
        write_model_folder(path, tmp_path / "out")
    assert [one.name for one in tmp_path.iterdir()] == ["m.gguf"]


def test_whatever_the_bytes_the_answer_is_a_typed_error_or_a_sound_folder(tmp_path: Path) -> None:
    whole = tiny_model(tmp_path / "m.gguf").read_bytes()
    rng = random.Random(7)
    path, refused = tmp_path / "x.gguf", 0
    for number in range(400):
        data = bytearray(whole)
        if number % 4 == 0:
            data = data[: rng.randrange(len(data))]
        else:
            for _ in range(rng.choice((1, 1, 4))):
                at = rng.randrange(min(len(data), 1800))
                data[at] = rng.choice((0, 1, 255, rng.randrange(256)))
        path.write_bytes(data)
        try:
            write_model_folder(path, tmp_path / "out", threads=1)
        except EvoMergeException:
            refused += 1
            assert not (tmp_path / "out").exists()
        else:
            for one in (tmp_path / "out").iterdir():
                one.unlink()
            (tmp_path / "out").rmdir()
    assert 100 < refused < 400
