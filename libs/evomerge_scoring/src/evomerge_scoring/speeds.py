"""How fast this machine's CPU multiplies matrices in float32 and in bfloat16: measured once, remembered in the home.

A CPU says by flags which products it can do (AVX512_BF16, AMX, Arm's BF16); whether they pay shows only when they are
done: libraries emulate what the hardware lacks, and a virtual machine may hide what it has.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from evomerge_common.runtime.files import locked, write_atomically
from evomerge_common.runtime.settings import Settings

PAYS = 1.5
"""How much faster bfloat16 must be: the rest of a model (norms, softmax, positions) gains nothing."""
MEASURING_SECONDS = 0.25
LEAST_ROUNDS = 3
_CPU_WORDS = ("model name", "flags", "Features")


@dataclass(frozen=True)
class Shape:
    """The product of a transformer's inner layer: (rows, width) times (width, 4 · width)."""

    name: str
    rows: int
    width: int
    threads: int


SHAPE = Shape("inner layer", 128, 1024, 2)


@dataclass(frozen=True)
class Speeds:
    """Of one shape, in GFLOP/s."""

    float32: float
    bfloat16: float

    @property
    def bfloat16_pays(self) -> bool:
        """Tells whether a model of such products is scored faster in bfloat16."""
        return self.bfloat16 >= PAYS * self.float32


def cpu_speeds() -> Speeds:
    """Returns this machine's speeds: those that its home remembers, or else measures them, in about a quarter second.

    Remembered for one kind of CPU and one version of torch, so that processes of one machine agree. A home that cannot
    be written costs a measurement a process.
    """
    return _speeds(SHAPE, Settings.from_env().model_store.parent / "speeds.json")


@cache
def _speeds(shape: Shape, file: Path) -> Speeds:
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with locked(file.with_suffix(".lock")):  # who waits for it finds the answer
            known = _read(file)
            key = f"{cpu_name()} | {_cpu_digest()} | torch {torch.__version__} | {shape}"
            with suppress(KeyError, TypeError, ValueError):
                return Speeds(**{name: float(value) for name, value in known[key].items()})
            found = measure(shape)
            with suppress(OSError):
                write_atomically(file, json.dumps({**known, key: asdict(found)}, indent=1) + "\n")
            return found
    return measure(shape)


def measure(shape: Shape) -> Speeds:
    """Measures both products in turn, so that whatever else the machine does slows both; medians."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(shape.threads, os.cpu_count() or 1))
    try:
        with torch.inference_mode():
            works = [_product(shape, dtype) for dtype in (torch.float32, torch.bfloat16)]
            seconds: list[list[float]] = [[], []]
            for work in works:
                work()
            end = time.perf_counter() + MEASURING_SECONDS
            while time.perf_counter() < end or len(seconds[0]) < LEAST_ROUNDS:
                for work, found in zip(works, seconds, strict=True):
                    start = time.perf_counter()
                    work()
                    found.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    operations = 2 * shape.rows * shape.width * 4 * shape.width
    return Speeds(*(operations / statistics.median(found) / 1e9 for found in seconds))


def _product(shape: Shape, dtype: torch.dtype) -> Callable[[], torch.Tensor]:
    inputs = torch.full((shape.rows, shape.width), 0.5).to(dtype)
    weight = torch.full((4 * shape.width, shape.width), 0.25).to(dtype)
    return lambda: torch.nn.functional.linear(inputs, weight)


def _read(file: Path) -> dict[str, Any]:
    try:
        read = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return read if isinstance(read, dict) else {}


def cpu_name() -> str:
    """Says which CPU this is, as the kernel calls it."""
    return next((text for word, text in _cpu_lines() if word == "model name"), "CPU")


def _cpu_digest() -> str:
    """Tells CPUs of one name apart that can do different things: a virtual machine may hide some."""
    said = sorted({line for line in _cpu_lines() if line[0] in _CPU_WORDS})
    return hashlib.sha256(repr(said).encode()).hexdigest()[:12]


def _cpu_lines() -> list[tuple[str, str]]:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "ignore").splitlines()
    except OSError:
        return []
    return [(word.strip(), text.strip()) for word, _, text in (line.partition(":") for line in lines)]
