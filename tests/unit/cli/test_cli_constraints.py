"""Constraints call a source as the spec does, though folders become absolute."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from evomerge_cli.arguments import parse
from evomerge_cli.spec_source import Prepared, prepare
from evomerge_common.domain.constraints import Constraint


def prepared(folder: Path, bound: str) -> Prepared:
    for name in ("math-2", "text", "base"):
        (folder / name).mkdir(exist_ok=True)
    (folder / "run.yaml").write_text(
        f"models: [./math-2, text]\nbase: ./base\nconstraints: {{a: {{not_below: {bound}}}}}\n"
        "suite: {tasks: [{name: a, kind: exact_match, items: [{prompt: x, answer: y}, {prompt: y, answer: z}]}],"
        " holdout: 0}\n"
    )
    args = parse(["run", str(folder / "run.yaml")])
    assert isinstance(args, argparse.Namespace)
    return prepare(args)


@pytest.mark.parametrize(
    ("bound", "name", "offset"),
    [
        ("./math-2 - 0.1", "math-2", -0.1),
        ("math-2-0.1", "math-2", -0.1),
        ("text", "text", 0.0),
        ("./base + 0.1", "base", 0.1),
    ],
)
def test_a_source_is_called_as_the_spec_calls_it(tmp_path: Path, bound: str, name: str, offset: float) -> None:
    (found,) = prepared(tmp_path, bound).spec.constraints
    assert found == Constraint("a", str(tmp_path / name), offset)


def test_the_word_base_is_the_runs_base(tmp_path: Path) -> None:
    assert prepared(tmp_path, "base - 0.1").spec.constraints == (Constraint("a", "base", -0.1),)
