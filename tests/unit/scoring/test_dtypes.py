"""In which dtype a model is scored: by measurement, or as it was asked."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from evomerge_common.domain.suite import Suite
from evomerge_common.errors import InvalidInput, Unavailable
from evomerge_scoring import score_folder, speeds
from evomerge_scoring.devices import SMALL_MODEL, choose_dtype
from evomerge_scoring.speeds import SHAPE, Shape, Speeds, cpu_speeds, measure
from helpers.tiny_models import CHOICES, PROMPTS, make

CPU = torch.device("cpu")
SUITE = Suite.from_dict(
    {
        "holdout": 0,
        "tasks": [
            {"name": "a", "kind": "multiple_choice", "items": CHOICES},
            {"name": "b", "kind": "exact_match", "items": [{"prompt": p, "answer": "x"} for p in PROMPTS]},
            {"name": "c", "kind": "perplexity", "items": [{"text": "The quick brown fox."}]},
        ],
    }
)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home that remembers nothing; what this process remembers is forgotten too."""
    monkeypatch.setenv("EVOMERGE_MODEL_STORE", str(tmp_path / "home" / "models"))
    return tmp_path / "home"


def a_machine(monkeypatch: pytest.MonkeyPatch, found: Speeds) -> list[Shape]:
    """One of these speeds; lists the shapes that were measured."""
    measured: list[Shape] = []

    def fake(shape: Shape) -> Speeds:
        measured.append(shape)
        return found

    monkeypatch.setattr(speeds, "measure", fake)
    return measured


def test_auto_is_what_was_measured_here() -> None:
    """Whatever CPU this is: bfloat16 where it multiplies it faster by enough, float32 elsewhere, emulated or not."""
    found = cpu_speeds()
    assert min(found.float32, found.bfloat16) > 0
    pays = found.bfloat16 >= 1.5 * found.float32
    if torch.backends.cpu.get_cpu_capability() == "AVX2":
        assert not pays, "bfloat16 is emulated here"
    assert choose_dtype(CPU, parameters=SMALL_MODEL) == (torch.bfloat16 if pays else torch.float32)


def test_a_small_model_is_scored_in_float32_on_every_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = a_machine(monkeypatch, Speeds(200.0, 800.0))
    assert choose_dtype(CPU, parameters=SMALL_MODEL - 1) == torch.float32
    assert choose_dtype(CPU, parameters=1_000_000, wanted="bfloat16") == torch.bfloat16
    assert not measured


def test_where_it_pays_by_measurement_it_is_bfloat16(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    measured = a_machine(monkeypatch, Speeds(200.0, 800.0))
    assert choose_dtype(CPU, parameters=SMALL_MODEL) == torch.bfloat16
    assert choose_dtype(CPU, parameters=SMALL_MODEL, wanted="float32") == torch.float32
    speeds._speeds.cache_clear()  # another process of the same machine
    assert choose_dtype(CPU, parameters=SMALL_MODEL) == torch.bfloat16
    assert measured == [SHAPE], "it is measured once"
    known = json.loads((home / "speeds.json").read_text())
    assert list(known.values()) == [{"float32": 200.0, "bfloat16": 800.0}]
    assert all(torch.__version__ in key for key in known)


def test_where_it_does_not_pay_it_is_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    a_machine(monkeypatch, Speeds(30.0, 40.0))
    assert choose_dtype(CPU, parameters=SMALL_MODEL) == torch.float32


@pytest.mark.parametrize("content", ["", "{", "[]", '{"x": 1}'])
def test_a_damaged_memory_is_measured_anew(content: str, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    measured = a_machine(monkeypatch, Speeds(1.0, 2.0))
    home.mkdir()
    (home / "speeds.json").write_text(content)
    assert cpu_speeds() == Speeds(1.0, 2.0)
    assert measured == [SHAPE]


def test_a_home_that_cannot_be_written_costs_a_measurement(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    measured = a_machine(monkeypatch, Speeds(1.0, 2.0))
    home.write_text("no folder")
    assert cpu_speeds() == Speeds(1.0, 2.0)
    assert measured == [SHAPE]


def test_a_measurement_leaves_torch_as_it_was() -> None:
    threads = torch.get_num_threads()
    found = measure(replace(SHAPE, width=32))
    assert min(found.float32, found.bfloat16) > 0
    assert torch.get_num_threads() == threads


def test_what_cannot_be_had_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidInput, match=r"float16.*auto, float32, bfloat16"):
        choose_dtype(CPU, wanted="float16")

    def broken(*_: object, **__: object) -> torch.Tensor:
        raise RuntimeError("no kernel")

    monkeypatch.setattr(torch, "ones", broken)
    with pytest.raises(Unavailable, match="cpu of this machine cannot compute in bfloat16: no kernel"):
        choose_dtype(CPU, wanted="bfloat16")


def test_the_scores_of_both_are_near(tmp_path: Path) -> None:
    """Sums of products are float32 in either, log-softmax too: what differs is the rounding of 8 bits."""
    folder = make(tmp_path / "model")
    both = [score_folder(folder, SUITE, "all", device="cpu", dtype=dtype) for dtype in ("float32", "bfloat16")]
    assert [report.device for report in both] == ["cpu float32 1 thread", "cpu bfloat16 1 thread"]
    first, second = (next(one for one in report.scores if one.task == "c") for report in both)
    assert first.metric_value != second.metric_value
    assert first.metric_value == pytest.approx(second.metric_value, rel=0.01)
