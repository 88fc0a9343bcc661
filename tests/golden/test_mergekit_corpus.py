"""mergekit 0.1.5 on recipes as people publish them: what it runs we run, to equal tensors; its sums are recorded."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from evomerge_merging import merge_in_memory, plan_merge, read_recipe_text
from helpers.mergekit_corpus import CORPUS, SUMS, checksum, make_models
from helpers.tiny_merging import weights

PYTHON = Path(__file__).parents[2] / ".venv-golden" / "bin" / "python"
pytestmark = [
    pytest.mark.golden,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not PYTHON.exists(), reason="mergekit's environment is not there: run scripts/golden"),
]


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("corpus")
    make_models(root)
    jobs = []
    for number, published in enumerate(CORPUS.values()):
        config = root / f"{number}.yml"
        config.write_text(published.filled(root))
        jobs.append([str(config), str(root / f"{number}-mergekit")])
    (root / "jobs.json").write_text(json.dumps(jobs))
    script = Path(__file__).parent / "run_mergekit.py"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    subprocess.run([PYTHON, script, root / "jobs.json"], check=True, env=environment, timeout=500)
    sums = {
        name: checksum(weights(root / f"{number}-mergekit"))
        for number, (name, published) in enumerate(CORPUS.items())
        if published.theirs and not published.random and not published.refusal
    }
    if not SUMS.exists():
        SUMS.write_text(json.dumps(sums, indent=1) + "\n")
    return root


@pytest.mark.parametrize("name", CORPUS)
def test_runs_where_mergekit_runs_to_equal_tensors(arena: Path, name: str) -> None:
    published, number = CORPUS[name], list(CORPUS).index(name)
    failed = json.loads((arena / "jobs.failed.json").read_text())
    assert (str(arena / f"{number}.yml") not in failed) == published.theirs, failed.get(str(arena / f"{number}.yml"))
    if not published.theirs or published.random or published.refusal:
        return
    theirs = weights(arena / f"{number}-mergekit")
    with plan_merge(read_recipe_text(published.filled(arena))) as plan:
        ours = merge_in_memory(plan)
    assert ours.keys() == theirs.keys()
    for tensor, value in theirs.items():
        assert (ours[tensor].dtype, ours[tensor].shape) == (value.dtype, value.shape)
        # A step of the type they are written in; in float32 what sums in another order differ by.
        step = 2.0**-7 if value.element_size() == 2 else 1e-4
        difference = (ours[tensor].float() - value.float()).abs()
        assert float(difference.max()) <= step * max(1e-3, float(value.float().abs().max())), tensor
    assert checksum(theirs) == pytest.approx(json.loads(SUMS.read_text())[name], abs=1e-4)
