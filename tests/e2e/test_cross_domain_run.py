"""Three masked models of different builds, by the classic command line: a champion, its proof, the plan in words."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.tiny_models import make

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_bert_roberta_and_distilbert_evolve_by_the_classic_command_line(tmp_path: Path) -> None:
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    make(tmp_path / "bert", "bert", seed=1)
    make(tmp_path / "roberta", "roberta", seed=2, hidden_size=24, num_hidden_layers=3, max_position_embeddings=80)
    make(tmp_path / "distilbert", "distilbert", seed=3, n_layers=1, n_layer=1)
    items = [{"text": f"the quick brown fox jumps over {i} lazy dogs"} for i in range(16)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    (tmp_path / "suite.yaml").write_text("holdout: 0.4\ntasks:\n  - {name: text, kind: perplexity, data: text.jsonl}\n")
    models = [f"--model{i}={tmp_path / name}" for i, name in enumerate(("bert", "roberta", "distilbert"), 1)]
    done = subprocess.run(
        [sys.executable, "-m", "evomerge_cli", "--run", *models, "--suite", str(tmp_path / "suite.yaml"),
         "--evaluations", "14", "--cross-domain", "full", "--out", str(tmp_path / "out")],
        env={**os.environ, "EVOMERGE_MODEL_STORE": str(tmp_path / "store"), "EVOMERGE_STATE_DIR": str(tmp_path / "s")},
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for words in ("roberta: adapted to bert", "24 dimensions into 32 by an orthogonal map", "left out"):
        assert words in done.stderr
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["evaluations"] == 14
    assert result["failed"] == 0
    assert all(0 < source["search"]["fitness"] < 1 for source in result["sources"])
    assert any("distilbert: layers by relative position" in note for note in result["notes"])
    assert "roberta: matched by role: query, key" in (tmp_path / "out" / "report" / "index.html").read_text()
    if not result["champion"]["is_source"]:
        assert "adapted to bert" in (tmp_path / "out" / "model" / "README.md").read_text()
    AutoModelForMaskedLM.from_pretrained(tmp_path / "out" / "model")
    AutoTokenizer.from_pretrained(tmp_path / "out" / "model")
