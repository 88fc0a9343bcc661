"""Which device scores, and in which dtype. Runs where torch may be imported."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from evomerge_common.domain.spec import AUTO, SCORING_DTYPES
from evomerge_common.errors import InvalidInput, Unavailable
from evomerge_scoring.report import DeviceInfo
from evomerge_scoring.speeds import cpu_name, cpu_speeds

SMALL_MODEL = 8_000_000
"""Parameters below which products are too small for a second thread, or for another dtype, to pay."""


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


def choose_dtype(device: torch.device, *, parameters: int = 0, wanted: str = AUTO) -> torch.dtype:
    """The dtype to score in: of weights and activations; sums of products are float32 in either, as is log-softmax.

    "auto" is bfloat16 where the device multiplies it in hardware and it pays, else float32 (never float16: it
    overflows). Of a CPU a measurement says so; a model of fewer `parameters` than `SMALL_MODEL` is scored in float32 on
    every CPU: it would gain little, and its scores are then the same everywhere.

    Raises:
        InvalidInput: no such dtype.
        Unavailable: the device cannot compute in it.

    """
    if wanted == AUTO:
        return torch.bfloat16 if _takes_bfloat16(device, parameters) else torch.float32
    if wanted not in SCORING_DTYPES:
        raise InvalidInput(f"unknown dtype {wanted!r}; give {', '.join(SCORING_DTYPES)}")
    dtype: torch.dtype = getattr(torch, wanted)
    try:
        torch.ones(2, 2, device=device, dtype=dtype) @ torch.ones(2, 2, device=device, dtype=dtype)
    except (RuntimeError, TypeError) as error:
        raise Unavailable(f"{device} of this machine cannot compute in {wanted}: {error}") from error
    return dtype


def _takes_bfloat16(device: torch.device, parameters: int) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and parameters >= SMALL_MODEL and cpu_speeds().bfloat16_pays


def choose_threads(wanted: int, *, parameters: int) -> int:
    """As many as the job says, but one for a small model; decided by the model alone, so that scores stay bit-stable.

    Threads meet after every operation. A small model's operations take microseconds, so that on a machine that does
    anything else they mostly wait for each other: 1.4 M parameters were scored ten times slower with two threads than
    with one while another process kept both cores busy.
    """
    return 1 if parameters < SMALL_MODEL else max(1, wanted)


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
    dtype = str(choose_dtype(torch.device("cpu"), parameters=SMALL_MODEL)).removeprefix("torch.")
    found.append(DeviceInfo(cpu_name(), "cpu", dtype, total, total - available))
    return tuple(found)


def _memory() -> tuple[int, int]:
    """Bytes of this machine's memory, and how many of them are free to take."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
    except (ValueError, OSError):
        return 0, 0
    free = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), total)
    return total, free
