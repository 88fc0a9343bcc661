"""A run whose only sources are LoRA adapters, as a user starts it."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch

from e2e.test_run import evomerge, finished, start
from evomerge_common.domain.recipe import Recipe
from evomerge_merging import merge_recipe
from helpers.tiny_family import write_adapters, write_family

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_adapters_evolve_without_a_model_being_written(tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    write_family(tmp_path)
    spec, out = write_adapters(tmp_path), tmp_path / "out"
    result = finished(start(spec, out), out)
    assert result["evaluations"] == 20
    assert len(result["sources"]) == 4, "three adapters and the base that they name"
    events = (out / "events.jsonl").read_text()
    assert "CandidateEvaluated" in events
    assert "CandidateMerged" not in events
    assert result["merge_seconds"] == 0.0

    proposed = [one for one in map(json.loads, events.splitlines()) if one["type"] == "CandidateProposed"]
    recipe = Recipe.from_json(next(one["recipe_json"] for one in proposed[::-1] if one["operator"] != "source"))
    merge_recipe(recipe, {}, tmp_path / "merged")
    evomerge(spec, "export", str(tmp_path / "merged"), str(tmp_path / "adapter"), "--adapter")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        by_peft = PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload().state_dict()
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").state_dict()
    assert all(torch.allclose(by_peft[name], tensor, atol=1e-5) for name, tensor in whole.items())

    suite = ("--suite", str(tmp_path / "suite.yaml"), "--json")
    again = evomerge(spec, "evaluate", str(out / "model"), "--split", "holdout", "--threads", "1", *suite)
    told = result["champion"]["holdout"]["tasks"]
    assert {task["task"]: task["score"] for task in json.loads(again)["tasks"]} == {
        name: entry["score"] for name, entry in told.items()
    }

    pair = f"{tmp_path / 'base'}+{tmp_path / 'lora-x'}"
    scores = json.loads(evomerge(spec, "evaluate", pair, *suite))
    alone = evomerge(spec, "evaluate", str(tmp_path / "lora-x"), *suite)
    assert json.loads(alone)["tasks"] == scores["tasks"]
    assert evomerge(spec, "generate", pair, "--prompt", "hello")
