"""`evomerge run SPEC --server`: the command here, the work in the stack, on models that only the stack sees."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from stack import BIN, Stack, run, sums, write_models

pytestmark = [pytest.mark.containers, pytest.mark.timeout(600)]


def test_evomerge_run_on_a_server(stack: Stack, tmp_path: Path) -> None:
    spec = {
        "models": [f"/models/{name}" for name in write_models(stack.models)],
        "seed": 5,
        "search": {"evaluations": 8, "population": 4, "methods": ["linear"]},
        "suite": {"tasks": [sums()], "holdout": 0.4},
    }
    (tmp_path / "spec.yaml").write_text(json.dumps(spec))  # JSON is YAML
    command = [
        BIN / "evomerge",
        "run",
        tmp_path / "spec.yaml",
        "--server",
        "127.0.0.1:50054",
        "--out",
        tmp_path / "out",
    ]
    print(run(*command, timeout=400)[-2000:])
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["champion"]["digest"].startswith("sha256:")
    assert (out / "report" / "index.html").stat().st_size > 0
    assert (out / "events.jsonl").stat().st_size > 0
