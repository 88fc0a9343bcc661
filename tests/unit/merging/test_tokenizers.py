"""Embeddings follow the tokens' texts, whatever the vocabularies; and what stays of an instruction-tuned source."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge_common.domain.recipe import Recipe
from evomerge_common.domain.reference import ModelReference
from evomerge_common.errors import ModelError, RecipeError
from evomerge_merging import merge_in_memory, merge_recipe, plan_merge
from helpers.tiny_merging import load_model, make_model, rewrite, weights
from helpers.tiny_tokenizers import ENGLISH, GERMAN, make_tokenizer, tokens_of

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def model(folder: Path, text: str = ENGLISH, seed: int = 0, *, rows: int = 0, **own: Any) -> ModelReference:
    kind, settings = own.pop("model", "llama"), {"tie_word_embeddings": own.pop("tied", False)}
    count = make_tokenizer(folder, text, **own)
    if kind == "gpt2":
        settings = {}
    make_model(folder, kind, seed=seed, layers=2, vocab_size=rows or count, **settings)
    return ModelReference(str(folder))


def linear(*models: ModelReference, **own: Any) -> Recipe:
    return replace(Recipe.of_models("linear", [(item, {"weight": 1.0}) for item in models]), **own)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelReference, ModelReference]:
    root = tmp_path_factory.mktemp("two")
    return (
        model(root / "a", ENGLISH, 1, added=("<shared>", "<mine>")),
        model(root / "b", GERMAN, 2, added=("<yours>", "<shared>"), tied=True),
    )


def test_a_union_has_each_token_once_with_the_rows_of_those_that_know_it(
    two: tuple[ModelReference, ...], tmp_path: Path
) -> None:
    one, other = two
    report = merge_recipe(linear(one, other, tokenizer="union", pad_to_multiple_of=64), {}, tmp_path / "out")
    tokens, first, second = (tokens_of(folder) for folder in (tmp_path / "out", Path(one.name), Path(other.name)))
    assert tokens.keys() == first.keys() | second.keys()
    assert all(tokens[token] == row for token, row in first.items())
    merged, a, b = weights(tmp_path / "out"), weights(Path(one.name)), weights(Path(other.name))
    for name, theirs in ((EMBEDDING, b[EMBEDDING]), (HEAD, b[EMBEDDING])):
        for token, row in tokens.items():
            rows = ([a[name][first[token]]] if token in first else []) + (
                [theirs[second[token]]] if token in second else []
            )
            torch.testing.assert_close(merged[name][row], sum(rows) / len(rows), rtol=1e-6, atol=1e-7)
        assert merged[name].shape[0] % 64 == 0
        if name == EMBEDDING:
            padding = merged[name][len(tokens) :]
            torch.testing.assert_close(padding, merged[name][: len(tokens)].mean(0).expand_as(padding))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["vocab_size"] == merged[EMBEDDING].shape[0]
    load_model(tmp_path / "out")
    assert any("added to" in note for note in report.notes)


@pytest.mark.parametrize("kind", ["bpe", "byte-level", "unigram", "wordpiece"])
def test_a_united_tokenizer_reads_both_languages(tmp_path: Path, kind: str) -> None:
    from transformers import AutoTokenizer

    sizes = {"unigram": 24, "byte-level": 300}
    own: dict[str, Any] = {"kind": kind, "size": sizes.get(kind, 60)}
    one = model(tmp_path / "a", ENGLISH, 1, added=("<mine>",), **own)
    other = model(tmp_path / "b", GERMAN, 2, added=("<yours>",), **own)
    merge_recipe(linear(one, other, tokenizer="union"), {}, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    before = [AutoTokenizer.from_pretrained(Path(item.name)) for item in (one, other)]
    assert tokenizer.get_vocab() == tokens_of(tmp_path / "out")
    assert tokenizer.get_vocab().keys() == before[0].get_vocab().keys() | before[1].get_vocab().keys()
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))
    text = "the cat <mine> katze <yours>"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.convert_tokens_to_ids("<mine>") in ids
    assert tokenizer.convert_tokens_to_ids("<yours>") in ids
    for text in ("the other cat", "der andere garten"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]).replace(" ", "") == text.replace(" ", "")
    # The first's merges come first, so its language is split as before, or further merged.
    assert len(tokenizer("the other cat")["input_ids"]) <= len(before[0]("the other cat")["input_ids"])


def test_what_cannot_be_united_is_refused_and_says_why(tmp_path: Path) -> None:
    bpe = model(tmp_path / "bpe", size=60)
    for kind, size, why in (("unigram", 24, "Unigram"), ("byte-level", 300, "alphabet")):
        other = model(tmp_path / kind, kind=kind, size=size)
        with pytest.raises(ModelError, match=f"cannot be united.*{why}|{why}.*cannot be united"):
            plan_merge(linear(bpe, other, tokenizer="union"))
        plan_merge(linear(bpe, other, tokenizer=str(other))).close()
    (tmp_path / "bpe" / "vocab.json").write_text(json.dumps(tokens_of(tmp_path / "bpe")))
    (tmp_path / "bpe" / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"no tokenizer\.json"):
        plan_merge(linear(other, bpe, tokenizer="union"))


def test_without_a_word_different_vocabularies_are_refused_where_no_role_is_known(
    two: tuple[ModelReference, ...], tmp_path: Path
) -> None:
    found = []
    for i, one in enumerate(two):
        shutil.copytree(one.name, tmp_path / str(i))
        rewrite(tmp_path / str(i), {"model.layers.0.self_attn.q_proj.weight": None})
        found.append(ModelReference(str(tmp_path / str(i))))
    with pytest.raises(ModelError, match=r"different vocabularies.*tokenizer_source: union"):
        plan_merge(linear(*found))


def test_without_a_word_different_vocabularies_meet_in_the_firsts(two: tuple[ModelReference, ...]) -> None:
    with plan_merge(linear(*two)) as plan:
        assert plan.config["vocab_size"] == len(tokens_of(Path(two[0].name)))
        assert any("different vocabularies" in note for note in plan.notes)
        assert any("are found by their text" in note for note in plan.notes)


@pytest.mark.parametrize("source", ["a", "b"])
def test_the_tokenizer_of_one_model(two: tuple[ModelReference, ...], tmp_path: Path, source: str) -> None:
    chosen = two["ab".index(source)]
    merge_recipe(linear(*two, tokenizer=str(chosen)), {}, tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == Path(chosen.name, "tokenizer.json").read_bytes()
    tokens, known = tokens_of(tmp_path / "out"), [tokens_of(Path(item.name)) for item in two]
    merged = weights(tmp_path / "out")[EMBEDDING]
    for token, row in tokens.items():
        rows = [
            weights(Path(item.name))[EMBEDDING][own[token]]
            for item, own in zip(two, known, strict=True)
            if token in own
        ]
        torch.testing.assert_close(merged[row], sum(rows) / len(rows), rtol=1e-6, atol=1e-7)


def test_tokens_of_ones_own(two: tuple[ModelReference, ...], tmp_path: Path) -> None:
    one, other = two
    tokens = {
        "<s>": {"source": str(other), "force": True},
        "<none>": {"zero": True},
        "<like>": {"source": str(one), "token": "</s>"},
        "<yours>": {"source": str(one), "token_id": 4},
    }
    what = linear(one, other, tokenizer="base", base=one, tokens=tokens)
    merge_recipe(what, {}, tmp_path / "out")
    rows, a, b = tokens_of(tmp_path / "out"), weights(Path(one.name))[EMBEDDING], weights(Path(other.name))[EMBEDDING]
    merged = weights(tmp_path / "out")[EMBEDDING]
    torch.testing.assert_close(merged[rows["<s>"]], b[tokens_of(Path(other.name))["<s>"]])
    assert not merged[rows["<none>"]].any()
    torch.testing.assert_close(merged[rows["<like>"]], a[tokens_of(Path(one.name))["</s>"]])
    yours = b[tokens_of(Path(other.name))["<yours>"]]
    torch.testing.assert_close(merged[rows["<yours>"]], (a[4] + yours) / 2)
    for wrong, words in (
        ({"x": {"source": "nobody"}}, "no model of the recipe"),
        ({"x": {"source": str(one)}}, "no token 'x'"),
        ({"x": {"source": str(one), "token_id": 10**6}}, "no token with the id"),
    ):
        with pytest.raises(RecipeError, match=words):
            plan_merge(replace(what, tokens=wrong))
    with pytest.raises(RecipeError, match="no model of the recipe"):
        plan_merge(replace(what, tokenizer="nobody"))


def test_tokens_without_a_row_are_left_out_and_a_tokenizer_may_come_from_elsewhere(tmp_path: Path) -> None:
    rows = make_tokenizer(tmp_path / "probe", ENGLISH)
    one = model(tmp_path / "a", ENGLISH, 1, rows=rows, added=("<rowless>",))
    assert tokens_of(tmp_path / "a")["<rowless>"] == rows
    report = merge_recipe(linear(one, base=one, tokenizer="base"), {}, tmp_path / "out")
    assert any("have no row ('<rowless>'" in note for note in report.notes)
    assert tokens_of(tmp_path / "out").keys() == tokens_of(tmp_path / "a").keys() - {"<rowless>"}
    assert weights(tmp_path / "out")[EMBEDDING].shape[0] == rows
    other = model(tmp_path / "b", GERMAN, 2)
    merge_recipe(linear(one, tokenizer=str(other)), {}, tmp_path / "theirs")
    merged, known = weights(tmp_path / "theirs")[EMBEDDING], tokens_of(tmp_path / "a")
    for token, row in tokens_of(tmp_path / "b").items():
        expected = weights(tmp_path / "a")[EMBEDDING][known[token]] if token in known else torch.zeros(16)
        assert torch.equal(merged[row], expected)


def test_the_digest_counts_models_by_content_in_the_tokenizers_words_too() -> None:
    here, there = (
        linear(ModelReference(name, digest="sha256:1"), tokenizer=name, tokens={"x": {"source": name}})
        for name in ("./here", "/elsewhere")
    )
    assert here.digest == there.digest
    assert here.digest != linear(ModelReference("./here", digest="sha256:1")).digest
    assert Recipe.from_json(here.to_json()) == here


def test_pieces_and_threads_make_no_difference_to_gathered_rows(two: tuple[ModelReference, ...]) -> None:
    def merged(**options: Any) -> dict[str, torch.Tensor]:
        with plan_merge(linear(*two, tokenizer="union", pad_to_multiple_of=128)) as plan:
            return merge_in_memory(plan, **options)

    first = merged(threads=1)
    for options in ({"threads": 3, "piece_elements": 64}, {"threads": 2, "piece_elements": 4096}):
        assert all(torch.equal(tensor, first[name]) for name, tensor in merged(**options).items())


def test_another_architecture_and_a_nested_recipe(tmp_path: Path) -> None:
    one = model(tmp_path / "a", ENGLISH, 1, model="gpt2", rows=64)
    other = model(tmp_path / "b", GERMAN, 2, model="gpt2", rows=70)
    inner = linear(one, other, tokenizer="union")
    with plan_merge(Recipe.of_models("linear", [(inner, {"weight": 1.0}), (one, {"weight": 1.0})])) as plan:
        count = len(tokens_of(tmp_path / "a").keys() | tokens_of(tmp_path / "b").keys())
        assert plan.config["vocab_size"] == count
        assert any("nested" in note for note in plan.notes)
        assert merge_in_memory(plan)["transformer.wte.weight"].shape[0] == count


def test_an_instruction_tuned_source_keeps_its_tokens_and_template(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    base = model(tmp_path / "base", ENGLISH, 0)
    tuned = model(tmp_path / "tuned", ENGLISH, 1, added=("<|im_start|>", "<|im_end|>"), template=TEMPLATE)
    config = json.loads((tmp_path / "tuned" / "config.json").read_text())
    end = tokens_of(tmp_path / "tuned")["<|im_end|>"]
    (tmp_path / "tuned" / "config.json").write_text(json.dumps({**config, "eos_token_id": end}))
    report = merge_recipe(linear(base, tuned), {}, tmp_path / "out")
    assert any("instruction-tuned" in note and "'<|im_start|>'" in note for note in report.notes)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert end in tokenizer.apply_chat_template([{"role": "user", "content": "the cat"}])["input_ids"]
    merged = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (merged["eos_token_id"], merged["vocab_size"]) == (end, len(tokenizer))
    torch.testing.assert_close(weights(tmp_path / "out")[EMBEDDING][end], weights(tmp_path / "tuned")[EMBEDDING][end])
    with plan_merge(linear(base, tuned, tokenizer=str(base))) as plan:
        assert any("left out: it needs '<|im_start|>'" in note for note in plan.notes)
    with plan_merge(linear(base, tuned, tokenizer="union")) as plan:
        assert plan.tokenizer.template == TEMPLATE


def test_chat_templates_by_name_text_and_majority(tmp_path: Path) -> None:
    models = [model(tmp_path / str(i), template=text) for i, text in enumerate(("one {{ x }}", TEMPLATE, TEMPLATE))]
    for setting, start in (("auto", TEMPLATE), ("chatml", "{% for message"), ("{{ own }}", "{{ own }}"), ("", "")):
        with plan_merge(linear(*models, chat_template=setting)) as plan:
            assert plan.tokenizer.template.startswith(start)
            assert bool(plan.tokenizer.template) == bool(start)
    with pytest.raises(RecipeError, match="did you mean 'chatml'"):
        plan_merge(linear(*models, chat_template="chatlm"))


@pytest.mark.parametrize("name", ["chatml", "alpaca", "llama3", "mistral"])
def test_each_named_template_renders(name: str) -> None:
    from jinja2 import Environment

    from evomerge_merging.tokens.chat_templates import TEMPLATES

    messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
    text = Environment().from_string(TEMPLATES[name]).render(
        messages=messages, bos_token="<s>", eos_token="</s>", add_generation_prompt=True
    )  # fmt: skip
    assert text.index("question") < text.index("answer")
