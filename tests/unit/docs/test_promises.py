"""What READMEs and docs promise is there: the tests they name, the files they point to, the commands they show."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import subprocess
from functools import cache
from itertools import product
from pathlib import Path

import pytest

from evomerge_cli.arguments import parse

ROOT = Path(__file__).resolve().parents[3]
LONGEST_LINE = 129
LONGEST_NAME = 79
PRAGMA = r"  # (type: ignore|noqa|fmt: ).*$"
"""What a tool is told at the end of a line does not make the line long; ruff counts alike."""
TEXTS = {".md", ".toml", ".yaml", ".yml", ".sh", ".proto", ".html", ".js", ".css", ".py", ".conf", ".cfg", ".ini"}
GENERATED = ("libs/evomerge_common/src/evomerge/", "LICENSE")
TREES = ("libs", "services", "docs", "tests", "scripts", "deploy", "proto", "benchmarks", "examples", ".ci", ".github")


@cache
def tracked(pattern: str = "") -> tuple[Path, ...]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return tuple(ROOT / line for line in listed if re.search(pattern, line) and (ROOT / line).is_file())


@cache
def functions() -> dict[str, frozenset[Path]]:
    """Every test function by name, with the files that have one."""
    found: dict[str, set[Path]] = {}
    for path in tracked(r"^tests/.*test_\w+\.py$"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                found.setdefault(node.name, set()).add(path)
    return {name: frozenset(paths) for name, paths in found.items()}


def pages() -> list[str]:
    return [str(path.relative_to(ROOT)) for path in tracked(r"\.md$")]


def code_spans(text: str) -> list[str]:
    """What stands in backticks, fenced blocks left out."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))


def code_lines(text: str) -> list[str]:
    """The lines of fenced blocks, without their comments; a line that ends in a backslash goes on in the next."""
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    return [line.split(" # ")[0].strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]


@pytest.mark.parametrize("page", pages())
def test_every_test_that_a_page_names_exists(page: str) -> None:
    text = (ROOT / page).read_text()
    for file, name in re.findall(r"(?:([\w/.]*test_\w+\.py)::)?\b(test_\w+)\b(?!\.py|/)", text):
        assert name in functions(), f"{page}: no test is named {name}"
        if file:
            where = [str(path) for path in functions()[name]]
            assert any(path.endswith(f"/{file}") for path in where), f"{page}: {name} is not in {file} but in {where}"
    for file in re.findall(r"[\w/.]*\btest_\w+\.py", text):
        assert any(str(path).endswith(f"/{file}") for path in tracked(r"^tests/")), f"{page}: there is no {file}"


def braces(text: str) -> list[str]:
    """a{b,c}d → abd, acd."""
    parts = [part.split(",") for part in re.split(r"[{}]", text)]
    parts = [[",".join(part)] if place % 2 == 0 else part for place, part in enumerate(parts)]
    return ["".join(choice) for choice in product(*parts)]


@pytest.mark.parametrize("page", pages())
def test_every_file_that_a_page_points_to_exists(page: str) -> None:
    text = (ROOT / page).read_text()
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"https?:|mailto:|#", link):
            assert ((ROOT / page).parent / link.split("#")[0]).exists(), f"{page} links to {link}"
    for span in code_spans(text):
        path = span.split("::")[0].split(" ")[0]
        if path.split("/")[0] in TREES and "/" in path:
            for one in braces(re.sub(r"<\w+>", "*", path)):
                assert list(ROOT.glob(one.rstrip("/"))), f"{page} names {one}"


PLACEHOLDERS = {"N": "1", "R": "1", "TYPE": "q8_0", "RATE": "0.5", "…": ""}


def written_out(synopsis: str) -> list[str]:
    """A synopsis as commands: what is optional is there, each of several words once, numbers for N."""
    words = re.sub(r"[\[\]]", " ", synopsis.replace("\\|", "|").replace(" | ", "|")).split()
    words = [PLACEHOLDERS.get(word, word) for word in words]
    return [" ".join(choice) for choice in product(*(word.split("|") for word in words))]


@pytest.mark.parametrize("page", pages())
def test_every_command_on_a_page_parses(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / page).read_text()
    shown = [(line, True) for line in code_lines(text) if re.match(r"(\.venv/bin/)?evomerge [a-z-]", line)]
    spans = [span for span in code_spans(text) if span.startswith("evomerge ")]
    shown += [(line, False) for span in spans for line in written_out(span)]
    for command, is_whole in shown:
        code: object = 0
        try:
            parse(shlex.split(re.split(r" [|>&;]", command)[0])[1:])
        except SystemExit as stopped:
            code = stopped.code
        error = capsys.readouterr().err
        # In a sentence the name of a command may stand alone.
        assert code == 0 or (not is_whole and "the following arguments are required" in error), f"{page}: {error}"


@pytest.mark.parametrize("page", pages())
def test_python_on_a_page_imports_and_calls_what_is_there(page: str) -> None:
    for block in re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL):
        tree = ast.parse(block)
        called = {
            node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("evomerge"):
                module = importlib.import_module(str(node.module))
                for name in (alias.name for alias in node.names):
                    assert hasattr(module, name), f"{page}: {node.module} has no {name}"
                    assert name not in called or callable(getattr(module, name)), f"{page}: {name} is no function"


@pytest.mark.parametrize("page", pages())
def test_every_make_target_on_a_page_exists(page: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    text = (ROOT / page).read_text()
    for command in [*code_lines(text), *code_spans(text)]:
        if named := re.match(r"make ([a-z-]+)", command):
            assert named[1] in targets, f"{page}: {command}"


def test_names_of_tests_are_short() -> None:
    assert [name for name in functions() if len(name) > LONGEST_NAME] == []


def test_lines_are_short() -> None:
    long = []
    for path in tracked():
        name = str(path.relative_to(ROOT))
        text = path.suffix in TEXTS or path.name in {"Dockerfile", "Makefile"} or path.parent.name in {"scripts", ".ci"}
        if text and not name.startswith(GENERATED) and not path.is_symlink():
            lines = enumerate(re.sub(PRAGMA, "", path.read_text(), flags=re.MULTILINE).splitlines(), 1)
            long += [f"{name}:{number}: {len(line)}" for number, line in lines if len(line) > LONGEST_LINE]
    assert long == []
