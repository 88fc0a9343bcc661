"""The vLLM backend against a small stand-in for its offline API (LLM, SamplingParams, prompt log-probabilities)."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge_common.domain.suite import Suite
from evomerge_common.errors import Unavailable
from evomerge_scoring import score_folder
from evomerge_scoring.scorer import Scorer
from evomerge_scoring.vllm_model import VllmModel, VllmResident, use_vllm
from helpers.scoring import score
from helpers.tiny_models import CHOICES, PROMPTS, make

SUITE = Suite.from_dict(
    {
        "holdout": 0,
        "tasks": [
            {"name": "a", "kind": "multiple_choice", "items": CHOICES},
            {"name": "b", "kind": "exact_match", "items": [{"prompt": p, "answer": "x"} for p in PROMPTS]},
            {"name": "c", "kind": "perplexity", "items": [{"text": "The quick brown fox."}]},
        ],
    }
)


class LLM:
    """Computes with transformers what vLLM documents."""

    def __init__(self, *, model: str, **_: Any) -> None:
        self.model, self.tokenizer = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
        config = SimpleNamespace(max_model_len=64, dtype=torch.float32, get_vocab_size=lambda: len(self.tokenizer))
        self.llm_engine = SimpleNamespace(model_config=config)

    def get_tokenizer(self) -> Any:
        return self.tokenizer

    def generate(self, prompts: list[Any], options: Any, use_tqdm: bool) -> list[Any]:
        return [self._one(prompt["prompt_token_ids"], options) for prompt in prompts]

    def _one(self, ids: list[int], options: Any) -> Any:
        made: list[int] = []
        with torch.no_grad():
            table = self.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
            for _ in range(options.max_tokens):
                token = int(self.model(torch.tensor([[*ids, *made]])).logits[0, -1].argmax())
                made.append(token)
                if token == 1 or any(s in self.tokenizer.decode(made) for s in options.stop or []):
                    break
        found: list[Any] = [None]
        for place, token in enumerate(ids[1:]):
            value = table[place, token]
            rank = int((table[place] > value).sum()) + 1
            found.append({token: SimpleNamespace(logprob=float(value), rank=rank)})
        return SimpleNamespace(prompt_logprobs=found, outputs=[SimpleNamespace(token_ids=made)])


def sampling(**options: Any) -> Any:
    return SimpleNamespace(**{"stop": None, **options})


def test_it_scores_as_transformers_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vllm: Any = ModuleType("vllm")
    vllm.LLM, vllm.SamplingParams, vllm.TokensPrompt = LLM, sampling, dict
    expected = score_folder(make(tmp_path), SUITE, "all", backend="torch")
    scorer = Scorer(device="cpu", backend="torch")
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    monkeypatch.setattr(VllmModel, "describe", lambda self, threads: "GPU float32 vllm")
    scorer.resident = VllmResident(torch.device("cpu"))
    report = score(scorer, tmp_path, SUITE)
    assert [s.score for s in report.scores] == pytest.approx([s.score for s in expected.scores], abs=1e-5)
    assert report.device == "GPU float32 vllm"


def test_it_is_used_only_where_it_can_be() -> None:
    assert not use_vllm("auto", "cpu")
    assert not use_vllm("torch", "cuda")
    with pytest.raises(Unavailable, match="vLLM"):
        use_vllm("vllm", "cpu")
