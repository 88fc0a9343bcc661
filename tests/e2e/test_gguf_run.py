"""A run with a GGUF file among its models, as a user starts it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from e2e.test_run import evomerge, finished, start
from e2e.tiny_family import write_family

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_a_gguf_file_is_a_source_like_another(tmp_path: Path) -> None:
    spec, out = write_family(tmp_path), tmp_path / "out"
    evomerge(spec, "export", str(tmp_path / "a"), str(tmp_path / "a.gguf"), "--gguf", "f32")
    text = spec.read_text().replace("models: [a, b, c]", "models: [./a.gguf, b]")
    spec.write_text(text.replace("evaluations: 20", "evaluations: 8"))
    assert finished(start(spec, out), out)["evaluations"] == 8
    by_file, by_folder = (
        json.loads(evomerge(spec, "evaluate", str(tmp_path / one), "--suite", str(tmp_path / "suite.yaml"), "--json"))
        for one in ("a.gguf", "a")
    )
    assert by_file["tasks"] == by_folder["tasks"]
