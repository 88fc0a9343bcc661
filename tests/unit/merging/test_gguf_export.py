"""Models as GGUF and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModel, AutoTokenizer

from evomerge_common.errors import InvalidInput, ModelError
from evomerge_merging.export.gguf import export_gguf
from evomerge_models.gguf.folder import write_model_folder
from helpers import tiny_models
from helpers.tiny_merging import rewrite

KINDS = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma2", "gemma3_text", "gpt2")


def made(folder: Path, kind: str, **options: Any) -> Path:
    extra = {"query_pre_attn_scalar": 8} if kind.startswith("gemma") else {}
    return tiny_models.make(folder, kind, **extra, **options)


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back_is_the_same_file(tmp_path: Path, kind: str, dtype: str) -> None:
    folder = made(tmp_path / "model", kind)
    first = export_gguf(folder, tmp_path / "a.gguf", dtype, name="x")
    write_model_folder(first.path, tmp_path / "back")
    second = export_gguf(tmp_path / "back", tmp_path / "b.gguf", dtype, name="x")
    assert first.path.read_bytes() == second.path.read_bytes()
    if dtype == "f32":
        before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "back" / "model.safetensors")
        assert before.keys() == after.keys()
        assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)
    text = "The quick brown fox, naïve café: 1 + 1 = 2"
    mine, theirs = (AutoTokenizer.from_pretrained(one) for one in (tmp_path / "back", folder))
    assert mine(text).input_ids == theirs(text).input_ids
    assert AutoModel.from_pretrained(tmp_path / "back").config.model_type == kind


@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_bert_is_written_without_its_head_and_comes_back_as_the_same_file(tmp_path: Path, dtype: str) -> None:
    folder = made(tmp_path / "model", "bert")
    first = export_gguf(folder, tmp_path / "a.gguf", dtype, name="x")
    assert "masked-word head" in first.notes[0]
    write_model_folder(first.path, tmp_path / "back")
    second = export_gguf(tmp_path / "back", tmp_path / "b.gguf", dtype, name="x")
    assert first.path.read_bytes() == second.path.read_bytes()
    ids = AutoTokenizer.from_pretrained(tmp_path / "back")("The quick brown fox", return_tensors="pt")
    assert ids.input_ids.tolist() == [AutoTokenizer.from_pretrained(folder)("The quick brown fox").input_ids]
    model = AutoModel.from_pretrained(folder, add_pooling_layer=False, dtype=torch.float32).eval()
    back = AutoModel.from_pretrained(tmp_path / "back", add_pooling_layer=False, dtype=torch.float32).eval()
    with torch.no_grad():
        found, expected = (one(**ids).last_hidden_state for one in (back, model))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 if dtype == "f32" else 0.01)


@pytest.mark.parametrize("kind", ["q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "bf16"])
def test_blocks_hold_about_what_was_there(tmp_path: Path, kind: str) -> None:
    folder = made(tmp_path / "model", "llama", intermediate_size=64)
    report = export_gguf(folder, tmp_path / "a.gguf", kind)
    write_model_folder(report.path, tmp_path / "back")
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "back" / "model.safetensors")
    bound = {"q8_0": 0.02, "bf16": 0.01}.get(kind, 0.15)
    for name, tensor in before.items():
        assert (tensor - after[name].float()).norm() <= bound * tensor.norm(), name


def test_an_added_token_without_a_row_is_left_out_and_told(tmp_path: Path) -> None:
    folders = [made(tmp_path / name, "llama") for name in ("whole", "beyond")]
    tokenizer = Tokenizer.from_file(str(folders[1] / "tokenizer.json"))
    tokenizer.add_special_tokens(["[PAD]"])
    tokenizer.save(str(folders[1] / "tokenizer.json"))
    settings = json.loads((folders[1] / "tokenizer_config.json").read_text())
    (folders[1] / "tokenizer_config.json").write_text(json.dumps({**settings, "pad_token": "[PAD]"}))
    exported = [export_gguf(folder, folder.with_suffix(".gguf"), "f32", name="x") for folder in folders]
    assert any("without a row in the embedding are left out: '[PAD]'" in note for note in exported[1].notes)
    read = [gguf.GGUFReader(one.path) for one in exported]
    tokens = [one.get_field("tokenizer.ggml.tokens").contents() for one in read]
    assert tokens[0] == tokens[1]
    assert read[1].get_field("tokenizer.ggml.padding_token_id") is None


def test_what_llama_cpp_does_not_do_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = made(tmp_path / "model", "llama")
    monkeypatch.setattr("evomerge_merging.export.gguf.shutil.which", lambda _: None)
    with pytest.raises(InvalidInput, match="llama-quantize"):
        export_gguf(folder, tmp_path / "a.gguf", "q4_k_m")
    config = json.loads((folder / "config.json").read_text())
    for changes, words in (
        ({"hidden_act": "relu"}, "relu"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"model_type": "mamba"}, "mamba"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised"),
    ):
        (folder / "config.json").write_text(json.dumps(config | changes))
        if "quantization_config" in changes:
            rewrite(folder, {"model.layers.0.mlp.up_proj.qweight": torch.zeros(8, 8, dtype=torch.int32)})
        with pytest.raises(ModelError, match=words):
            export_gguf(folder, tmp_path / "a.gguf", "f16")
    assert [one.name for one in tmp_path.iterdir()] == ["model"]
