"""A run whose spec says where the champion goes, as a user starts it, against a hub that takes uploads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from e2e.test_run import finished, start
from helpers.hub_writer import WritableHub, yaml_errors
from helpers.tiny_family import write_family

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[WritableHub]:
    (tmp_path / "hub").mkdir()
    with WritableHub(tmp_path / "hub") as server:
        yield server


def test_push_to_is_checked_before_the_run_and_done_at_its_end(hub: WritableHub, tmp_path: Path) -> None:
    spec, out = write_family(tmp_path), tmp_path / "out"
    data = yaml.safe_load(spec.read_text())
    data["search"]["evaluations"] = 5
    spec.write_text(yaml.safe_dump({**data, "export": {"formats": ["hf", "gguf"], "push_to": "me/champion"}}))
    env = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home")}
    process = start(spec, out, **env, HF_TOKEN="hf_read")
    assert b"may only read" in process.communicate(timeout=120)[0]
    assert process.returncode == 2
    assert not (out / "events.jsonl").exists(), "no run was started for nothing"

    hub.fail_after = 0
    process = start(spec, out, **env, HF_TOKEN="hf_test")
    said = process.communicate(timeout=240)[0].decode()
    assert process.returncode == 1
    assert "the run is finished, but its champion is not pushed" in said
    assert f"evomerge push {out} me/champion" in said
    hub.fail_after = None
    result = finished(start(spec, out, **env, HF_TOKEN="hf_test"), out)

    pushed = hub.root / "me/champion"
    assert hub.private == {"me/champion"}
    names = {path.name for path in pushed.iterdir()}
    assert {"model.safetensors", "config.json", "recipe.json", "README.md", "Modelfile"} <= names
    assert len(list(pushed.glob("champion-*.gguf"))) == 1
    text = (pushed / "README.md").read_text()
    assert yaml_errors(text) == []
    assert result["improvement"]["statement"] in text
    card = ModelCard(text)
    values = {one.task_name: one.metric_value for one in card.data.eval_results}
    tasks = result["champion"]["holdout"]["tasks"]
    assert {name: values[name] for name in tasks} == {name: one["metric_value"] for name, one in tasks.items()}
    for path in pushed.iterdir():
        assert str(tmp_path).encode() not in path.read_bytes(), path.name
    for log in (out / "evomerge.log", *(out / ".evomerge").rglob("*.log")):
        assert "hf_test" not in log.read_text()
    commits = len(hub.commits)
    finished(start(spec, out, **env, HF_TOKEN="hf_test"), out)
    assert len(hub.commits) == commits, "it is pushed once"
