"""The demo family: real folders, made once, each expert best at its own task, no suite item in its training."""

from __future__ import annotations

import json
import math
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge_cli.demo import family as demo
from evomerge_cli.demo.data import build_data

TASKS = tuple(demo.DEMO.experts)
MARGIN = {"arithmetic": 0.1, "sentiment": 0.1, "python": 0.003}
"""By how much an expert leads the other three sources at its own task (accuracy, accuracy, mean 2**-bits per byte)."""


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(600)
def test_each_expert_is_best_at_its_own_task_and_a_second_call_makes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, float]] = []
    family = demo.build_family(tmp_path, seed=0, progress=lambda what, fraction: told.append((what, fraction)))
    fractions = [fraction for _, fraction in told]
    assert fractions == sorted(fractions)
    assert fractions[0] >= 0.0
    assert fractions[-1] == pytest.approx(1.0, abs=0.01)
    assert not list(tmp_path.glob(".*")), "a half-made family was left behind"

    suite = yaml.safe_load(family.suite.read_text(encoding="utf-8"))
    assert [task["name"] for task in suite["tasks"]] == list(TASKS)
    items = {
        task["name"]: [json.loads(line) for line in (family.suite.parent / task["data"]).read_text().splitlines()]
        for task in suite["tasks"]
    }
    scores = {folder.name: _scores(folder, items) for folder in (family.base, *family.experts)}
    for task in TASKS:
        others = max(scores[name][task] for name in scores if name != task)
        assert scores[task][task] > others + MARGIN[task], (task, scores)

    def refuse(*_: Any) -> None:
        raise AssertionError("the family was made again")

    monkeypatch.setattr(demo, "_make", refuse)
    assert demo.build_family(tmp_path, seed=0) == family


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_suite_item_is_a_training_row(seed: int) -> None:
    for task in build_data(seed):
        trained = {row.prompt or row.answer for row in (*task.rows, *task.base_rows)}
        asked = [item.get("prompt") or item["text"] for item in task.items]
        assert len(set(asked)) == len(asked), task.name
        assert not trained & set(asked), task.name
        assert len(asked) >= 60


def test_the_same_seed_gives_the_same_data() -> None:
    assert build_data(3) == build_data(3)
    assert build_data(3) != build_data(4)


@torch.no_grad()  # type: ignore[untyped-decorator]
def _scores(folder: Path, items: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """Accuracy, accuracy and mean 2**-(bits per byte) of the model in `folder`, loaded as any user would."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False))

    right: dict[str, float] = defaultdict(float)
    for task in ("arithmetic", "sentiment"):
        by_length = defaultdict(list)  # rows of one length need no padding
        for item in items[task]:
            by_length[len(encode(item["prompt"]))].append(item)
        for length, group in by_length.items():
            tokens = torch.tensor([encode(item["prompt"]) for item in group])
            if task == "sentiment":
                choices = [encode(choice) for choice in group[0]["choices"]]
                assert all(len(choice) == 1 for choice in choices)
                best = model(tokens).logits[:, -1, [choice[0] for choice in choices]].argmax(-1)
                right[task] += sum(int(found) == item["answer"] for found, item in zip(best, group, strict=True))
                continue
            for _ in range(6):
                tokens = torch.cat([tokens, model(tokens).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
            for row, item in zip(tokens, group, strict=True):
                written = tokenizer.decode(row[length:], skip_special_tokens=True).split("\n")[0]
                right[task] += written.strip() == item["answer"].strip()
    for item in items["python"]:
        tokens = torch.tensor([[tokenizer.bos_token_id, *encode(item["text"])]])
        nats = torch.nn.functional.cross_entropy(model(tokens).logits[0, :-1], tokens[0, 1:], reduction="sum")
        right["python"] += 2 ** -(float(nats) / math.log(2) / len(item["text"].encode()))
    return {task: right[task] / len(items[task]) for task in TASKS}
