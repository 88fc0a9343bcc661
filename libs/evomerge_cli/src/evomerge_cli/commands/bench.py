"""`evomerge bench`: the performance benchmarks of a source checkout."""

from __future__ import annotations

import argparse
import ast
import subprocess
import sys
from pathlib import Path

from evomerge_cli.console import Console
from evomerge_cli.failure import OK
from evomerge_common.errors import InvalidInput, did_you_mean


def run(args: argparse.Namespace, console: Console) -> int:
    """Lists them, or runs one in a process of its own."""
    folder = find_folder()
    scripts = {path.stem: path for path in sorted(folder.glob("*.py")) if not path.stem.startswith("_")}
    if not args.name:
        found = [{"name": name, "summary": _summary(path), "path": str(path)} for name, path in scripts.items()]
        if not console.data(found):
            if found:
                console.table(["benchmark", "what it measures"], [[f["name"], f["summary"]] for f in found])
            else:
                console.out(f"no benchmark in {folder} yet")
        return OK
    if args.name not in scripts:
        raise InvalidInput(
            f"no benchmark {args.name!r}; {did_you_mean(args.name, scripts) if scripts else 'there are none'}"
        )
    return subprocess.call([sys.executable, str(scripts[args.name]), *args.rest])


def find_folder() -> Path:
    """Finds `benchmarks/` of the checkout that we run from, or of the one that the user stands in.

    Raises:
        InvalidInput: neither.

    """
    for start in (Path(__file__).resolve(), Path.cwd() / "here"):
        for parent in start.parents:
            if (parent / "benchmarks").is_dir() and (parent / "proto").is_dir():
                return parent / "benchmarks"
    raise InvalidInput("the benchmarks are part of a source checkout: run this from inside one")


def _summary(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]
