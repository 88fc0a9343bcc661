"""A run whose only sources are LoRA adapters, as a user starts it."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from e2e.test_run import evomerge, finished, start
from e2e.tiny_family import write_adapters, write_family

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

    evomerge(spec, "export", str(out), str(tmp_path / "adapter"), "--adapter")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        champion = PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload()
    for name, tensor in AutoModelForCausalLM.from_pretrained(out / "model").state_dict().items():
        assert torch.allclose(champion.state_dict()[name], tensor, atol=1e-5)
    small, whole = (path.stat().st_size for path in (
        tmp_path / "adapter" / "adapter_model.safetensors", out / "model" / "model.safetensors"))  # fmt: skip
    assert small < whole

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
