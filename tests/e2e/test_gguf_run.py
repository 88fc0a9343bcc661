"""A run with a GGUF file among its models, as a user starts it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from e2e.test_run import evomerge, finished, start
from helpers.tiny_family import write_family

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_a_gguf_file_is_a_source_and_the_champion_is_handed_back_as_one(tmp_path: Path) -> None:
    spec, out = write_family(tmp_path), tmp_path / "out"
    evomerge(spec, "export", str(tmp_path / "a"), str(tmp_path / "a.gguf"), "--gguf", "f32")
    assert "\nFROM ./a.gguf\n" in (tmp_path / "Modelfile").read_text()
    text = spec.read_text().replace("models: [a, b, c]", "models: [./a.gguf, b]")
    text += "export: {formats: [hf, gguf], gguf_type: f32}\n"
    spec.write_text(text.replace("evaluations: 20", "evaluations: 8"))
    assert finished(start(spec, out), out)["evaluations"] == 8
    exported = json.loads((out / "result.json").read_text())["exports"]
    assert sorted(one["format"] for one in exported) == ["gguf", "hf"]
    champion = out / "gguf" / "champion-F32.gguf"
    evomerge(spec, "export", str(champion), str(tmp_path / "back"))
    back, model = (load_file(folder / "model.safetensors") for folder in (tmp_path / "back", out / "model"))
    assert back.keys() == model.keys()
    assert all(torch.equal(back[name], model[name]) for name in model)
    by_file, by_folder = (
        json.loads(evomerge(spec, "evaluate", str(tmp_path / one), "--suite", str(tmp_path / "suite.yaml"), "--json"))
        for one in ("a.gguf", "a")
    )
    assert by_file["tasks"] == by_folder["tasks"]
