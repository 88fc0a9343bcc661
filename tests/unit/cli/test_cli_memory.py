"""Whether candidates fit into this machine's memory is known before a run starts."""

from pathlib import Path

import pytest

from evomerge_cli import memory
from evomerge_cli.__main__ import main
from evomerge_cli.memory import check_memory, scored_on_gpu
from evomerge_common.errors import OutOfMemory
from helpers.hub_server import write_model_folder

GB = 10**9


def test_enough() -> None:
    assert check_memory(7 * GB, 1, (64 * GB, 30 * GB)) == ""


def test_close_is_noted() -> None:
    note = check_memory(7 * GB, 1, (32 * GB, 20 * GB))
    assert "28.0 GB of memory in float32 for the evaluator, and 20.0 GB are free" in note


def test_each_evaluator_holds_a_candidate() -> None:
    with pytest.raises(OutOfMemory, match=r"need 42\.0 GB .* for 3 evaluators.* has 32\.0 GB; take fewer evaluators"):
        check_memory(7 * GB, 3, (32 * GB, 30 * GB))


def test_a_gpu_has_memory_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.shutil, "which", lambda name: f"/bin/{name}")  # type: ignore[attr-defined]
    assert scored_on_gpu("cuda:1")
    assert scored_on_gpu("auto")
    assert not scored_on_gpu("cpu")


@pytest.mark.parametrize(("limit", "found"), [("max\n", None), ("1000000\n", 1_000_000)])
def test_a_container_has_what_it_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, found: int | None
) -> None:
    (tmp_path / "memory.max").write_text(limit)
    monkeypatch.setattr(memory, "_CONTROL_GROUP", tmp_path / "memory.max")
    total, unused = memory.machine_memory()
    assert total >= unused > 0
    assert found is None or total == unused == found


def test_a_run_that_does_not_fit_starts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [str(write_model_folder(tmp_path / name, fill)) for fill, name in enumerate("abc")]
    monkeypatch.setenv("EVOMERGE_DEVICE", "cpu")
    monkeypatch.setattr("evomerge_cli.commands.run.machine_memory", lambda: (500, 400))
    flags = [word for i, name in enumerate(names, 1) for word in (f"--model{i}", name)]
    assert main(["run", *flags, "--out", str(tmp_path / "out")]) != 0
    said = capsys.readouterr().err
    assert "for the evaluator, and this machine has" in said
    assert not (tmp_path / "out").exists()
