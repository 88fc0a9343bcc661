"""Several GPUs: an evaluator for each, or for as many as one model needs; no GPU is needed to test it."""

from __future__ import annotations

from pathlib import Path

import pytest

from evomerge_cli.arguments import parse
from evomerge_cli.stack import embedded
from evomerge_cli.stack.embedded import Stack
from evomerge_cli.stack.gpus import VISIBLE, listed_by_driver, visible_gpus
from evomerge_common.errors import InvalidInput

FOUR = ["0", "1", "2", "3"]


def planned(
    folder: Path, monkeypatch: pytest.MonkeyPatch, found: list[str], evaluators: int | None = None, **environ: str
) -> list[str | None]:
    """What each evaluator of a stack would see, on a machine with these GPUs."""
    monkeypatch.setattr(embedded, "visible_gpus", lambda said, device: visible_gpus(said, device, lambda: found))
    stack = Stack(folder, evaluators=evaluators, environ=environ)
    stack._plan()
    return [one._env.get(VISIBLE) for one in stack._services if one.name.startswith("evaluator")]


def test_each_evaluator_gets_gpus_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert planned(tmp_path, monkeypatch, FOUR) == FOUR
    assert planned(tmp_path, monkeypatch, []) == [None]
    assert planned(tmp_path, monkeypatch, FOUR, 6) == ["0", "1", "2", "3", "0", "1"]
    assert planned(tmp_path, monkeypatch, FOUR, 2) == ["0", "1"]
    assert planned(tmp_path, monkeypatch, FOUR, EVOMERGE_TENSOR_PARALLEL="2") == ["0,1", "2,3"]
    assert planned(tmp_path, monkeypatch, FOUR, EVOMERGE_TENSOR_PARALLEL="3") == ["0,1,2"]
    assert planned(tmp_path, monkeypatch, FOUR, EVOMERGE_DEVICE="cuda") == FOUR


def test_a_users_own_choice_is_kept_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert planned(tmp_path, monkeypatch, FOUR, EVOMERGE_DEVICE="cpu") == [None]
    assert planned(tmp_path, monkeypatch, FOUR, EVOMERGE_DEVICE="cuda:1") == [None]
    assert planned(tmp_path, monkeypatch, FOUR, CUDA_VISIBLE_DEVICES="2,GPU-8f") == ["2", "GPU-8f"]
    assert planned(tmp_path, monkeypatch, FOUR, CUDA_VISIBLE_DEVICES="") == [""]
    assert planned(tmp_path, monkeypatch, FOUR, CUDA_VISIBLE_DEVICES="1,-1,2") == ["1"]


def test_only_evaluators_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "visible_gpus", lambda said, device: FOUR)
    stack = Stack(tmp_path, environ={})
    stack._plan()
    assert {one.name for one in stack._services if VISIBLE in one._env} == {
        "evaluator", "evaluator2", "evaluator3", "evaluator4",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("script", "found"),
    [("printf '0\\n1\\n'", ["0", "1"]), ("echo 'No devices were found'; exit 6", []), ("exit 0", [])],
)
def test_the_driver_is_asked(script: str, found: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert listed_by_driver() == found
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert listed_by_driver() == []


def test_how_many_is_left_to_the_machine_unless_it_is_said() -> None:
    assert parse(["run", "spec.yaml"]).evaluators is None
    assert parse(["up"]).evaluators is None
    assert parse(["up", "--evaluators", "3"]).evaluators == 3


def test_a_wrong_number_is_told(tmp_path: Path) -> None:
    for text in ("two", "0"):
        with pytest.raises(InvalidInput, match=r"EVOMERGE_TENSOR_PARALLEL"):
            Stack(tmp_path, environ={"EVOMERGE_TENSOR_PARALLEL": text})
