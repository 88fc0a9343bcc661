"""`evomerge gguf inspect`: what a GGUF file holds."""

from __future__ import annotations

import argparse
from pathlib import Path

from evomerge_cli.byte_progress import human
from evomerge_cli.console import Console
from evomerge_common.errors import ModelNotFound


def run(args: argparse.Namespace, console: Console) -> int:
    """Shows what a GGUF file holds."""
    from evomerge_models.gguf.describe import in_words, inspect_gguf, one_line

    path = Path(args.file).expanduser()
    if not path.is_file():
        raise ModelNotFound(f"no file {path}; give the path of a .gguf file")
    contents = inspect_gguf(path)
    if console.data(contents):
        return 0
    for line in in_words(contents):
        console.out(line)
    rows = [[key, one_line(value)] for key, value in contents["metadata"].items()]
    console.table(["metadata", "value"], rows)
    sizes = [
        [name, str(one["tensors"]), f"{one['parameters']:,}", human(one["bytes"])]
        for name, one in sorted(contents["types"].items())
    ]
    console.table(["type", "tensors", "parameters", "size"], sizes)
    tensors = [[t["name"], "×".join(map(str, t["shape"])), t["type"], human(t["bytes"])] for t in contents["tensors"]]
    console.table(["tensor", "shape", "type", "size"], tensors)
    return 0
