"""Every kind of task beside the three basic ones: built from them, judged by rules, run in a sandbox."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge_common.domain.benchmarks import selection_warnings
from evomerge_common.domain.kinds import KINDS, Continuation, Loglikelihood, kind_of
from evomerge_common.domain.kinds.instruction_following import judge_instructions
from evomerge_common.domain.kinds.qa import judge_answer
from evomerge_common.domain.suite import Suite
from evomerge_common.errors import SuiteError
from evomerge_scoring import score_folder
from evomerge_scoring.generation import generate
from evomerge_scoring.kinds import expand_task
from evomerge_scoring.kinds.efficiency import Cost
from evomerge_scoring.model import Stop
from evomerge_scoring.prefix import WORTH_TOKENS, shared_length
from evomerge_scoring.scorer import Scorer
from helpers.tiny_models import PROMPTS, make, suite_of

STORY = "Tom lost his keys. He walked back. A shop had found them. He bought a newspaper."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("model"))


def items_of(kind: str) -> list[dict[str, Any]]:
    items: dict[str, list[dict[str, Any]]] = {
        "classification": [{"text": f"text {n}", "label": "ab"[n % 2]} for n in range(4)],
        "qa": [{"question": "1 + 1", "answers": "2"}, {"question": "?", "answers": ["x", "y"], "context": "c"}],
        "writing": [{"prompt": "The quick", "text": " brown fox"}],
        "coherence": [{"text": STORY}],
        "instruction_following": [{"prompt": "say", "checks": {"min_words": 1, "json": False}}],
        "efficiency": [],
    }
    return items[kind]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("classification", {}), ("qa", {}), ("qa", {"metric": "exact_match"}), ("writing", {}), ("coherence", {}),
        ("instruction_following", {"max_new_tokens": 8}),
        *(("efficiency", {"metric": m, "reference": 1e4}) for m in KINDS["efficiency"].metrics),
    ],
)  # fmt: skip
def test_every_kind_scores_and_survives_a_round_trip(folder: Path, kind: str, options: dict[str, Any]) -> None:
    suite = suite_of(kind, items_of(kind), **options)
    assert Suite.from_json(suite.to_json()) == suite
    (score,) = score_folder(folder, suite, "all", device="cpu").scores
    assert len(score.item_scores) == max(1, len(items_of(kind)))
    assert 0 <= score.score <= 1
    assert score.metric == suite.tasks[0].metric


def test_a_prompt_is_read_and_never_scored(folder: Path) -> None:
    """Bits of the continuation alone, by hand."""
    model, tok = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    prompt, text = "The quick brown", " fox jumps over"
    before, whole = ([0, *tok(t)["input_ids"]] for t in (prompt, prompt + text))
    with torch.no_grad():
        table = model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
    bits = -sum(table[p - 1, whole[p]].item() for p in range(len(before), len(whole))) / math.log(2)
    (score,) = score_folder(folder, suite_of("writing", [{"prompt": prompt, "text": text}]), "all").scores
    assert score.metric_value == pytest.approx(bits / len(text), abs=1e-5)


def test_composed_kinds_become_basic_items() -> None:
    def lower(kind: str, item: dict[str, Any], **options: Any) -> Any:
        (task,) = suite_of(kind, [item], **options).tasks
        return kind_of(kind).contents(task, task.items)[0]

    options = {"template": "{text}\nTopic:", "labels": ["food", "sports"]}
    found = lower("classification", {"text": "goal", "label": "sports"}, **options)
    assert found == {"prompt": "goal\nTopic:", "choices": [" food", " sports"], "answer": 1}
    found = lower("coherence", {"text": STORY})
    assert found["choices"][found["answer"]] == " He walked back. A shop had found them. He bought a newspaper."
    assert len(set(found["choices"])) == 4
    assert {len(choice) for choice in found["choices"]} == {len(found["choices"][0])}
    assert lower("coherence", {"text": STORY}) == found, "the text decides the shuffles"


def test_judges() -> None:
    assert judge_answer("The Eiffel Tower.", ["eiffel tower"], "exact_match") == 1
    assert judge_answer("in Paris", ["Paris", "London"], "f1") == pytest.approx(2 / 3)
    checks = {"contains": "tea", "max_words": 3, "matches": r"^T", "bullets": 0, "lowercase": False}
    assert judge_instructions("Tea now", checks, "prompt_acc") == 1
    assert judge_instructions("Coffee, please, for two", checks, "instruction_acc") == pytest.approx(2 / 5)
    assert judge_instructions('```json\n{"a": 1}\n```', {"json": True}, "prompt_acc") == 1


@pytest.mark.parametrize(
    ("kind", "items", "options", "message"),
    [
        ("classification", [{"text": "a", "label": "x"}], {}, "two labels"),
        ("classification", [{"text": "a", "label": "spots"}], {"labels": ["sports", "food"]}, "mean 'sports'"),
        ("coherence", [{"text": "One. Two."}], {}, "three sentences"),
        ("instruction_following", [{"prompt": "p", "checks": {"contain": "a"}}], {}, "mean 'contains'"),
        ("instruction_following", [{"prompt": "p", "checks": {"max_words": "a"}}], {}, "takes int"),
        ("efficiency", [], {}, "reference"),
        ("efficiency", [], {"reference": 0}, "above zero"),
        ("qa", [{"question": "q", "answers": []}], {}, "none empty"),
        ("writing", [{"prompt": "q", "text": "a", "x": 1}], {"timeout": 3}, "unknown key"),
        ("plugin", [{"a": 1}], {}, "needs `plugin`"),
    ],
)
def test_mistakes(kind: str, items: list[dict[str, Any]], options: dict[str, Any], message: str) -> None:
    with pytest.raises(SuiteError, match=message):
        suite_of(kind, items, **options)


def test_code_needs_a_permission_and_is_judged_by_its_tests(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = [{"prompt": "x = 1\n#", "tests": "assert x == 1"}, {"prompt": "x = 1\n#", "tests": "assert x == 2"},
             {"prompt": "x = 1\n#", "tests": "while True: pass"}]  # fmt: skip
    suite = suite_of("code", items, timeout=1, max_new_tokens=4, stop="\n")
    with pytest.raises(SuiteError, match="EVOMERGE_ALLOW_CODE=true"):
        score_folder(folder, suite, "all")
    (score,) = score_folder(folder, suite, "all", allow_code=True).scores
    assert list(score.item_scores) == [1.0, 0.0, 0.0]


class Rhymes:
    """A user's task: one question by likelihood, one by generation."""

    def items(self, options: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
        return [{"id": f"r{n}", "word": f"word {n}"} for n in range(options["count"])]

    def requests(self, item: Mapping[str, Any]) -> Iterable[Loglikelihood | Continuation]:
        return [Loglikelihood(item["word"], " fox"), Continuation(item["word"], max_new_tokens=4)]

    def score(self, item: Mapping[str, Any], answers: Sequence[Any]) -> float:
        likelihood, text = answers
        assert isinstance(text, str)
        return math.exp(likelihood)


def test_a_users_own_task(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = importlib.metadata.EntryPoint("rhymes", f"{__name__}:Rhymes", "evomerge.tasks")

    def entry_points(**by: str) -> list[importlib.metadata.EntryPoint]:
        return [entry] if by.get("name", "rhymes") == "rhymes" else []

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    task = expand_task({"name": "t", "kind": "plugin", "plugin": "rhymes", "options": {"count": 3}})
    suite = Suite.from_dict({"holdout": 0, "tasks": [task]})
    assert [item.id for item in suite.tasks[0].items] == ["r0", "r1", "r2"]
    (score,) = score_folder(folder, suite, "all").scores
    assert all(0 < value < 1 for value in score.item_scores)
    with pytest.raises(SuiteError, match="mean 'rhymes'"):
        expand_task({"name": "t", "kind": "plugin", "plugin": "rhyme"})
    with pytest.raises(SuiteError, match="KeyError"):
        expand_task({"name": "t", "kind": "plugin", "plugin": "rhymes"})


def test_a_shared_beginning_changes_no_answer(folder: Path) -> None:
    model: Any = Scorer(device="cpu").resident.load_folder(folder)
    start = model.tokenizer("The quick brown fox jumps over the lazy dog. 1 + 1 = 2.")["input_ids"]
    prompts = [[*start, *model.tokenizer(prompt)["input_ids"]] for prompt in PROMPTS]
    assert shared_length(prompts, 1000) >= WORTH_TOKENS
    together = generate(model, prompts, Stop((), 12), 4)
    assert together == [generate(model, [prompt], Stop((), 12), 1)[0] for prompt in prompts]


def test_a_benchmarks_test_split_is_warned_of() -> None:
    items = [{"prompt": "a", "answer": "b"}]
    for name, warned in (("gsm8k", True), ("MMLU-Pro test", True), ("gsm8k_train", False), ("drops", False)):
        suite = Suite.from_dict({"holdout": 0, "tasks": [{"name": name, "kind": "exact_match", "items": items}]})
        assert bool(selection_warnings(suite)) == warned


def test_a_speed_counts_in_steps_and_is_warned_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a clock says differs each time; what a model has does not."""
    fast, large = (suite_of("efficiency", [], metric=m, reference=1e4) for m in ("tokens_per_second", "parameters"))
    measured = iter((1000.0, 1080.0, 1300.0))
    monkeypatch.setattr(Cost, "_speed", lambda _self, _model: next(measured))
    first, second, faster = (score_folder(folder, fast, "all", device="cpu").scores[0] for _ in range(3))
    assert first.item_scores == second.item_scores < faster.item_scores
    assert (first.metric_value, second.metric_value) == (1000.0, 1080.0), "the metric is what was measured"
    assert ["measures time" in text for text in selection_warnings(fast)] == [True]
    assert not selection_warnings(large)
