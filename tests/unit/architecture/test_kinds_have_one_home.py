"""A kind of task is known by its name in one place: its own file."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from evomerge_common.domain.kinds import KINDS

ROOT = Path(__file__).parents[3]
HOMES = ("evomerge_common/domain/kinds/", "evomerge_scoring/kinds/")
SOURCES = [
    path
    for folder in ("libs", "services")
    for path in sorted((ROOT / folder).glob("*/src/**/*.py"))
    if not any(home in path.as_posix() for home in HOMES)
]


def comparisons(tree: ast.AST) -> Iterator[tuple[int, str, ast.expr]]:
    """Line, the subject as written, and what it is compared with, of each ==, !=, in, not in and case."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            for one in sides:
                yield from ((node.lineno, ast.unparse(one), other) for other in sides if other is not one)
        elif isinstance(node, ast.Match):
            for case in node.cases:
                for pattern in ast.walk(case.pattern):
                    if isinstance(pattern, ast.MatchValue):
                        yield node.subject.lineno, ast.unparse(node.subject), pattern.value


def by_name(text: str) -> list[int]:
    """Lines that compare a kind with the name of a kind of task."""
    found = []
    for line, subject, other in comparisons(ast.parse(text)):
        words = [part.value for part in ast.walk(other) if isinstance(part, ast.Constant)]
        if "kind" in subject and any(word in KINDS for word in words):
            found.append(line)
    return found


def test_no_kind_is_compared_with_a_name_outside_its_home() -> None:
    found = [f"{path.relative_to(ROOT)}:{line}" for path in SOURCES for line in by_name(path.read_text("utf-8"))]
    assert not found, f"ask the kind (`kind_of(task.kind)`) instead: {found}"
    assert len(SOURCES) > 100


@pytest.mark.parametrize(
    "text",
    [
        'task.kind == "code"', '"code" != task.kind', 'kind in ("lm_eval", "plugin")', 'task["kind"] == "qa"',
        'match task.kind:\n    case "qa" | "code":\n        pass',
    ],
)  # fmt: skip
def test_the_test_sees_a_comparison(text: str) -> None:
    assert by_name(text)


def test_a_search_for_the_comparison_finds_none_elsewhere() -> None:
    """As a newcomer would look: `grep -rn 'kind == "'`."""
    assert [str(path) for path in SOURCES if 'kind == "' in path.read_text("utf-8")] == []
