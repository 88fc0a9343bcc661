"""Choices that share a token with their prompt, add none, or meet a tokenizer whose tokens have no row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from evomerge_common.domain.kinds import Choices, Document, Loglikelihood
from evomerge_common.errors import ModelError, SuiteError
from evomerge_scoring.asking import EncodedRequests
from evomerge_scoring.scorer import Scorer
from helpers.scoring import score
from helpers.tiny_models import CHOICES, PROMPTS, make, masked_tokenizer, suite_of, tokenizer

JOINS = [
    ("T", ["he", "x", "qq"]),
    ("The quick f", ["ox", "x", "ed red"]),
    ("naïve ca", ["f", "t", "fé és"]),
    ("Review: th", ["e", "x", "em both"]),
]
"""Prompts and choices, the first of which makes one token with its prompt's end."""


def asked(folder: Path, requests: list[Any]) -> list[Any]:
    scorer = Scorer(device="cpu")
    model = scorer.resident.load_folder(folder)
    return EncodedRequests(requests, scorer.encoder(model), name="t").answers(model, 4)


def common(*some: list[int]) -> int:
    return next((n for n, column in enumerate(zip(*some, strict=False)) if len(set(column)) > 1), min(map(len, some)))


def loglikelihood(model: Any, ids: list[int], start: int) -> float:
    with torch.no_grad():
        table = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(float(table[p - 1, ids[p]]) for p in range(start, len(ids)))


@pytest.mark.parametrize("bos", ["none", "known", "added"])
@pytest.mark.parametrize(("prompt", "choices"), JOINS)
def test_all_choices_are_asked_from_the_token_that_one_shares(
    tmp_path: Path, prompt: str, choices: list[str], bos: str
) -> None:
    folder = make(tmp_path, tok=tokenizer(bos=bos != "none", adds_bos=bos == "added"))
    model, tok = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    before, *wholes = (
        tok(text, add_special_tokens=False)["input_ids"] for text in (prompt, *(prompt + c for c in choices))
    )
    shared = common(before, *wholes)
    assert shared < len(before), "they join"
    lead = [0] if bos == "added" else [] if shared else [tok.eos_token_id if bos == "none" else tok.bos_token_id]
    right = [loglikelihood(model, [*lead, *whole], len(lead) + shared) for whole in wholes]
    order = [2, 0, 1]
    for some in (choices, [choices[n] for n in order]):
        expected = right if some is choices else [right[n] for n in order]
        (found,) = asked(folder, [Choices(prompt, tuple(some))])
        assert found == pytest.approx(expected, abs=1e-4)
        assert max(found) < 0


def test_a_masked_model_too_is_asked_for_the_same_part_of_the_text(tmp_path: Path) -> None:
    folder = make(tmp_path, "bert", tok=masked_tokenizer())
    model, tok = AutoModelForMaskedLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    prompt, choices = "the quick f", ("ox", "x")
    before, *wholes = (tok(text)["input_ids"] for text in (prompt, *(prompt + c for c in choices)))
    shared = common(before[:-1], *wholes)
    assert shared < len(before) - 1, "they join"
    (found,) = asked(folder, [Choices(prompt, choices)])
    for value, ids in zip(found, wholes, strict=True):
        total = 0.0
        for place in range(shared, len(ids) - 1):
            row = [*ids[:place], tok.mask_token_id, *ids[place + 1 :]]
            with torch.no_grad():
                table = model(torch.tensor([row])).logits[0].double().log_softmax(-1)
            total += float(table[place, ids[place]])
        assert value == pytest.approx(total, abs=1e-4)


def test_an_empty_choice_is_compared_by_the_same_token(tmp_path: Path) -> None:
    folder = make(tmp_path)
    model, tok = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids, more = tok("The quick")["input_ids"], tok("The quick fox")["input_ids"]
    (found,) = asked(folder, [Choices("The quick", ("", " fox"))])
    last = len(ids) - 1
    assert found == pytest.approx([loglikelihood(model, ids, last), loglikelihood(model, more, last)], abs=1e-4)


def test_a_continuation_alone_is_asked_from_the_token_that_it_shares(tmp_path: Path) -> None:
    """Requests of lm-evaluation-harness stand for themselves: what is asked beside shows in none."""
    folder = make(tmp_path)
    model, tok = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    joined, apart = Loglikelihood("Review: th", "e"), Loglikelihood("Review: th", " x")
    ids, before = tok("Review: the")["input_ids"], tok("Review: th")["input_ids"]
    together = asked(folder, [joined, apart])
    assert len(ids) <= len(before), "nothing is left for the continuation"
    assert together[0] == pytest.approx(loglikelihood(model, ids, common(ids, before)), abs=1e-4)
    assert together[1] == pytest.approx(loglikelihood(model, tok("Review: th x")["input_ids"], len(before)), abs=1e-4)
    assert together == pytest.approx([*asked(folder, [joined]), *asked(folder, [apart])], abs=1e-4)


@pytest.mark.parametrize(("prompt", "text"), [("The quick f", "ox jumps over"), ("The quick", " fox"), ("j", "umps")])
def test_a_text_that_joins_its_prompt_is_asked_whole(tmp_path: Path, prompt: str, text: str) -> None:
    folder = make(tmp_path)
    model, tok = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = [tok.bos_token_id, *tok(prompt + text, add_special_tokens=False)["input_ids"]]
    shared = common(ids[1:], tok(prompt, add_special_tokens=False)["input_ids"])
    (found,) = asked(folder, [Document(text, prompt)])
    assert found == pytest.approx(loglikelihood(model, ids, 1 + shared), abs=1e-4)


def test_a_short_choice_beside_one_longer_than_the_context_is_still_asked(tmp_path: Path) -> None:
    folder = make(tmp_path, max_position_embeddings=16)
    for choices in ((" 2", " 3 + 4" * 12), (" 3 + 4" * 12, " 2")):
        (found,) = asked(folder, [Choices("1 + 1 =", choices)])
        assert max(found) < 0


def test_a_choice_with_nothing_before_it_is_refused_with_its_item(tmp_path: Path) -> None:
    tok = tokenizer(bos=False)
    tok.eos_token = None
    folder = make(tmp_path, tok=tok)
    with pytest.raises(SuiteError, match=r"task 't': the choice 'x' of the item '' has no token behind another"):
        asked(folder, [Choices("", ("x", "and more"))])
    assert len(asked(folder, [Choices("", ("and so on", "and more"))])[0]) == 2


def with_padding_beyond(folder: Path, source: Path) -> Path:
    """The same weights, and a tokenizer whose padding was added without a row for it."""
    make(folder, "llama")
    tok = AutoTokenizer.from_pretrained(source)
    tok.add_special_tokens({"pad_token": "[PAD]"})
    tok.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("kind", "items"),
    [
        ("multiple_choice", CHOICES),
        ("exact_match", [{"prompt": prompt, "answer": "x"} for prompt in PROMPTS]),
        ("perplexity", [{"text": text} for text in ("1 + 1 = 2", "def add(a, b):", "x y")]),
    ],
)
def test_padding_without_a_row_changes_no_score(tmp_path: Path, kind: str, items: list[dict[str, Any]]) -> None:
    whole = make(tmp_path / "whole")
    beyond = with_padding_beyond(tmp_path / "beyond", whole)
    scorer = Scorer(device="cpu")
    reports = [score(scorer, folder, suite_of(kind, items, batch_size=4)) for folder in (whole, beyond)]
    assert reports[0].scores == reports[1].scores


def test_an_item_written_with_a_token_without_a_row_is_refused(tmp_path: Path) -> None:
    folder = with_padding_beyond(tmp_path / "beyond", make(tmp_path / "whole"))
    with pytest.raises(ModelError, match=r"'\[PAD\]' with the id 320, but the model's embedding has 320 rows"):
        asked(folder, [Choices("The [PAD]", ("x", "y"))])
