"""How much memory this machine has for us, and how much scoring will take of it."""

from __future__ import annotations

import shutil
from pathlib import Path

from evomerge_common.errors import OutOfMemory

_CONTROL_GROUP = Path("/sys/fs/cgroup/memory.max")
_LEAST_BYTES, _USUAL_BYTES = 2, 4
"""Of a weight: in bfloat16, which few processors multiply, and in float32."""


def machine_memory() -> tuple[int, int]:
    """Returns the bytes of memory that there are, and those that are free; a container has what it is allowed."""
    import psutil

    memory = psutil.virtual_memory()
    try:
        allowed = int(_CONTROL_GROUP.read_text())
    except (OSError, ValueError):  # no control group, or "max"
        allowed = memory.total
    return min(memory.total, allowed), min(memory.available, allowed)


def scored_on_gpu(device: str) -> bool:
    """Tells whether candidates will lie in a GPU's own memory, as far as can be told without importing torch."""
    return device.startswith("cuda") or (device == "auto" and shutil.which("nvidia-smi") is not None)


def check_memory(parameters: int, evaluators: int, memory: tuple[int, int]) -> str:
    """Compares the weights of the candidates that are in memory at a time with the memory of the machine.

    Args:
        parameters: numbers in a candidate.
        evaluators: how many candidates are scored at a time.
        memory: what `machine_memory` returns.

    Returns:
        A note where it will be close; "" where there is enough.

    Raises:
        OutOfMemory: they do not fit, whatever the dtype.

    """
    total, free = memory
    least, usual = (parameters * evaluators * size for size in (_LEAST_BYTES, _USUAL_BYTES))
    who = "the evaluator" if evaluators == 1 else f"{evaluators} evaluators"
    fewer = "fewer evaluators, " if evaluators > 1 else ""
    remedy = f"take {fewer}smaller models, a machine with a GPU or more memory, or a server (--server)"
    if least > total:
        raise OutOfMemory(
            f"candidates of {parameters / 1e9:.2f} billion parameters need {least / 1e9:.1f} GB of memory at least for "
            f"{who}, and this machine has {total / 1e9:.1f} GB; {remedy}"
        )
    if usual > free:
        return (
            f"candidates of {parameters / 1e9:.2f} billion parameters need {usual / 1e9:.1f} GB of memory in float32 "
            f"for {who}, and {free / 1e9:.1f} GB are free: scoring may be very slow or run out of memory; {remedy}"
        )
    return ""
