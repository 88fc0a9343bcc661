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
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from evomerge_common.errors import InvalidInput, ModelError
from evomerge_merging.export.gguf import export_gguf
from evomerge_models.gguf.folder import write_model_folder
from helpers import gguf_cases, tiny_models
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


@pytest.mark.parametrize("name", gguf_cases.CASES)
def test_every_architecture_comes_back_as_it_was(tmp_path: Path, name: str) -> None:
    folder = gguf_cases.make(tmp_path / "model", name)
    report = export_gguf(folder, tmp_path / "m.gguf", "f32")
    write_model_folder(report.path, tmp_path / "back")
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "back" / "model.safetensors")
    if name == "qwen2_moe":  # llama.cpp needs its head, which is its embedding
        before["lm_head.weight"] = before["model.embed_tokens.weight"]
    scaled = "q_proj" if name == "gemma2" else "q_norm" if name == "gemma3_text" else "-"
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        if scaled not in key:
            torch.testing.assert_close(after[key], tensor, rtol=0, atol=1e-6)
    one, other = (AutoModelForCausalLM.from_pretrained(path).eval() for path in (folder, tmp_path / "back"))
    ids = torch.tensor([AutoTokenizer.from_pretrained(folder)(gguf_cases.LONG).input_ids])
    with torch.no_grad():
        torch.testing.assert_close(other(ids).logits, one(ids).logits, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
@pytest.mark.parametrize("name", ["qwen3_moe", "granitemoe", "gemma3_text"])
def test_experts_and_what_does_not_fill_blocks_are_quantised_as_far_as_they_go(
    tmp_path: Path, name: str, kind: str
) -> None:
    report = export_gguf(gguf_cases.make(tmp_path / "model", name), tmp_path / "m.gguf", kind)
    types = {one.name: one.tensor_type.name for one in gguf.GGUFReader(report.path).tensors}
    odd = [one for one, shape in types.items() if shape == "F16"]
    assert odd
    assert f"{len(odd)} tensors whose rows are no multiple of 32 are f16" in report.notes[0]
    stacked = "blk.0.ffn_up" if name == "gemma3_text" else "blk.0.ffn_up_exps"
    assert types[f"{stacked}.weight"] == kind.upper()
    assert name == "gemma3_text" or types["blk.0.ffn_gate_inp.weight"] == "F32"


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("qwen3_moe", {"norm_topk_prob": False}, "norm_topk_prob"),
        ("qwen3_moe", {"mlp_only_layers": [1]}, r"\[1\] as its mlp_only_layers"),
        ("qwen2_moe", {"decoder_sparse_step": 2}, "decoder_sparse_step"),
        ("olmoe", {"num_key_value_heads": 2}, "share keys"),
        ("olmoe", {"clip_qkv": 8.0}, "clip_qkv"),
        ("olmo2", {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "llama3"),
        ("qwen3", {"rope_parameters": {**gguf_cases.YARN, "beta_slow": 2.0}}, "32 and 2 as YaRN's beta_fast"),
        ("qwen3", {"rope_parameters": {**gguf_cases.YARN, "truncate": False}}, "truncation"),
        (
            "olmo3",
            {
                "rope_parameters": {
                    "full_attention": gguf_cases.YARN,
                    "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
                }
            },
            "rope_theta of their own",
        ),
        ("smollm3", {"no_rope_layers": [0, 1, 1, 1, 0]}, "reordered"),
        ("cohere", {"use_qk_norm": True}, "use_qk_norm"),
        ("exaone4", {"sliding_window": 8}, "64 layers"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "bidirectional"),
        ("qwen3", {"layer_types": ["sliding_attention", "full_attention"]}, "mixes kinds"),
        ("qwen3", {"layer_types": ["linear_attention", "full_attention"]}, "linear_attention"),
        ("deepseek_v3", {"rope_interleave": False}, "rope_interleave"),
        ("deepseek_v2", {"topk_method": "group_limited_greedy"}, "topk_method"),
        ("glm4_moe", {"first_k_dense_replace": 2}, "layers 0 and 1 do not hold the same tensors"),
        ("starcoder2", {"use_bias": False}, "use_bias"),
        ("cohere2", {"tie_word_embeddings": False}, "head"),
    ],
)
def test_settings_that_gguf_has_no_words_for_are_refused_by_name(
    tmp_path: Path, name: str, changes: dict[str, Any], words: str
) -> None:
    folder = gguf_cases.make(tmp_path / "model", name)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ModelError, match=words):
        export_gguf(folder, tmp_path / "a.gguf", "f16")
    assert [one.name for one in tmp_path.iterdir()] == ["model"]


def test_layers_that_the_config_does_not_count_are_left_out_and_told(tmp_path: Path) -> None:
    folder = gguf_cases.make(tmp_path / "model", "glm4_moe")
    weights = load_file(folder / "model.safetensors")
    more = {name.replace(".2.", ".3.", 1): one for name, one in weights.items() if name.startswith("model.layers.2.")}
    rewrite(folder, more)
    report = export_gguf(folder, tmp_path / "a.gguf", "f32")
    assert f"{len(more)} tensors of layers that the config does not count are left out" in report.notes
    assert not [one.name for one in gguf.GGUFReader(report.path).tensors if one.name.startswith("blk.3.")]


def test_a_missing_expert_is_told_before_anything_is_written(tmp_path: Path) -> None:
    folder = gguf_cases.make(tmp_path / "model", "mixtral")
    rewrite(folder, {"model.layers.1.block_sparse_moe.experts.2.w1.weight": None})
    with pytest.raises(ModelError, match=r"lacks some experts of blk\.1\.ffn_gate_exps"):
        export_gguf(folder, tmp_path / "a.gguf", "f16")


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
