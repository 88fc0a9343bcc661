"""A fact has one home: lists of merge methods follow from `evomerge_common.domain.methods`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from evomerge_common.domain.methods import BUILT_IN

ROOT = Path(__file__).resolve().parents[3]
HOMES = (
    "libs/evomerge_common/src/evomerge_common/domain/methods.py",
    "libs/evomerge_merging/src/evomerge_merging/methods/",
)
"""The table, and the methods' own modules."""
LITERALS = (ast.List, ast.Tuple, ast.Set, ast.Dict)


def method_lists(source: str) -> Iterator[tuple[int, list[str]]]:
    """Line and names of each literal that holds two or more different method names, nested literals included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, LITERALS):
            words = {str(one.value) for one in ast.walk(node) if isinstance(one, ast.Constant)}
            names = words & set(BUILT_IN)
            if len(names) > 1:
                yield node.lineno, sorted(names)


def test_no_list_of_methods_stands_outside_their_home() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {', '.join(names)}"
        for folder in ("libs", "services")
        for path in sorted((ROOT / folder).glob("*/src/**/*.py"))
        if not str(path.relative_to(ROOT)).startswith(HOMES)
        for line, names in method_lists(path.read_text())
    ]
    assert found == []


@pytest.mark.parametrize(
    "source",
    ['X = ("ties", "slerp")', 'X = {"ties": 1, "slerp": 2}', 'X = [("ties", 1), ("slerp", 2)]', 'f({"ties", "dfs"})'],
)
def test_such_a_list_is_seen(source: str) -> None:
    assert len(list(method_lists(source))) >= 1


def test_no_method_asks_whether_there_are_kernels() -> None:
    """They are shown a view and give a form; what is behind both is the engine's business."""
    folder = ROOT / "libs/evomerge_merging/src/evomerge_merging/methods"
    modules = {
        f"{path.name}: {module}"
        for path in folder.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        for module in _imported(node)
        if module.startswith(("evomerge_merging.native", "evomerge_merging.engine"))
    }
    assert modules == set()


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.ImportFrom):
        return [node.module or ""]
    return [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
