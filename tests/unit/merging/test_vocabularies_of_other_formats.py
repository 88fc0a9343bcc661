"""Vocabularies that are not in a tokenizer.json: read as transformers loads the folder, or never merged row by row."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from evomerge_common.domain.recipe import Recipe
from evomerge_common.domain.reference import ModelReference
from evomerge_common.errors import ModelError
from evomerge_merging import merge_in_memory, merge_recipe, plan_merge
from evomerge_merging.tokens.files import added_tokens, unread, vocabulary
from helpers.tiny_merging import load_model, make_model, weights
from helpers.tiny_tokenizers import ENGLISH, GERMAN, SENTENCEPIECE, make_sentencepiece, make_tokenizer

EMBEDDING = "model.embed_tokens.weight"


def spoken(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def sentencepiece_model(folder: Path, text: str, seed: int, kind: str = "llama bpe") -> ModelReference:
    make_model(folder, seed=seed, vocab_size=400)
    make_sentencepiece(folder, text, kind=kind)
    rows = max(spoken(folder).get_vocab().values()) + 1
    make_model(folder, seed=seed, vocab_size=rows)
    return ModelReference(str(folder))


def linear(*models: ModelReference, **own: Any) -> Recipe:
    return replace(Recipe.of_models("linear", [(one, {"weight": 0.5}) for one in models]), **own)


def is_row_by_row(found: torch.Tensor, *models: ModelReference) -> bool:
    one, other = (weights(Path(model.name))[EMBEDDING] for model in models)
    return one.shape == other.shape == found.shape and bool(torch.allclose(found, (one + other) / 2, atol=1e-6))


@pytest.mark.parametrize("kind", SENTENCEPIECE)
def test_sentencepiece_is_read_as_transformers_reads_it(tmp_path: Path, kind: str) -> None:
    make_sentencepiece(tmp_path, kind=kind)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert vocabulary(tmp_path) == spoken(tmp_path).get_vocab()
    assert set(spoken(tmp_path).all_special_tokens) <= {*added_tokens(tmp_path)}


@pytest.mark.parametrize("old", ["vocab.json", "vocab.txt"])
def test_older_files_are_read_as_transformers_reads_them(tmp_path: Path, old: str) -> None:
    words = ["[UNK]", "the", "c\u2028at", "a\x85b", "dog", "##s"]
    if old == "vocab.txt":
        (tmp_path / old).write_text("".join(f"{word}\n" for word in words), "utf-8")
        config: dict[str, Any] = {"tokenizer_class": "BertTokenizer", "unk_token": "[UNK]"}
    else:
        (tmp_path / old).write_text(json.dumps({word: row for row, word in enumerate(words)}))
        (tmp_path / "merges.txt").write_text("#version: 0.2\n")
        config = {"tokenizer_class": "GPT2Tokenizer", "unk_token": "[UNK]"}
    special = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False) | {"special": True}
    config["added_tokens_decoder"] = {"6": {"content": "<new>", **special}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert" if old == "vocab.txt" else "gpt2"}))
    theirs = spoken(tmp_path).get_vocab()
    assert {word: theirs[word] for word in [*words, "<new>"]} == vocabulary(tmp_path)


@pytest.mark.parametrize("policy", ["", "base"])
@pytest.mark.parametrize("first", ["json", "sentencepiece"])
def test_rows_follow_the_tokens_in_both_orders(tmp_path: Path, first: str, policy: str) -> None:
    new = sentencepiece_model(tmp_path / "new", GERMAN, 1)
    rows = len(weights(Path(new.name))[EMBEDDING])
    old = ModelReference(str(make_model(tmp_path / "old", vocab_size=rows)))
    make_tokenizer(tmp_path / "old", ENGLISH, 60, kind="unigram")
    models = (old, new) if first == "json" else (new, old)
    with plan_merge(linear(*models, tokenizer=policy, base=models[0] if policy else None)) as plan:
        found = merge_in_memory(plan)[EMBEDDING]
    assert not is_row_by_row(found, *models)
    if not policy:
        return
    tables = [weights(Path(model.name))[EMBEDDING] for model in models]
    here, there = (vocabulary(Path(model.name)) for model in models)
    shared = [token for token in here if token in there and here[token] < len(found)]
    assert len(shared) > 3
    for token in shared:
        wanted = (tables[0][here[token]] + tables[1][there[token]]) / 2
        assert torch.allclose(found[here[token]], wanted, atol=1e-6), token


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("kind", ["llama bpe", "t5"])
def test_a_union_of_sentencepiece_reads_both_languages(tmp_path: Path, kind: str, order: tuple[int, int]) -> None:
    both = [sentencepiece_model(tmp_path / name, text, seed, kind)
            for seed, (name, text) in enumerate((("english", ENGLISH), ("german", GERMAN)))]  # fmt: skip
    first, second = (both[number] for number in order)
    merge_recipe(linear(first, second, tokenizer="union"), {}, tmp_path / "out")
    found, united = weights(tmp_path / "out")[EMBEDDING], spoken(tmp_path / "out")
    for model in (first, second):
        table, tokens = weights(Path(model.name))[EMBEDDING], vocabulary(Path(model.name))
        other = vocabulary(Path((second if model is first else first).name))
        alone = [token for token in tokens if token not in other]
        assert alone
        for token in alone:
            assert torch.allclose(found[united.convert_tokens_to_ids(token)], table[tokens[token]], atol=1e-6), token
    for text in (ENGLISH, GERMAN):
        assert united.decode(united.encode(text, add_special_tokens=False)).strip() == text
    assert load_model(tmp_path / "out")


def _damaged(folder: Path) -> None:
    (folder / "tokenizer.model").write_bytes(b"no sentencepiece \x00\xff")


def _tiktoken(folder: Path) -> None:
    (folder / "tokenizer.model").unlink()
    (folder / "qwen.tiktoken").write_text("IQ== 0\nIg== 1\n")


def _empty(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


@pytest.mark.parametrize("policy", ["", "base", "union"])
@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("harm", [_damaged, _tiktoken, _empty])
def test_what_cannot_be_read_is_never_merged_row_by_row(tmp_path: Path, harm: Any, swapped: bool, policy: str) -> None:
    one, other = (sentencepiece_model(tmp_path / name, ENGLISH, seed) for seed, name in enumerate(("one", "other")))
    harm(Path(other.name))
    assert "cannot be read" in unread(Path(other.name))
    models = (other, one) if swapped else (one, other)
    with pytest.raises(ModelError, match=r"other: its vocabulary \(.*\) cannot be read"):
        plan_merge(linear(*models, tokenizer=policy, base=models[0] if policy else None))


def test_the_same_unread_file_in_both_is_one_vocabulary(tmp_path: Path) -> None:
    one, other = (sentencepiece_model(tmp_path / name, ENGLISH, seed) for seed, name in enumerate(("one", "other")))
    for model in (one, other):
        _damaged(Path(model.name))
    with plan_merge(linear(one, other)) as plan:
        assert any("the same file for all" in note for note in plan.notes)
        assert is_row_by_row(merge_in_memory(plan)[EMBEDDING], one, other)


@pytest.mark.parametrize("rows_of_other", [0, 3])
@pytest.mark.parametrize("swapped", [False, True])
def test_a_padding_token_without_a_row_is_told(tmp_path: Path, swapped: bool, rows_of_other: int) -> None:
    rows = make_tokenizer(tmp_path / "probe", ENGLISH, 60)
    models = [
        ModelReference(str(make_model(tmp_path / name, seed=n, vocab_size=rows + more)))
        for n, (name, more) in enumerate((("a", rows_of_other), ("b", 0)))
    ]
    for model in models:
        shutil.copytree(tmp_path / "probe", model.name, dirs_exist_ok=True)
    tokenizer = Tokenizer.from_file(str(tmp_path / "b" / "tokenizer.json"))
    tokenizer.add_special_tokens(["[PAD]"])
    tokenizer.save(str(tmp_path / "b" / "tokenizer.json"))
    with plan_merge(linear(*(reversed(models) if swapped else models))) as plan:
        assert f"1 tokens of {models[1].name} have no row in its embedding of {rows} rows: '[PAD]'" in plan.notes
        found = merge_in_memory(plan)[EMBEDDING][:rows]
    tables = [weights(Path(model.name))[EMBEDDING][:rows] for model in models]
    assert torch.allclose(found, sum(tables) / 2, atol=1e-6)
