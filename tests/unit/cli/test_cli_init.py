"""`evomerge init`: what it writes is a spec that a run takes."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from evomerge_cli.__main__ import main
from evomerge_cli.arguments import parse
from evomerge_cli.spec_source import prepare


def asked(monkeypatch: pytest.MonkeyPatch, folder: Path, answers: str) -> int:
    monkeypatch.setattr("sys.stdin", io.StringIO(answers))
    return main(["init", str(folder / "run.yaml"), "--interactive"])


def test_piped_answers_make_a_spec_and_empty_ones_take_the_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = "org/a\norg/b\norg/c\n\norg/base\n\nnsga2\n40\n1.5\n12\n3\nq8_0\nresults/a b\n"
    assert asked(monkeypatch, tmp_path, answers) == 0
    assert yaml.safe_load((tmp_path / "run.yaml").read_text()) == {
        "models": ["org/a", "org/b", "org/c"], "base": "org/base", "suite": "general", "seed": 3,
        "search": {"strategy": "nsga2", "evaluations": 40, "hours": 1.5, "patience": 12, "population": 16},
        "evaluation": {"threads": 2}, "export": {"formats": ["hf", "gguf"], "gguf_type": "q8_0"},
    }  # fmt: skip
    said = capsys.readouterr()
    assert f"evomerge run {tmp_path}/run.yaml --out 'results/a b'" in said.out
    assert f"evomerge run {tmp_path}/run.yaml --out 'results/a b'" in (tmp_path / "run.yaml").read_text()


def test_a_pipe_that_ends_at_once_gives_the_defaults_of_plain_init(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert asked(monkeypatch, tmp_path, "") == 0
    spec = yaml.safe_load((tmp_path / "run.yaml").read_text())
    assert len(spec["models"]) == 2
    assert spec["search"] == {"strategy": "tournament", "evaluations": 64, "population": 16}
    assert main(["init", str(tmp_path / "plain.yaml")]) == 0
    plain = yaml.safe_load((tmp_path / "plain.yaml").read_text())
    assert {**plain, "models": plain["models"][:2]} == spec


def test_files_of_items_become_tasks_and_what_is_written_is_a_spec_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items: dict[str, dict[str, Any]] = {
        "sums": {"prompt": "1+1=", "answer": "2"},
        "topics": {"prompt": "p", "choices": ["a", "b"], "answer": 0},
        "style": {"text": "some words"},
        "moods": {"text": "t", "label": "good"},
        "facts": {"question": "q", "answers": ["a"]},
    }
    for name, item in items.items():
        several = [{**item, next(iter(item)): f"{i}"} for i in range(20)]
        if "label" in item:
            several[0]["label"] = "bad"
        lines = (json.dumps(one) + "\n" for one in several)
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    for name in ("one: a", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    files = " ".join(f"{name}.jsonl" for name in items)
    assert asked(monkeypatch, tmp_path, f"./one: a\n./two\n\n\n{files}\n") == 0
    prepared = prepare(parse(["run", str(tmp_path / "run.yaml")]))
    assert [(task.name, task.kind) for task in prepared.suite.tasks] == [
        ("sums", "exact_match"), ("topics", "multiple_choice"), ("style", "perplexity"), ("moods", "classification"),
        ("facts", "qa"),
    ]  # fmt: skip
    assert prepared.spec.models == (str(tmp_path / "one: a"), str(tmp_path / "two"))


def test_masked_models_are_scored_on_the_suite_for_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text('{"architectures": ["BertForMaskedLM"]}')
    assert asked(monkeypatch, tmp_path, "./one\n./two\n") == 0
    assert yaml.safe_load((tmp_path / "run.yaml").read_text())["suite"] == "masked"


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ("org/a\norg/a\n", "named already"),
        ("./nowhere\n", "no config.json"),
        ("nowhere/\n", "no config.json"),
        ("a/b\nc/d\n\n\nmissing.yaml\n", "no suite file"),
        ("a/b\nc/d\n\n\n\ntournment\n", "did you mean 'tournament'"),
        ("a/b\nc/d\n\n\n\n\nmany\n", "whole number"),
        ("a/b\nc/d\n\n\n\n\n0\n", "from 1"),
        ("a/b\nc/d\n\n\n\n\n\nsoon\n", "must be a number"),
        ("a/b\nc/d\n\n\n\n\n\n-1\n", "of at least 0"),
        ("a/b\nc/d\n\n\n\n\n\n\n\n\nq4\n", "did you mean 'q4_"),
        ("a/b\nc/d\n\n\nmissing.jsonl\n", "missing.jsonl cannot be read"),
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
