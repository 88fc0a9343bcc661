"""The GPUs of this machine, and which evaluator gets which. Imports no torch: the command starts before it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence

VISIBLE = "CUDA_VISIBLE_DEVICES"
SPREAD = ("auto", "cuda")
"""Devices in `EVOMERGE_DEVICE` that mean any GPU; another one is the user's own choice."""


def listed_by_driver() -> list[str]:
    """Asks NVIDIA's own tool for the GPUs' numbers; none where there is no tool, or no driver."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return asked.stdout.split() if asked.returncode == 0 else []


def visible_gpus(
    environ: Mapping[str, str], device: str, ask: Callable[[], Sequence[str]] = listed_by_driver
) -> list[str]:
    """Lists the GPUs that evaluators may be spread over, as CUDA_VISIBLE_DEVICES names them.

    Args:
        environ: of the command; the user's own CUDA_VISIBLE_DEVICES is kept to.
        device: `EVOMERGE_DEVICE`; where it names one device, nothing is spread.
        ask: tells the driver's GPUs.

    """
    if device not in SPREAD:
        return []
    named = environ.get(VISIBLE)
    if named is None:
        return list(ask())
    found = []
    for one in named.split(","):
        if not one.strip() or one.strip().startswith("-"):
            break  # CUDA itself reads no further
        found.append(one.strip())
    return found


def evaluators_for(gpus: Sequence[str], each: int = 1) -> int:
    """Returns how many evaluators keep them all busy, one for `each` GPUs; one where there is no GPU."""
    return max(1, len(gpus) // each)


def share_of(gpus: Sequence[str], evaluator: int, each: int = 1) -> str:
    """Says what an evaluator (from 0 on) sees of them, for CUDA_VISIBLE_DEVICES; more evaluators than GPUs share."""
    start = evaluator % evaluators_for(gpus, each) * each
    return ",".join(gpus[start : start + each])
