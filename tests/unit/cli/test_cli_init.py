"""`evomerge init`: what it writes is a spec that a run takes."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import yaml

from evomerge_cli.__main__ import main


def asked(monkeypatch: pytest.MonkeyPatch, folder: Path, answers: str) -> int:
    monkeypatch.setattr("sys.stdin", io.StringIO(answers))
    return main(["init", str(folder / "run.yaml"), "--interactive"])


def test_piped_answers_make_a_spec_and_empty_ones_take_the_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert asked(monkeypatch, tmp_path, "org/a\norg/b\norg/c\n\norg/base\n\nnsga2\n40\n12\n3\n") == 0
    assert yaml.safe_load((tmp_path / "run.yaml").read_text()) == {
        "models": ["org/a", "org/b", "org/c"], "base": "org/base", "suite": "general", "seed": 3,
        "search": {"strategy": "nsga2", "evaluations": 40, "patience": 12},
    }  # fmt: skip


def test_a_pipe_that_ends_at_once_gives_the_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked(monkeypatch, tmp_path, "") == 0
    spec = yaml.safe_load((tmp_path / "run.yaml").read_text())
    assert len(spec["models"]) == 2
    assert spec["search"] == {"strategy": "tournament", "evaluations": 64}


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ("org/a\norg/a\n", "named already"),
        ("./nowhere\n", "no config.json"),
        ("a/b\nc/d\n\n\nmissing.yaml\n", "no suite file"),
        ("a/b\nc/d\n\n\n\ntournment\n", "did you mean 'tournament'"),
        ("a/b\nc/d\n\n\n\n\nmany\n", "whole number"),
        ("a/b\nc/d\n\n\n\n\n0\n", "from 1"),
    ],
)
def test_a_wrong_answer_from_a_pipe_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], answers: str, words: str
) -> None:
    assert asked(monkeypatch, tmp_path, answers) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run.yaml").exists()


def test_on_a_terminal_a_wrong_answer_is_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal("org/a\norg/a\norg/b\n\n\n\ntournment\ncmaes\n\n\n\n"))
    assert main(["init", str(tmp_path / "run.yaml"), "--interactive"]) == 0
    spec = yaml.safe_load((tmp_path / "run.yaml").read_text())
    assert (spec["models"], spec["search"]["strategy"]) == (["org/a", "org/b"], "cmaes")
