"""`evomerge run SPEC --server`: the command here, the work in the stack, on models that only the stack sees."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.containers import BIN, Stack, grpcurl, run, sums, write_models

pytestmark = [pytest.mark.containers, pytest.mark.timeout(600)]


def test_evomerge_run_on_a_server(stack: Stack, tmp_path: Path) -> None:
    spec = {
        "models": [f"/models/{name}" for name in write_models(stack.models)],
        "seed": 5,
        "search": {"evaluations": 8, "population": 4, "methods": ["linear"]},
        "suite": {"tasks": [sums()], "holdout": 0.4},
    }
    file, out = tmp_path / "spec.yaml", tmp_path / "out"
    file.write_text(json.dumps(spec))  # JSON is YAML
    print(run(BIN / "evomerge", "run", file, "--server", "127.0.0.1:50054", "--out", out, timeout=400)[-2000:])
    result = json.loads((out / "result.json").read_text())
    runs = grpcurl(50054, "evomerge.v1.SelectorService/ListRuns")[0]["runs"]
    assert result["champion"]["recipe_digest"] in {one["champion_digest"] for one in runs}
    assert (out / "report" / "index.html").stat().st_size > 0
    assert (out / "events.jsonl").stat().st_size > 0
