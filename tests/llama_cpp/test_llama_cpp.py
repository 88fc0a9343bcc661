"""llama.cpp reads the files that we write, and goes on with a text as transformers does."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from evomerge_merging.export.gguf import export_gguf
from evomerge_models.gguf.pretokenizers import PRE_TOKENIZERS
from helpers import gguf_cases, tiny_models, tiny_tokenizers
from helpers.llama_cpp import FOLDER, Judge

pytestmark = pytest.mark.llama_cpp

PROMPTS = ["The quick brown fox", "1 + 1 = 2, 2 + 2 =", "def add(a, b):\n    return", "naïve café — ok",
           "Review: the soup was good.\nVerdict:", " 3 33 333 \n\n x"]  # fmt: skip


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "phi3", "gemma2", "gemma3_text", "gpt2"])
def test_llama_cpp_goes_on_as_transformers_does(tmp_path: Path, kind: str, dtype: str) -> None:
    extra = {"query_pre_attn_scalar": 8} if kind.startswith("gemma") else {}
    folder = tiny_models.make(tmp_path / "model", kind, **extra)
    report = export_gguf(folder, tmp_path / "m.gguf", dtype)
    model = AutoModelForCausalLM.from_pretrained(folder)
    if dtype == "f16":
        model = model.half().float()  # the weights that the file holds
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    with Judge(report.path) as judge:
        for prompt in PROMPTS:
            ids = tokenizer(prompt).input_ids
            assert judge.tokens(prompt) == ids
            options = {"attention_mask": torch.ones(1, len(ids)), "max_new_tokens": 24, "do_sample": False}
            expected = model.generate(torch.tensor([ids]), **options)[0, len(ids) :].tolist()
            found = judge.continuation(ids, 24)
            count = min(len(found), len(expected))  # one of them may leave the end token out
            assert count >= len(expected) - 1
            differ = next((at for at in range(count) if found[at] != expected[at]), None)
            if differ is not None:  # f16 arithmetic may decide a tie otherwise; nothing else may differ
                text = torch.tensor([ids + expected[:differ]])
                logits = model(text).logits[0, -1]
                margin = logits[expected[differ]] - logits[found[differ]]
                assert dtype == "f16", prompt
                assert 0 <= margin < 0.001 * logits.std(), prompt


def same_as(judge: Judge, model: Any, tokenizer: Any) -> None:
    """Each token that llama.cpp goes on with is the likeliest to transformers, and the first as likely.

    It may be another only where transformers' own probabilities are all but equal.
    """
    config = model.config.get_text_config()
    for prompt in gguf_cases.PROMPTS:
        ids = tokenizer(prompt).input_ids
        found = judge.continuation(ids, 16)
        logits = model(torch.tensor([ids + found])).logits[0, len(ids) - 1 :].detach().log_softmax(-1)
        best = logits.max(-1).values
        for at, token in enumerate(found):
            assert best[at] - logits[at, token] < 1e-3, (prompt, at)
        if len(found) < 16:  # the end token is left out
            assert best[-1] - logits[-1, config.eos_token_id] < 1e-3, prompt
        first = int(logits[0].argmax())
        assert judge.log_probability(ids, first, config.vocab_size) == pytest.approx(best[0].item(), abs=2e-3)


@pytest.mark.parametrize("name", gguf_cases.CASES)
def test_every_architecture_goes_on_as_in_transformers(tmp_path: Path, name: str) -> None:
    folder = gguf_cases.make(tmp_path / "model", name)
    report = export_gguf(folder, tmp_path / "m.gguf", "f32")
    model = AutoModelForCausalLM.from_pretrained(folder)
    if name == "phi3":  # the prompts that are shorter are asked with the factors of long ones
        model.config.rope_parameters["short_factor"] = model.config.rope_parameters["long_factor"]
    with Judge(report.path) as judge:
        same_as(judge, model, PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json")))


@pytest.mark.parametrize("name", gguf_cases.WRAPPED)
def test_the_text_half_of_a_model_of_images_goes_on_as_in_transformers(tmp_path: Path, name: str) -> None:
    folder = gguf_cases.make_wrapped(tmp_path / "model", name)
    report = export_gguf(folder, tmp_path / "m.gguf", "f32")
    assert "the text model alone is written" in report.notes[0]
    with Judge(report.path) as judge:
        model = AutoModelForImageTextToText.from_pretrained(folder)
        same_as(judge, model, PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json")))


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_text_is_cut_as_by_the_tokenizers_library(tmp_path: Path, name: str) -> None:
    texts = [
        *PROMPTS,
        "It's WE'LL 12345 67!",
        "東京タワー 333米 カ",
        "x = {'a': [1.5, \"b\"]};\r\n\t\tif (x) y;  z",
        "ßñ ̈a Ж",
    ]
    tok = tiny_models.tokenizer(cut=PRE_TOKENIZERS[name].to_json(), texts=[*tiny_models.CORPUS, *texts])
    folder = tiny_models.make(tmp_path / "model", tok=tok)
    if PRE_TOKENIZERS[name].whole_words:
        data = json.loads((folder / "tokenizer.json").read_text())
        data["model"]["ignore_merges"] = True
        (folder / "tokenizer.json").write_text(json.dumps(data))
    report = export_gguf(folder, tmp_path / "m.gguf", "f32")
    assert gguf.GGUFReader(report.path).get_field("tokenizer.ggml.pre").contents() == name
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    with Judge(report.path) as judge:
        for text in texts:
            assert judge.tokens(text) == tokenizer(text).input_ids, text


@pytest.mark.parametrize("kind", ["llama bpe", "gemma"])
def test_a_sentencepiece_model_alone_is_read_as_transformers_reads_it(tmp_path: Path, kind: str) -> None:
    family = kind.partition(" ")[0]
    ids = tiny_tokenizers.SENTENCEPIECE[kind][3]
    special = {f"{name}_token_id": ids.get(f"{name}_id", own) for name, own in (("bos", 1), ("eos", 2))}
    folder = tiny_models.make(tmp_path / "model", family, vocab_size=340, max_position_embeddings=256, **special)
    tiny_tokenizers.make_sentencepiece(folder, "\n".join([*tiny_models.CORPUS, tiny_tokenizers.GERMAN]), kind=kind)
    report = export_gguf(folder, tmp_path / "m.gguf", "f32")
    assert any("begins with one" in note for note in report.notes) == (family == "llama")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with Judge(report.path) as judge:
        for prompt in [*PROMPTS[:-1], "der  Hund \n\n 33", "matte"]:
            assert judge.tokens(prompt) == tokenizer(prompt).input_ids, prompt
        same_as(judge, AutoModelForCausalLM.from_pretrained(folder), tokenizer)


@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_llama_cpp_embeds_with_bert_as_transformers_does(tmp_path: Path, dtype: str) -> None:
    folder = tiny_models.make(tmp_path / "model", "bert")
    report = export_gguf(folder, tmp_path / "m.gguf", dtype)
    model = AutoModel.from_pretrained(folder, add_pooling_layer=False, dtype=torch.float32).eval()
    if dtype == "f16":
        model = model.half().float()
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    with Judge(report.path, "--embedding", "--pooling", "none") as judge, torch.no_grad():
        for prompt in PROMPTS:
            ids = tokenizer(prompt).input_ids
            assert judge.tokens(prompt) == ids
            expected = model(torch.tensor([ids])).last_hidden_state[0]
            found = torch.tensor(judge.embedding(prompt))
            # llama.cpp's GELU is a table in half precision.
            torch.testing.assert_close(found, expected, rtol=0, atol=0.01 * expected.abs().max().item())


def test_a_k_quant_is_loaded_and_tells_what_did_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(FOLDER / "bin"), prepend=os.pathsep)
    folder = tiny_models.make(tmp_path / "model", intermediate_size=256)
    report = export_gguf(folder, tmp_path / "m.gguf", "q4_k_m")
    # All but the two layers' down projections, whose rows are 256 long.
    assert report.notes == (
        f"{2 * 7 + 2 - 2} matrices whose rows are no multiple of 256 are of a larger type than q4_k_m",
    )
    with Judge(report.path) as judge:
        assert judge.continuation(PROMPTS[0], 4)
