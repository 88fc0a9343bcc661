"""Adapters in run specs and on the command line: what they are applied to, and what is refused before anything runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evomerge_cli.arguments import parse
from evomerge_cli.spec_source import Prepared, prepare
from evomerge_common.errors import EvoMergeException, ModelError, ShapeMismatch, UnsafeFile
from helpers.hub_server import write_adapter, write_model_folder
from helpers.looking import check_models

SUITE: dict[str, Any] = {"tasks": [{"name": "t", "kind": "perplexity", "items": [{"text": str(i)} for i in range(9)]}]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_model_folder(tmp_path / "base")
    write_model_folder(tmp_path / "other", fill=1)
    for name in ("x", "y"):
        write_adapter(tmp_path / name, base="../base")
    return tmp_path


def prepared(folder: Path, **spec: Any) -> Prepared:
    (folder / "run.yaml").write_text(json.dumps({"suite": SUITE, **spec}))
    return prepare(parse(["run", str(folder / "run.yaml")]))


def test_adapters_alone_get_the_base_that_they_name(folder: Path) -> None:
    found = prepared(folder, models=["x", f"base+{folder / 'y'}"])
    base = str(folder / "base")
    assert found.spec.models == (f"{base}+{folder / 'x'}", f"{base}+{folder / 'y'}")
    assert found.spec.base == base
    assert found.spec.search.methods == ("linear", "task_arithmetic")
    assert any("set search.methods for others" in note for note in found.notes)
    check_models(found.spec.sources, hub=False)


def test_methods_that_the_user_lists_are_kept(folder: Path) -> None:
    assert prepared(folder, models=["x", "y"], search={"methods": ["ties"]}).spec.search.methods == ("ties",)


def test_the_runs_base_goes_before_the_one_that_an_adapter_names(folder: Path) -> None:
    found = prepared(folder, models=["x", "y"], base="other")
    assert found.spec.models == tuple(f"{folder / 'other'}+{folder / name}" for name in ("x", "y"))
    assert any("it is applied to the run's base" in note for note in found.notes)


def test_adapters_beside_whole_models_leave_the_search_as_it_is(folder: Path) -> None:
    found = prepared(folder, models=["x", "other"])
    assert found.spec.base == ""
    assert len(found.spec.search.methods) == 8
    check_models(found.spec.sources, hub=False)


def test_hub_names_stay_as_they_are(folder: Path) -> None:
    found = prepared(folder, models=["org/base@v1+org/lora", "base+org/lora", "org/alone"])
    assert found.spec.models == ("org/base@v1+org/lora", f"{folder / 'base'}+org/lora", "org/alone")


@pytest.mark.parametrize(
    ("models", "error", "words"),
    [
        (["base+other", "x"], ModelError, "is a whole model"),
        (["base+bad", "x"], ShapeMismatch, "'missing'"),
        (["base+wide", "x"], ShapeMismatch, "has shape"),
        (["base+kind", "x"], ModelError, "peft_type: 'IA3'"),
        (["base+pickled", "x"], UnsafeFile, "pickle"),
        (["org/base+kind", "x"], ModelError, "peft_type: 'IA3'"),
    ],
)
def test_what_cannot_work_is_refused_in_milliseconds(
    folder: Path, models: list[str], error: type[EvoMergeException], words: str
) -> None:
    write_adapter(folder / "bad", "missing")
    write_adapter(folder / "wide", size=17)
    write_adapter(folder / "kind", peft_type="IA3")
    (write_adapter(folder / "pickled") / "adapter_model.safetensors").rename(folder / "pickled" / "adapter_model.bin")
    with pytest.raises(error, match=words):
        check_models(prepared(folder, models=models).spec.sources, hub=False)
