"""What touches files, locks and URIs has one home: everything else goes through ports and `runtime.files`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
COMMON = "libs/evomerge_common/src/evomerge_common"
HOMES = {
    "evomerge_common.runtime.uris": {
        f"{COMMON}/runtime/settings.py",
        f"{COMMON}/runtime/ports_factory.py",
        f"{COMMON}/adapters/filesystem.py",
    },
    "fcntl": {f"{COMMON}/runtime/files.py"},
    "collections.OrderedDict": set(),
}
"""What is imported → the only modules that may: URIs are opened by their store, locks taken by the one helper, caches
are cachetools'."""


def imports(source: str) -> Iterator[str]:
    """Every module and name that a source imports, dotted."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{one.name}" for one in node.names)


@pytest.mark.parametrize("what", HOMES)
def test_nobody_else_imports_it(what: str) -> None:
    found = {
        str(path.relative_to(ROOT))
        for folder in ("libs", "services")
        for path in (ROOT / folder).glob("*/src/**/*.py")
        if what in imports(path.read_text())
    }
    assert found == HOMES[what]


def test_such_an_import_is_seen() -> None:
    source = "import fcntl\ndef f():\n    from collections import OrderedDict, deque\n"
    assert {"fcntl", "collections.OrderedDict"} <= set(imports(source))
