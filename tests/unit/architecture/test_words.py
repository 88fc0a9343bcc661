"""Names are the glossary's: a noun for a value, a verb for a function, no leftovers of older words."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
AREAS = (
    "libs/evomerge_cli",
    "libs/evomerge_common",
    "libs/evomerge_report",
    "services",
    "libs/evomerge_merging/src/evomerge_merging/cross_domain",
    "libs/evomerge_merging/src/evomerge_merging/numerics",
)
# Not covered yet: the rest of evomerge_merging, evomerge_models and evomerge_scoring.
WORDS = re.compile(r"(^|_)(told|said|spoken|kept|standing|individual)($|_)", re.IGNORECASE)
FILES = sorted({file for area in AREAS for file in (ROOT / area).rglob("*.py") if "src" in file.parts})


def new_names(source: str) -> Iterator[tuple[int, str]]:
    """Yields line and name of every class, function, argument, variable and attribute that a module makes."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield node.lineno, name
            case ast.arg(arg=name) | ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield node.lineno, name


def test_no_name_is_a_word_that_the_glossary_forbids() -> None:
    found = [
        f"{file.relative_to(ROOT)}:{line}: {name}"
        for file in FILES
        for line, name in new_names(file.read_text("utf-8"))
        if WORDS.search(name)
    ]
    assert not found, found
    assert len(FILES) > 150


@pytest.mark.parametrize(
    "text",
    [
        "kept = 1",
        "def said(): ...",
        "class Individual: ...",
        "self._told = 0",
        "def f(standing): ...",
        "for told in x: ...",
    ],
)
def test_the_test_sees_a_name(text: str) -> None:
    assert any(WORDS.search(name) for _, name in new_names(text))
