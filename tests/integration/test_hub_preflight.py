"""`evomerge run`, `merge` and `evaluate` of hub ids: refused like local folders, before weights are fetched."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import evomerge_models.hub
from evomerge_cli.__main__ import main
from evomerge_cli.commands import run as run_command
from evomerge_cli.preflight import survey_models
from evomerge_cli.spec_source import Prepared
from evomerge_models.card import read_metadata
from evomerge_models.hub import Hub
from helpers.hub_server import HubServer, write_model_folder, write_safetensors, write_sparse
from helpers.tiny_models import make

SUITE = {"tasks": [{"name": "t", "kind": "perplexity", "items": [{"text": f"sentence {i}"} for i in range(20)]}]}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.setenv("EVOMERGE_MODEL_STORE", str(tmp_path / "store"))
    with HubServer(tmp_path / "hub") as server:
        monkeypatch.setattr(evomerge_models.hub, "Hub", partial(Hub, server.endpoint))
        yield server


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Prepared]:
    """The runs that would have begun."""
    found: list[Prepared] = []

    def execute(prepared: Prepared, *_: object, **__: object) -> int:
        found.append(prepared)
        return 0

    monkeypatch.setattr(run_command, "execute", execute)
    return found


def run(folder: Path, *models: str, flags: tuple[str, ...] = (), **spec: Any) -> int:
    (folder / "run.json").write_text(json.dumps({"models": models, "suite": SUITE, **spec}))
    return main(["run", str(folder / "run.json"), "--out", str(folder / "out"), *flags])


def merge(folder: Path, *models: str, flags: tuple[str, ...] = ()) -> int:
    recipe = {"merge_method": "linear", "models": [{"model": one, "parameters": {"weight": 1.0}} for one in models]}
    (folder / "recipe.json").write_text(json.dumps(recipe))
    return main(["merge", str(folder / "recipe.json"), str(folder / "merged"), *flags])


def set_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def set_licence(folder: Path, licence: str) -> None:
    (folder / "README.md").write_text(f"---\nlicense: {licence}\n---\n")


@pytest.mark.parametrize("command", [run, merge])
def test_a_trio_that_does_not_fit_names_tensor_and_what_would_fit(
    hub: HubServer, tmp_path: Path, started: list[Prepared], capsys: pytest.CaptureFixture[str], command: Any
) -> None:
    for name, hidden in (("a", 1024), ("b", 1024), ("c", 1536)):
        shapes = {"model.embed_tokens.weight": (131072, hidden), "model.layers.0.mlp.up_proj.weight": (65536, hidden)}
        write_sparse(hub.root / "org" / name, shapes, hidden_size=hidden)
    assert command(tmp_path, "org/a", "org/b", "org/c") == 2
    said = capsys.readouterr().err
    assert "model.embed_tokens.weight is [131072, 1024] in org/a and [131072, 1536] in org/c" in said
    assert "org/a and org/b fit each other: leave the others out" in said
    assert hub.files_fetched() == []
    assert hub.sent < 1_000_000
    assert not started
    assert not (tmp_path / "out").exists()


def test_all_that_is_wrong_with_a_runs_models_is_told_at_once(
    hub: HubServer, tmp_path: Path, started: list[Prepared], capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("gated", "codes", "sound"):
        write_model_folder(hub.root / "org" / name)
    (hub.root / "org" / "gated" / ".gated").touch()
    write_safetensors(hub.root / "org" / "codes" / "model.safetensors", {"a.qweight": (16, 16), "b.weight": (64,)})
    assert run(tmp_path, "org/gated", "org/codes", "org/sound", "org/gone", str(tmp_path / "nothing")) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: 4 of 5 models cannot be used:")
    for words in ("org/gated is gated", "org/codes is quantised", "no model org/gone", f"no folder {tmp_path}/nothing"):
        assert words in said
    assert "org/sound" not in said
    assert hub.files_fetched() == []
    assert not started


def test_code_alone_is_refused_by_name(
    hub: HubServer, tmp_path: Path, started: list[Prepared], capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("own", "sound"):
        write_model_folder(hub.root / "org" / name)
    set_config(hub.root / "org" / "own", model_type="mine", auto_map={"AutoModelForCausalLM": "modeling_mine.Mine"})
    set_config(hub.root / "org" / "sound", auto_map={"AutoModelForCausalLM": "modeling_llama.Llama"})
    assert run(tmp_path, "org/own", "org/sound") == 2
    said = capsys.readouterr().err
    assert "org/own runs with Python code of its own alone" in said
    assert main(["evaluate", "org/own"]) == 2
    assert "org/own runs with Python code" in capsys.readouterr().err
    assert hub.files_fetched() == []
    assert not started


def test_licences_that_exclude_each_other(
    hub: HubServer, tmp_path: Path, started: list[Prepared], capsys: pytest.CaptureFixture[str]
) -> None:
    for name, licence in (("one", "gpl-3.0"), ("two", "cc-by-nc-4.0")):
        set_licence(write_model_folder(hub.root / "org" / name), licence)
    for command in (run, merge):
        assert command(tmp_path, "org/one", "org/two") == 2
        said = capsys.readouterr().err
        assert "GPL-3.0 (org/one) allows no further terms, and CC-BY-NC-4.0 (org/two) adds: no commercial use" in said
        assert "--accept-licence-conflict" in said
    assert hub.files_fetched() == []
    assert not started
    assert run(tmp_path, "org/one", "org/two", flags=("--accept-licence-conflict",)) == 0
    assert run(tmp_path, "org/one", "org/two", accept_licence_conflict=True) == 0
    assert all(json.loads(one.text)["accept_licence_conflict"] is True for one in started)
    assert len(started) == 2
    assert "note: licence conflict: GPL-3.0" in capsys.readouterr().err


def test_the_licence_of_a_merge_is_on_its_card(
    hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, (name, licence) in enumerate((("one", "mit"), ("two", "llama3.1"))):
        set_licence(make(hub.root / "org" / name, seed=seed), licence)
    (hub.root / "local").mkdir()
    local = make(hub.root / "local" / "three", seed=3)
    (local / "LICENSE").write_text("Apache License\nVersion 2.0, January 2004")
    assert merge(tmp_path, "org/one", "org/two", str(local)) == 0
    said = capsys.readouterr().err
    assert "note: licence of the result: llama3.1 (from org/one: mit; org/two: llama3.1; three: apache-2.0)" in said
    assert "note: licence: give it a name that begins with 'Llama'" in said
    metadata = read_metadata(tmp_path / "merged")
    assert metadata["license"] == "llama3.1"
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "## Licences" in card
    assert "| three | apache-2.0 |" in card
    assert "Built with Llama" in card


def test_a_conflict_that_was_accepted_is_on_the_card(hub: HubServer, tmp_path: Path) -> None:
    for seed, (name, licence) in enumerate((("one", "gpl-3.0"), ("two", "llama3.1"))):
        set_licence(make(hub.root / "org" / name, seed=seed), licence)
    assert merge(tmp_path, "org/one", "org/two", flags=("--accept-licence-conflict",)) == 0
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "**Conflict, accepted by whoever made this model:** GPL-3.0 (org/one) allows no further terms" in card
    assert read_metadata(tmp_path / "merged")["license_name"] == "conflicting-licences"


def test_a_slow_hub_is_told_and_left_to_the_downloader(
    hub: HubServer,
    tmp_path: Path,
    started: list[Prepared],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("one", "two"):
        write_model_folder(hub.root / "org" / name)
    hub.delay = 2.0
    monkeypatch.setattr(run_command, "survey_models", partial(survey_models, seconds=0.2))
    assert run(tmp_path, "org/one", "org/two") == 0
    assert "nothing is known yet of org/one, org/two" in capsys.readouterr().err
    assert len(started) == 1


def test_the_flags_of_old_know_it_too() -> None:
    from evomerge_cli.arguments import parse

    args: argparse.Namespace = parse(["--run", "--model1", "a", "--accept-licence-conflict"])
    assert args.accept_licence_conflict is True
