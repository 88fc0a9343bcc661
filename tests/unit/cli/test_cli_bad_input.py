"""Bad input: a typed error with its place, exit code 2, quickly, and nothing left behind."""

from __future__ import annotations

import json
import math
import struct
import time
from pathlib import Path
from typing import Any

import pytest

from evomerge_cli.__main__ import main
from evomerge_cli.local_stack import server_address
from evomerge_common.errors import ModelNotFound, Unavailable
from helpers.looking import check_models

SPEC = """\
models: [a, b]
seed: 0
suite:
  tasks:
    - name: text
      kind: perplexity
      data: text.jsonl
search:
  evaluations: 8
  methods: [linear, ties]
"""


def write_model(folder: Path, *, hidden: int = 4, layers: int = 1, architecture: str = "LlamaForCausalLM") -> None:
    """A folder that is right to its headers: nothing here reads weights."""
    folder.mkdir(parents=True)
    config = {"architectures": [architecture], "num_hidden_layers": layers, "hidden_size": hidden}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    header: dict[str, Any] = {}
    position = 0
    shapes = {"model.embed_tokens.weight": (8, hidden), "model.norm.weight": (hidden,)}
    shapes |= {f"model.layers.{i}.mlp.up_proj.weight": (2 * hidden, hidden) for i in range(layers)}
    for name, shape in shapes.items():
        size = 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(position))


@pytest.mark.slow
def test_models_that_cannot_be_scored_are_refused_before_anything_starts(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "ab":
        config = {"architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "num_layers": 1, "d_model": 4}
        (folder / name / "config.json").write_text(json.dumps(config))
    (folder / "run.yaml").write_text(SPEC)
    assert main(["run", str(folder / "run.yaml"), "--out", str(folder / "out")]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "task 'text' has items without a prompt, and an encoder-decoder model says nothing without one" in said
    assert "multiple_choice, exact_match or qa" in said
    assert not (folder / "out").exists()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_model(tmp_path / "a")
    write_model(tmp_path / "b")
    items = [{"text": f"sentence number {i}"} for i in range(20)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    (tmp_path / "empty.jsonl").write_text("")
    return tmp_path


def change(folder: Path, old: str, new: str) -> None:
    (folder / "run.yaml").write_text(SPEC.replace(old, new))


CASES = {
    "unknown key": ("seed: 0", "sead: 0", ["run.yaml:2", "did you mean 'seed'"]),
    "unknown search key": ("  evaluations: 8", "  evalutions: 8", ["run.yaml:9", "did you mean 'evaluations'"]),
    "unknown method": ("[linear, ties]", "[linear, tiess]", ["run.yaml:10", "did you mean 'ties'"]),
    "unknown kind of task": ("kind: perplexity", "kind: perplexty", ["run.yaml:6", "did you mean 'perplexity'"]),
    "a number out of range": ("evaluations: 8", "evaluations: 0", ["run.yaml:9", "whole number"]),
    "one model": ("[a, b]", "[a]", ["run.yaml:1", "at least two"]),
    "the same model twice": ("[a, b]", "[a, ./a]", ["run.yaml:1", "twice"]),
    "missing model": ("[a, b]", "[a, ./missing]", ["missing", "no folder"]),
    "missing absolute model": ("[a, b]", "[a, /nowhere/at/all]", ["/nowhere/at/all"]),
    "non-model folder": ("[a, b]", "[a, .]", ["no config.json"]),
    "a file as a model": ("[a, b]", "[a, ./text.jsonl]", ["is a file"]),
    "a missing base": ("seed: 0", "base: ./gone", ["gone"]),
    "empty suite": ("data: text.jsonl", "data: empty.jsonl", ["run.yaml:5", "no items"]),
    "missing suite data": ("data: text.jsonl", "data: gone.jsonl", ["gone.jsonl"]),
    "no suite": ("suite:", "suit:", ["run.yaml:3", "did you mean 'suite'"]),
    "a GGUF type that is none": ("seed: 0", "export: {formats: [hf, gguf], gguf_type: q8_1}", ["did you mean 'q8_0'"]),
    "a GGUF file of what llama.cpp does not run": ("seed: 0", "export: {formats: [hf, gguf]}", ["GGUF is not written"]),
    "a K-quant without its maker": (
        "seed: 0",
        "export: {formats: [hf, gguf], gguf_type: q4_k_m}",
        ["llama-quantize", "PATH"],
    ),
    "a constraint on no task": (
        "seed: 0",
        "constraints: {txt: {not_below: 0.1}}",
        ["run.yaml:2", "did you mean 'text'"],
    ),
    "a constraint by no source": (
        "seed: 0",
        "constraints: {text: {not_below: c - 0.02}}",
        ["run.yaml:2", "'c - 0.02' is no bound", "valid: a, b, best"],
    ),
    "not YAML": ("seed: 0", "seed: [0", ["run.yaml", "not YAML"]),
    "a key twice": ("seed: 0", "seed: 0\nseed: 1", ["run.yaml:3", "twice"]),
}


@pytest.mark.parametrize("case", CASES)
def test_run_refuses(
    folder: Path, case: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    old, new, words = CASES[case]
    change(folder, old, new)
    before = sorted(folder.rglob("*"))
    began = time.monotonic()
    assert main(["run", str(folder / "run.yaml"), "--out", str(folder / "out")]) == 2
    assert time.monotonic() - began < 3.0
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    for word in words:
        assert word in said
    assert "Traceback" not in said
    assert sorted(folder.rglob("*")) == before


def test_masked_models_are_not_asked_for_texts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_model(folder / "m", architecture="BertForMaskedLM")
    items = "".join(json.dumps({"prompt": f"{i}", "answer": "1"}) + "\n" for i in range(20))
    (folder / "text.jsonl").write_text(items)
    change(folder, "kind: perplexity", "kind: exact_match")
    file = folder / "run.yaml"
    file.write_text(file.read_text().replace("[a, b]", "[m, b]"))
    assert main(["run", str(file), "--out", str(folder / "out")]) == 2
    said = capsys.readouterr().err
    assert "run.yaml:3" in said
    assert "task 'text' asks for a text" in said
    assert not (folder / "out").exists()


def test_models_of_other_sizes_are_refused_where_no_role_is_known(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model(folder / "c", hidden=6)
    change(folder, "[a, b]", "[a, b, c]")
    assert main(["run", str(folder / "run.yaml"), "--out", str(folder / "out")]) == 2
    assert "is of no architecture family that is known" in capsys.readouterr().err
    assert not (folder / "out").exists()
    assert check_models([str(folder / "a"), str(folder / "c")])
    assert not check_models([str(folder / "a"), str(folder / "b")])


@pytest.mark.parametrize("command", ["run", "merge", "export"])
def test_quantised_models_are_refused_before_anything_starts(
    folder: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change(folder, "", "")
    (folder / "recipe.yaml").write_text(
        "merge_method: linear\nmodels:\n"
        + "".join(f"- {{model: {folder / name}, parameters: {{weight: 0.5}}}}\n" for name in "ab")
    )
    config = json.loads((folder / "b" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "b" / "config.json").write_text(json.dumps(config))
    weights = folder / "b" / "model.safetensors"
    weights.write_bytes(weights.read_bytes().replace(b'"F32"', b'"I32"'))
    out = str(folder / "out")
    lines = {
        "run": ["run", str(folder / "run.yaml"), "--out", out],
        "merge": ["merge", str(folder / "recipe.yaml"), out],
        "export": ["export", str(folder / "b"), out],
    }
    assert main(lines[command]) == 2
    assert "is quantised (GPTQ, 4 bits)" in capsys.readouterr().err
    assert not Path(out).exists()


def test_a_missing_spec_a_folder_and_a_clash_of_flags(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(folder, "", "")
    for line, words in (
        (["run", str(folder / "nope.yaml")], "nope.yaml"),
        (["run", str(folder)], "is a folder"),
        (["run", str(folder / "run.yaml"), "--model1", "x"], "not both"),
        (["run", str(folder / "run.yaml"), "--suite", "generl"], "built-in suite: general"),
        (["merge", str(folder / "nope.yaml"), str(folder / "out")], "nope.yaml"),
        (["evaluate", str(folder / "nowhere" / "x")], "nowhere"),
        (["generate", str(folder / "nowhere" / "x"), "--prompt", "hi"], "nowhere"),
        (["export", str(folder / "a"), str(folder / "out"), "--gguf", "q8_1"], "did you mean"),
        (["export", str(folder / "a"), str(folder / "out"), "--type", "f16"], "say --format gguf too"),
        (["export", str(folder / "a"), str(folder / "out"), "--gguf", "f16", "--format", "hf"], "contradict"),
        (["gguf", "inspect", str(folder / "nope.gguf")], "nope.gguf"),
        (["gguf", "inspect", str(folder / "run.yaml")], "no GGUF file"),
        (["report", str(folder / "nowhere")], "nowhere"),
        (["report", str(folder)], "no run"),
        (["init", str(folder / "run.yaml")], "exists"),
    ):
        assert main(line) == 2, line
        assert words in capsys.readouterr().err
    assert not (folder / "out").exists()


def test_a_folder_with_something_else_in_it_is_left_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(folder, "", "")
    out = folder / "out"
    (out / "model").mkdir(parents=True)
    assert main(["run", str(folder / "run.yaml"), "--out", str(out)]) == 2
    assert "nothing is overwritten" in capsys.readouterr().err
    assert [p.name for p in out.iterdir()] == ["model"]


def test_an_unknown_setting_is_refused_before_anything_starts(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    change(folder, "", "")
    monkeypatch.setenv("EVOMERGE_DEVISE", "cpu")
    assert main(["run", str(folder / "run.yaml"), "--out", str(folder / "out")]) == 2
    assert "EVOMERGE_DEVICE" in capsys.readouterr().err
    assert not (folder / "out").exists()


def test_a_hub_without_the_model_is_asked_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    from evomerge_models import hub

    def answer(self: object, repository: str, revision: str) -> None:
        raise ModelNotFound(f"the hub has no model {repository}")

    monkeypatch.setattr(hub.Hub, "model", answer)
    with pytest.raises(ModelNotFound, match="o/none"):
        check_models(["o/none", "o/other"])
    check_models(["o/none"], hub=False)


def test_a_hub_that_never_answers_is_left_to_the_downloader(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    from evomerge_models import hub

    silent = threading.Event()
    monkeypatch.setattr(hub.Hub, "model", lambda *_: silent.wait(20))
    check_models(["o/slow"], seconds=0.1)
    silent.set()


def test_no_stack_is_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("EVOMERGE_STATE_DIR", str(tmp_path))
    assert main(["runs", "list"]) == 1
    assert "evomerge up" in capsys.readouterr().err
    assert main(["status"]) == 1
    assert main(["down"]) == 0
    (tmp_path / "stack.json").write_text(json.dumps({"pid": 2**22 + 1, "started": 1.0, "addresses": {}}))
    assert main(["status", "--json"]) == 1  # what a killed one left behind
    assert '"up": false' in capsys.readouterr().out
    with pytest.raises(Unavailable):
        server_address(None)
