"""The commands that work on one model, in this process: merge, evaluate, generate, export, doctor."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from evomerge_cli.__main__ import main
from helpers.tiny_family import write_adapters, write_family

RECIPE = """\
merge_method: linear
dtype: float32
models:
  - model: {a}
    parameters: {{weight: 3}}
  - model: {b}
    parameters: {{weight: 1}}
"""


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family(tmp_path_factory.mktemp("family")).parent


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    tensors: dict[str, Any] = load_file(folder / "model.safetensors")
    return tensors


def answer(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_merge_executes_a_mergekit_recipe(family: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    recipe, out = tmp_path / "recipe.yaml", tmp_path / "out"
    recipe.write_text(RECIPE.format(a=family / "a", b=family / "b"))
    plan = answer(capsys, "merge", str(recipe), str(out), "--dry-run")
    assert plan["parameters"] > 0
    assert not out.exists()
    assert answer(capsys, "merge", str(recipe), str(out))["out"] == str(out)
    a, b, merged = weights(family / "a"), weights(family / "b"), weights(out)
    assert a.keys() == merged.keys()
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, 0.75 * a[name] + 0.25 * b[name])
    AutoModelForCausalLM.from_pretrained(out)


def test_download_and_merge_is_the_classic_combination(
    family: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = [word for i, name in enumerate("abc", 1) for word in (f"--model{i}", str(family / name))]
    first = answer(capsys, "--download-and-merge", *models, "--out", str(tmp_path / "one"))
    recipe = json.loads((tmp_path / "one" / "recipe.json").read_text())
    assert recipe["method"] == "frankenmerge"  # of linear and ties, as it always was
    assert {part["inputs"][0]["model"]["recipe"]["method"] for part in recipe["slices"]} == {"linear", "ties"}
    flags = ["--ps-technique1", "slerp", "--ps-technique2", "dare", "--dfs-technique", "dfs"]
    second = answer(capsys, "--download-and-merge", *models, *flags, "--custom-dir", str(tmp_path / "two"))
    assert second["recipe_digest"] != first["recipe_digest"]
    assert json.loads((tmp_path / "two" / "recipe.json").read_text())["method"] == "dfs"


def test_evaluate_scores_with_intervals(family: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", str(family / "a"), "--suite", str(family / "suite.yaml"), "--split", "holdout"]
    result = answer(capsys, *words)
    assert {task["task"] for task in result["tasks"]} == {"choice", "text"}
    low, high = result["interval95"]
    assert low <= result["fitness"] <= high
    assert main([*words, "--json", str(tmp_path / "scores.json")]) == 0
    assert "choice" in capsys.readouterr().out
    written = json.loads((tmp_path / "scores.json").read_text())
    assert written["fitness"] == result["fitness"]
    assert len(written["item_scores"]["text"]) == next(t["items"] for t in result["tasks"] if t["task"] == "text")
    assert main(["--evaluate", str(family / "a"), "--suite", str(family / "suite.yaml")]) == 0


def test_generate_continues_and_repeats_itself(family: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", str(family / "a"), "--prompt", "hello", "--max-new-tokens", "8"]
    first = answer(capsys, *words)
    assert first["text"] == answer(capsys, *words)["text"]
    assert 0 < first["tokens"] <= 8
    assert main(["--generate", str(family / "a"), "--prompt", "hello", "--max-new-tokens", "8"]) == 0
    assert capsys.readouterr().out.strip() == first["text"].strip()


def test_export_writes_another_dtype(family: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    run = tmp_path / "run"
    run.mkdir()
    (run / "model").symlink_to(family / "b")  # a run's output folder stands for its champion
    answer(capsys, "export", str(run), str(tmp_path / "out"), "--dtype", "bfloat16")
    source, written = weights(family / "b"), weights(tmp_path / "out")
    assert {t.dtype for t in written.values()} == {torch.bfloat16}
    for name, tensor in written.items():
        torch.testing.assert_close(tensor, source[name].bfloat16())


def test_init_writes_a_spec_that_runs_would_take(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from evomerge_cli.arguments import parse
    from evomerge_cli.search_arguments import DEFAULT_MODELS
    from evomerge_cli.spec_source import prepare

    for words in (["init", str(tmp_path / "one.yaml")], ["--generate-config", "--config", str(tmp_path / "two.yaml")]):
        assert main(words) == 0
    assert prepare(parse(["run", str(tmp_path / "one.yaml")])).spec.models == DEFAULT_MODELS
    assert prepare(parse(["run", str(tmp_path / "two.yaml")])).suite.name == "general"
    assert "evomerge run" in capsys.readouterr().out


def test_the_built_in_suite_is_large_enough_to_say_something() -> None:
    from evomerge_cli.spec_source import resolve_suite

    suite = resolve_suite("general", Path(), flag=True)
    assert {task.name: task.weight for task in suite.tasks} == {
        "perplexity": 0.2, "coding": 0.15, "mathematics": 0.15, "writing": 0.15, "classification": 0.1,
        "question_answering": 0.1, "coherence": 0.15,
    }  # fmt: skip
    for task in suite.tasks:
        assert len(task.items) > 100, "one item is under 1% of its task"
        assert len(suite.items(task, "holdout")) >= 20
        assert len({json.dumps(item.content, sort_keys=True) for item in task.items}) == len(task.items)


def test_doctor_says_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret_of_the_user")
    monkeypatch.setenv("EVOMERGE_MODEL_STORE", str(tmp_path / "store"))
    assert main(["doctor", "--json"]) == 0
    said = capsys.readouterr().out
    found = {one["what"]: one for one in json.loads(said)}
    for what in ("Python", "cores", "memory", "torch", "nats-server", "hub token"):
        assert found[what]["state"] in {"ok", "note"}
        assert found[what]["found"]
    both = r"float32 \d+, bfloat16 \d+ GFLOP/s: auto scores models from 8 M parameters in (float32|bfloat16)"
    assert re.fullmatch(both, found["products"]["found"])
    assert "hf_secret" not in said
    assert not (tmp_path / "store").exists()


@pytest.fixture(scope="module")
def adapters(family: Path) -> Path:
    write_adapters(family)
    return family


def test_adapters_go_wherever_a_model_goes(adapters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    base, pair = adapters / "base", f"{adapters / 'base'}+{adapters / 'lora-x'}"
    named = (pair, str(adapters / "lora-x"), f"{{model: {{path: {base}}}, lora: {adapters / 'lora-x'}}}")
    texts = [
        f"merge_method: task_arithmetic\nbase_model: {base}\nmodels:\n- model: {model}\n  parameters: {{weight: 0.5}}\n"
        for model in named
    ]
    merged = []
    for i, text in enumerate(texts):
        (tmp_path / "recipe.yaml").write_text(text)
        answer(capsys, "merge", str(tmp_path / "recipe.yaml"), str(tmp_path / str(i)))
        merged.append(weights(tmp_path / str(i)))
    before = weights(base)
    changed = {name for name, tensor in merged[0].items() if not torch.equal(tensor, before[name])}
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in changed} == {"q_proj", "v_proj", "down_proj"}
    assert all(torch.equal(other[name], tensor) for other in merged[1:] for name, tensor in merged[0].items())
    flags = [word for i, name in enumerate("xyz", 1) for word in (f"--model{i}", str(adapters / f"lora-{name}"))]
    told = answer(capsys, "--download-and-merge", *flags, "--base", str(base), "--out", str(tmp_path / "classic"))
    assert told["parameters"] == sum(tensor.numel() for tensor in before.values())
    assert answer(capsys, "export", pair, str(tmp_path / "whole"))["parameters"] == told["parameters"]


def test_extract_lora_and_export_as_an_adapter(
    adapters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = f"{adapters / 'base'}+{adapters / 'lora-x'}"
    found = answer(capsys, "extract-lora", pair, "--base", str(adapters / "base"), "--rank", "4", "--out",
                   str(tmp_path / "extracted"))  # fmt: skip
    assert found["relative_error"] < 1e-5
    assert {module["rank"] for module in found["modules"]} == {4}
    words = ("--base", str(adapters / "base"), "--rank", "2", "--out", str(tmp_path / "rough"))
    found = answer(capsys, "extract-lora", str(adapters / "a"), *words)
    assert 0.3 < found["relative_error"] < 1.0
    (tmp_path / "recipe.yaml").write_text(
        f"merge_method: linear\nmodels:\n- model: {pair}\n  parameters: {{weight: 1}}\n"
        f"- model: {adapters / 'base'}+{adapters / 'lora-y'}\n  parameters: {{weight: 1}}\n"
    )
    found = answer(capsys, "export", str(tmp_path / "recipe.yaml"), str(tmp_path / "sum"), "--adapter")
    assert {module["rank"] for module in found["modules"]} == {8}
    small = answer(capsys, "export", str(tmp_path / "recipe.yaml"), str(tmp_path / "small"), "--adapter", "--rank", "3")
    assert small["bytes"] < found["bytes"]
    assert (
        main(["extract-lora", str(adapters / "a"), "--base", str(adapters / "a"), "--out", str(tmp_path / "no")]) == 2
    )
    assert "nothing for an adapter to hold" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_a_plus_sign_in_a_folders_name(
    family: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EVOMERGE_MODEL_STORE", str(tmp_path / "store"))
    shutil.copytree(family / "a", "my+model")
    words = ("--suite", str(family / "suite.yaml"), "--split", "holdout")
    plain = answer(capsys, "evaluate", str(family / "a"), *words)
    assert answer(capsys, "evaluate", "./my+model", *words)["fitness"] == plain["fitness"]
    assert answer(capsys, "evaluate", r"./my\+model", *words)["fitness"] == plain["fitness"]
    assert answer(capsys, "generate", "my+model", "--prompt", "x")["tokens"] >= 0
    Path("recipe.yaml").write_text(RECIPE.format(a="./my+model", b=family / "b"))
    answer(capsys, "merge", "recipe.yaml", "out")
    Path("same.yaml").write_text(RECIPE.format(a=family / "a", b=family / "b"))
    answer(capsys, "merge", "same.yaml", "same")
    assert Path("out/model.safetensors").read_bytes() == Path("same/model.safetensors").read_bytes()
