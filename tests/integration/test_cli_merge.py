"""`evomerge merge` as users see it: the plan, the shards, other people's methods, and one answer whatever happens."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge_cli.__main__ import main
from evomerge_common.domain.recipe import Recipe
from evomerge_common.domain.reference import ModelReference
from evomerge_downloader.fetch import Fetcher
from evomerge_merging import execute, merge_recipe, plan_merge, read_recipe_file
from evomerge_models.content import content_digest
from evomerge_models.hub import Hub
from evomerge_models.store import WritableModelStore
from helpers.tiny_merging import random_tensors, raw_model, weights

LARGE = 3_000_000
TIES = """
merge_method: ties
base_model: {root}/m0
models:
  - {{model: {root}/m1, parameters: {{weight: 0.6, density: 0.5}}}}
  - {{model: {root}/m2, parameters: {{weight: [0.2, 0.7], density: 0.3}}}}
dtype: float32
out_dtype: bfloat16
"""
DARE = TIES.replace("ties", "dare_ties") + "seed: 7\n"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for seed in range(3):
        raw_model(root / f"m{seed}", random_tensors(seed, LARGE))
        (root / f"m{seed}" / "vocab.txt").write_text("a\nb\n")
    for name, text in (("ties", TIES), ("dare", DARE)):
        (root / f"{name}.yml").write_text(text.format(root=root))
    return root


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def command(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "evomerge_cli", "merge", *map(str, words)]


def test_a_dry_run_tells_what_goes_where_and_writes_nothing(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["merge", str(root / "ties.yml"), str(tmp_path / "out"), "--dry-run", "--json"]) == 0
    plan: dict[str, Any] = json.loads(capsys.readouterr().out)
    elements = sum(tensor.numel() for tensor in weights(root / "m0").values())
    assert plan["parameters"] == elements
    assert plan["read_bytes"] == 3 * 4 * elements
    assert plan["write_bytes"] == 2 * elements
    assert plan["write_bytes"] < plan["disk_bytes"] < plan["disk_free_bytes"]
    assert 0 < plan["seconds"] < 600
    assert 0 < plan["memory_bytes"] < 1 << 30
    groups = {(group["name"], group["layers"]): group for group in plan["groups"]}
    assert groups["layers.*.a.weight", "0"]["shape"] == [LARGE]
    assert groups["norm.weight", ""] == {
        "name": "norm.weight", "layers": "", "shape": [8], "dtype": "bfloat16", "from": "ties(m1, m2; base m0)",
    }  # fmt: skip
    assert main(["merge", str(root / "ties.yml"), str(tmp_path / "out"), "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "ties(m1, m2; base m0)" in text
    assert all(word in text for word in ("to read", "to write", "memory", "disk", "time"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("size", "several"), [("2GB", False), ("7MB", False), ("1KiB", True), ("6000000", True)])
def test_the_size_of_shards(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], size: str, several: bool
) -> None:
    assert main(["merge", str(root / "ties.yml"), str(tmp_path / "out"), "--max-shard-size", size, "--json"]) == 0
    files = json.loads(capsys.readouterr().out)["files"]
    assert (len(files) > 1) == several
    tensors = {name for file in files for name in _names(tmp_path / "out" / file)}
    assert tensors == weights(root / "m0").keys()
    assert (tmp_path / "out" / "model.safetensors.index.json").exists() == several


def _names(path: Path) -> set[str]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return set(file.keys())


@pytest.mark.parametrize("size", ["0", "-1", "2XB", "GB", "much", "nan"])
def test_a_size_that_is_none(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], size: str) -> None:
    with contextlib.suppress(SystemExit):
        assert main(["merge", str(root / "ties.yml"), str(tmp_path / "out"), f"--max-shard-size={size}"]) != 0
    assert "such as 2GB" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


PACKAGE = """
from torch import Tensor
from evomerge_merging.methods.registry import PerModel, merge_method

@merge_method("furthest")
def furthest(tensors: list[Tensor], base: Tensor, *, pull: PerModel[float] = (1.0,)) -> Tensor:
    "Of each element the change that is largest."
    result = base
    for tensor, factor in zip(tensors, pull):
        moved = base + factor * (tensor - base)
        result = moved.where((moved - base).abs() > (result - base).abs(), result)
    return result
"""


@pytest.mark.slow
def test_a_method_of_another_package_is_found_by_its_entry_point(root: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    (site / "furthest-1.0.dist-info").mkdir(parents=True)
    (site / "furthest.py").write_text(PACKAGE)
    (site / "furthest-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: furthest\nVersion: 1.0\n")
    (site / "furthest-1.0.dist-info" / "entry_points.txt").write_text(
        "[evomerge.merge_methods]\nany = furthest:furthest\n"
    )
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(
        f"merge_method: furthest\nbase_model: {root}/m0\n"
        f"models: [{{model: {root}/m1, parameters: {{pull: 2}}}}, {{model: {root}/m2}}]\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(site)}
    words = command(recipe, tmp_path / "out")
    subprocess.run(words, env=environment, check=True, capture_output=True, timeout=120)
    base, one, two = (weights(root / f"m{i}")["norm.weight"] for i in range(3))
    first, second = 2 * (one - base), two - base
    expected = base + torch.where(second.abs() > first.abs(), second, first)
    torch.testing.assert_close(weights(tmp_path / "out")["norm.weight"], expected)
    # Without the package, and with a parameter that it does not have, the word is unknown.
    lacking = subprocess.run(command(recipe, tmp_path / "no"), check=False, capture_output=True, text=True, timeout=120)
    assert lacking.returncode == 2
    assert "unknown merge method 'furthest'" in lacking.stderr
    recipe.write_text(recipe.read_text().replace("pull", "pul"))
    wrong = subprocess.run(
        command(recipe, tmp_path / "no"), env=environment, check=False, capture_output=True, text=True, timeout=120
    )
    assert wrong.returncode == 2
    assert "did you mean 'pull'" in wrong.stderr


@pytest.mark.parametrize("name", ["ties", "dare"])
def test_every_file_is_the_same_whatever_the_threads_and_pieces(root: Path, tmp_path: Path, name: str) -> None:
    recipe = read_recipe_file(root / f"{name}.yml")
    for threads in (1, 2, 4):
        merge_recipe(recipe, {}, tmp_path / f"threads{threads}", threads=threads)
    first = hashes(tmp_path / "threads1")
    assert {"model.safetensors", "config.json", "recipe.json", "README.md"} <= first.keys()
    for folder in tmp_path.iterdir():
        assert hashes(folder) == first, folder.name
    for pieces in (1 << 14, 50_000, 1 << 20):
        with plan_merge(recipe) as plan:
            execute(plan, tmp_path / f"pieces{pieces}", threads=2, piece_elements=pieces)
        assert hashes(tmp_path / f"pieces{pieces}").items() <= first.items()


@pytest.mark.slow
def test_after_a_kill_the_next_try_makes_every_file_the_same(root: Path, tmp_path: Path) -> None:
    merge_recipe(read_recipe_file(root / "dare.yml"), {}, tmp_path / "reference", threads=1)
    out = tmp_path / "killed" / "out"
    process = subprocess.Popen(command(root / "dare.yml", out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not (found := list(out.parent.glob(".out.partial-*/model.safetensors"))):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.001)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL
    assert found[0].exists()
    assert not out.exists()
    for _ in range(2):
        again = subprocess.run(
            command(root / "dare.yml", out), check=False, capture_output=True, text=True, timeout=120
        )
        assert again.returncode in (0, 2), again.stderr
    assert "not empty" in again.stderr  # the second try finds the first one's result, and leaves it alone
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert hashes(out) == hashes(tmp_path / "reference")


def test_a_recipe_json_is_merged_again_from_the_same_content_alone(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EVOMERGE_MODEL_STORE", str(tmp_path / "store"))
    store = WritableModelStore(tmp_path / "store")
    for seed in range(2):
        raw_model(tmp_path / f"m{seed}", random_tensors(seed, 5000))
        (tmp_path / f"m{seed}" / "vocab.txt").write_text("a\nb\n")
    sources = [ModelReference(str(tmp_path / f"m{seed}")) for seed in range(2)]
    digests = {str(one): f"sha256:{content_digest(Path(one.name), store.hashes)}" for one in sources}
    recipe = Recipe.of_models("linear", [(one, {"weight": 1.0}) for one in sources]).with_digests(digests)
    merge_recipe(recipe, {one.key: Path(one.name) for one in recipe.sources()}, tmp_path / "first")
    assert main(["merge", str(tmp_path / "first" / "recipe.json"), str(tmp_path / "again")]) == 0
    assert hashes(tmp_path / "again") == hashes(tmp_path / "first")

    copied = Fetcher(store, Hub(), link=False).fetch(str(tmp_path / "m0"))
    assert copied.digest == digests[str(sources[0])]
    shutil.rmtree(tmp_path / "m0")  # the store has the content still
    assert main(["merge", str(tmp_path / "first" / "recipe.json"), str(tmp_path / "third")]) == 0
    assert hashes(tmp_path / "third") == hashes(tmp_path / "first")

    (tmp_path / "m1" / "vocab.txt").write_text("a\nc\n")
    capsys.readouterr()
    assert main(["merge", str(tmp_path / "first" / "recipe.json"), str(tmp_path / "fourth")]) == 2
    assert "has changed since this recipe was made" in capsys.readouterr().err
    assert not (tmp_path / "fourth").exists()
