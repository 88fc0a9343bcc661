"""What `evomerge merge --dry-run` tells: what goes where, and what it will cost on this machine."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge_cli.byte_progress import duration, human
from evomerge_cli.console import Console
from evomerge_common.errors import EvoMergeException

if TYPE_CHECKING:
    from evomerge_merging import Plan
    from evomerge_merging.engine.nodes import Node

_SAMPLE_BYTES = 32_000_000
_SAMPLE_ELEMENTS = 4_000_000
_LAYER = re.compile(r"(?<=\.)\d+(?=\.)")


def facts(plan: Plan, out: Path, *, threads: int) -> dict[str, Any]:
    """Gathers all about a plan as plain data. Reads and writes a few megabytes to measure how fast that goes here."""
    from evomerge_merging.engine.execute import PIECE_ELEMENTS

    place = _existing(out)
    read_rate, write_rate = _read_rate(plan), _write_rate(place)
    computing = _computing_seconds(plan, threads)
    moving = sum(size / rate for size, rate in ((plan.read_bytes, read_rate), (plan.bytes, write_rate)) if rate)
    return {
        "tensors": len(plan.tensors),
        "parameters": plan.parameters,
        "read_bytes": plan.read_bytes,
        "write_bytes": plan.bytes,
        "memory_bytes": plan.memory_bytes(threads=threads, piece_elements=PIECE_ELEMENTS),
        "disk_bytes": plan.disk_bytes,
        "disk_free_bytes": shutil.disk_usage(place).free,
        "read_bytes_per_second": round(read_rate),
        "write_bytes_per_second": round(write_rate),
        "seconds": round(moving + computing, 2),
        "groups": groups(plan),
        "notes": list(plan.notes),
    }


def groups(plan: Plan) -> list[dict[str, Any]]:
    """Groups output tensors that are made in the same way, layers counted together."""
    labels = {key: Path(source.label).name for key, source in plan.sources.items()}
    found: dict[tuple[Any, ...], list[str]] = {}
    for tensor in plan.tensors:
        pattern = _LAYER.sub("*", tensor.name, count=1)
        key = (pattern, tensor.shape, tensor.dtype.word, _words(tensor.node, labels))
        match = _LAYER.search(tensor.name)
        found.setdefault(key, []).append(match[0] if match else "")
    return [
        {"name": name, "layers": _ranges(layers), "shape": list(shape), "dtype": dtype, "from": words}
        for (name, shape, dtype, words), layers in found.items()
    ]


def show(plan_facts: Mapping[str, Any], console: Console) -> None:
    """Shows the facts as tables."""
    rows = [
        [group["name"], group["layers"], "×".join(map(str, group["shape"])), group["dtype"], group["from"]]
        for group in plan_facts["groups"]
    ]
    console.table(["tensors", "layers", "shape", "dtype", "from"], rows)
    sizes = [("weights", f"{plan_facts['parameters']:,} in {plan_facts['tensors']:,} tensors")]
    sizes += [
        ("to read", f"{human(plan_facts['read_bytes'])} at {human(plan_facts['read_bytes_per_second'])}/s"),
        ("to write", f"{human(plan_facts['write_bytes'])} at {human(plan_facts['write_bytes_per_second'])}/s"),
        ("memory, about", human(plan_facts["memory_bytes"])),
        ("disk", f"{human(plan_facts['disk_bytes'])} of {human(plan_facts['disk_free_bytes'])} free"),
        ("time, about", duration(max(1, plan_facts["seconds"]))),
    ]
    console.table(["plan", ""], [list(row) for row in sizes])
    if plan_facts["disk_bytes"] > plan_facts["disk_free_bytes"]:
        console.say("the disk has too little room: free some, or give another folder")


def _words(node: Node, labels: Mapping[str, str]) -> str:
    from evomerge_merging.engine.nodes import Load

    if isinstance(node, Load):
        return labels[node.source]
    inputs = ", ".join(_words(child, labels) for child in node.inputs)
    base = f"; base {_words(node.base, labels)}" if node.base is not None else ""
    return f"{node.method.name}({inputs}{base})"


def _ranges(layers: list[str]) -> str:
    """["0", "1", "2", "5"] → "0-2, 5"."""
    numbers = sorted(int(layer) for layer in layers if layer)
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(f"{first}-{last}" if first != last else str(first) for first, last in runs)


def _existing(path: Path) -> Path:
    return next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.is_dir())


def _read_rate(plan: Plan) -> float:
    """Bytes a second from the sources' files; what the system holds in memory already is as fast for the merge."""
    begun, done = time.perf_counter(), 0
    for source in plan.sources.values():
        for path in sorted(source.folder.glob("*.safetensors")) or sorted(source.folder.glob("*.bin")):
            with contextlib.suppress(OSError), path.open("rb", buffering=0) as file:
                while done < _SAMPLE_BYTES and (data := file.read(1 << 22)):
                    done += len(data)
    return done / max(time.perf_counter() - begun, 1e-6)


def _write_rate(folder: Path) -> float:
    """Bytes a second to the disk; 0 where nothing can be written."""
    path, data = folder / f".evomerge-measure-{os.getpid()}", os.urandom(1 << 20)
    begun, done = time.perf_counter(), 0
    try:
        with path.open("xb", buffering=0) as file:
            while done < _SAMPLE_BYTES:
                done += file.write(data)
            os.fsync(file.fileno())
    except OSError:
        return 0.0
    finally:
        path.unlink(missing_ok=True)
    return done / max(time.perf_counter() - begun, 1e-6)


def _computing_seconds(plan: Plan, threads: int) -> float:
    """From the largest tensor that can be merged quickly, times the rest."""
    from evomerge_merging.engine.execute import PIECE_ELEMENTS
    from evomerge_merging.engine.expression import Evaluation

    small = [tensor for tensor in plan.tensors if 0 < tensor.numel <= _SAMPLE_ELEMENTS]
    if not small:
        return 0.0
    tensor = max(small, key=lambda item: item.numel)
    stores = {key: source.store for key, source in plan.sources.items()}
    try:
        evaluation = Evaluation(tensor.node, stores, piece_elements=PIECE_ELEMENTS)
        begun = time.perf_counter()
        evaluation.prepare()
        for start, stop in evaluation.pieces():
            evaluation.piece(start, stop)
        spent = time.perf_counter() - begun
    except EvoMergeException:
        return 0.0  # the merge itself will tell
    return spent * plan.parameters / tensor.numel / max(1, min(threads, os.cpu_count() or 1))
