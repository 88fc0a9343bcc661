"""Partial credit: how likely the right answer is, teacher-forced, with where it stops."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge_common.domain.suite import Suite
from evomerge_common.domain.task import credit_of
from evomerge_common.errors import SuiteError
from evomerge_scoring import score_folder
from helpers.tiny_models import PROMPTS, make, suite_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("model"))


def credit_suite(suite: Suite) -> Suite:
    return replace(suite, tasks=tuple(credit_of(task) for task in suite.tasks))


def likelihood(folder: Path, prompt: str, answer: str) -> float:
    """Geometric mean of the probabilities of the answer's tokens, by transformers alone."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    ids = tokenizer(prompt + answer, add_special_tokens=False)["input_ids"]
    assert ids[: len(before)] == before
    with torch.no_grad():
        logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    total = sum(logprobs[place - 1, ids[place]].item() for place in range(len(before), len(ids)))
    return math.exp(total / (len(ids) - len(before)))


def test_credit_is_the_likelihood_of_the_answer_and_its_end(folder: Path) -> None:
    items = [{"prompt": prompt, "answer": " 2 fox"} for prompt in PROMPTS]
    (found,) = score_folder(folder, credit_suite(suite_of("exact_match", items)), "all", threads=1).scores
    for prompt, credit in zip(PROMPTS, found.item_scores, strict=True):
        expected = max(likelihood(folder, prompt, f" 2 fox{end}") for end in ("\n", "</s>"))
        assert credit == pytest.approx(expected, rel=1e-4)


def test_of_several_answers_the_likeliest_counts(folder: Path) -> None:
    asked = {"question": "1 + 1", "answers": ["2", "42", "fox"]}
    (whole,) = score_folder(folder, credit_suite(suite_of("qa", [asked])), "all", threads=1).scores
    each = []
    for answer in ("2", "42", "fox"):
        suite = credit_suite(suite_of("qa", [{**asked, "answers": answer}]))
        (one,) = score_folder(folder, suite, "all", threads=1).scores
        each.append(one.score)
    assert whole.score == pytest.approx(max(each), rel=1e-5)
    assert len(set(each)) == 3


def test_a_model_that_says_the_answer_has_more_credit_than_one_that_does_not(folder: Path) -> None:
    from evomerge_scoring.scorer import Scorer

    said = Scorer(device="cpu").generate(folder, PROMPTS[0], 2, threads=1).text
    items = [{"prompt": PROMPTS[0], "answer": said}, {"prompt": PROMPTS[0], "answer": " naïve"}]
    (found,) = score_folder(folder, credit_suite(suite_of("exact_match", items, stop=["\x00"])), "all").scores
    assert found.item_scores[0] > found.item_scores[1]


def test_the_suite_says_whether_a_task_is_graded() -> None:
    items = [{"prompt": "a", "answer": "b"}]
    plain = suite_of("exact_match", items)
    assert "fitness" not in plain.to_dict()["tasks"][0], "the digest of a suite that does not say it is what it was"
    graded = suite_of("exact_match", items, fitness="graded")
    assert Suite.from_json(graded.to_json()) == graded
    assert graded.digest != plain.digest
    with pytest.raises(SuiteError, match="did you mean 'graded'"):
        suite_of("exact_match", items, fitness="gradd")


@pytest.mark.parametrize(
    ("kind", "item", "options"),
    [
        ("multiple_choice", {"prompt": "a", "choices": ["b", "c"], "answer": 0}, {}),
        ("exact_match", {"prompt": "a", "answer": "b"}, {"extract": "#### (.*)"}),
        ("code", {"prompt": "a", "tests": "b"}, {}),
        ("instruction_following", {"prompt": "say", "checks": {"min_words": 1}}, {}),
    ],
)
def test_what_has_no_right_answer_in_words_is_refused(kind: str, item: dict[str, Any], options: dict[str, Any]) -> None:
    with pytest.raises(SuiteError, match="has no partial credit") as caught:
        suite_of(kind, [item], fitness="graded", **options)
    assert caught.value.path == ("tasks", 0, "fitness")
    assert suite_of(kind, [item], **options).tasks[0].fitness == "auto"


def test_code_is_graded_by_its_solution(folder: Path) -> None:
    item = {"prompt": "def add(a, b):", "tests": "assert add(1, 2) == 3", "solution": "\n    return a + b"}
    suite = suite_of("code", [item, {"prompt": "x", "tests": "y"}], fitness="graded")
    from evomerge_scoring.report import ScoreRequest
    from evomerge_scoring.scorer import Scorer

    request = ScoreRequest(suite=credit_suite(suite), split="all", threads=1)
    (found,) = Scorer(device="cpu", allow_code=True).score(lambda b: b.load_folder(folder), request).scores
    expected = likelihood(folder, "def add(a, b):", "\n    return a + b")
    assert found.item_scores == pytest.approx((expected, 0.0), rel=1e-4)
