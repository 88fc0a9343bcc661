"""Which device scores, and in which dtype. Runs where torch may be imported."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from evomerge_common.errors import InvalidInput, Unavailable
from evomerge_scoring.report import DeviceInfo

LARGE_MODEL = 100_000_000
SMALL_MODEL = 8_000_000


def choose_device(wanted: str = "auto") -> torch.device:
    """The device to score on.

    Raises:
        InvalidInput: no such kind of device.
        Unavailable: this machine does not have it.

    """
    if wanted in ("", "auto"):
        if torch.cuda.is_available():
            return torch.device("cuda", 0)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    backend, _, number = wanted.partition(":")
    if backend not in ("cpu", "cuda", "mps") or (number and not number.isdigit()):
        raise InvalidInput(f"unknown device {wanted!r}; give auto, cpu, cuda, cuda:N or mps")
    index = int(number or 0)
    if (backend == "cuda" and index >= torch.cuda.device_count()) or (
        backend == "mps" and not torch.backends.mps.is_available()
    ):
        raise Unavailable(f"this machine has no device {wanted}; use --device cpu or set EVOMERGE_DEVICE=auto")
    return torch.device(backend, index) if backend == "cuda" else torch.device(backend)


def choose_dtype(device: torch.device, *, parameters: int = 0) -> torch.dtype:
    """bfloat16 where the device multiplies it in hardware and it pays, else float32 (never float16: it overflows).

    A CPU needs AMX for it to pay, and a model large enough that the multiplications dominate.
    """
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    if device.type == "cpu" and parameters >= LARGE_MODEL and _has_amx():
        return torch.bfloat16
    return torch.float32


def choose_threads(wanted: int, *, parameters: int) -> int:
    """As many as the job says, but one for a small model; decided by the model alone, so that scores stay bit-stable.

    Threads meet after every operation. A small model's operations take microseconds, so that on a machine that does
    anything else they mostly wait for each other: 1.4 M parameters were scored ten times slower with two threads than
    with one while another process kept both cores busy.
    """
    return 1 if parameters < SMALL_MODEL else max(1, wanted)


def _has_amx() -> bool:
    try:
        return "amx_bf16" in Path("/proc/cpuinfo").read_text("ascii", "ignore")
    except OSError:
        return False


def describe(device: torch.device, dtype: torch.dtype, threads: int) -> str:
    """Such as "cpu float32 2 threads" or "NVIDIA H100 80GB HBM3 bfloat16"."""
    name = str(dtype).removeprefix("torch.")
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} {name}"
    return f"{device.type} {name} {threads} thread{'s' if threads != 1 else ''}"


def list_devices() -> tuple[DeviceInfo, ...]:
    """Every device of this machine; the one that "auto" picks first."""
    found = []
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        free, total = torch.cuda.mem_get_info(device)
        dtype = str(choose_dtype(device)).removeprefix("torch.")
        found.append(DeviceInfo(f"{index}: {torch.cuda.get_device_name(device)}", "cuda", dtype, total, total - free))
    if torch.backends.mps.is_available():
        found.append(DeviceInfo("Apple GPU", "mps", "float32"))
    total, available = _memory()
    found.append(DeviceInfo(_cpu_name(), "cpu", "float32", total, total - available))
    return tuple(found)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "ignore").splitlines()
    except OSError:
        return "CPU"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")


def _memory() -> tuple[int, int]:
    """Bytes of this machine's memory, and how many of them are free to take."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
    except (ValueError, OSError):
        return 0, 0
    free = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), total)
    return total, free
