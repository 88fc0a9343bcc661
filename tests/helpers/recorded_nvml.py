# ruff: noqa: N802 - NVML's own names
"""A recorded answer of NVML: an H100, and a slice of one that tells little."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

MODULE = """
from helpers.recorded_nvml import NVMLError, RecordedNvml
_recorded = RecordedNvml()
globals().update({name: getattr(_recorded, name) for name in dir(_recorded) if name.lower().startswith("nvml")})
def nvmlInit(): pass
"""


def write_module(folder: Path) -> None:
    """Makes a `pynvml` that answers so, for another process."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pynvml.py").write_text(MODULE)


class NVMLError(Exception):
    pass


class RecordedNvml:
    NVMLError = NVMLError
    NVML_TEMPERATURE_GPU = 0

    def __init__(self) -> None:
        self.lost = False
        self.asked = 0

    def nvmlDeviceGetCount(self) -> int:
        self.asked += 1
        if self.lost:
            raise NVMLError("GPU is lost")
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetName(self, handle: int) -> Any:
        return ["NVIDIA H100 80GB HBM3", b"NVIDIA H100 80GB HBM3 MIG 1g.10gb"][handle]

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        return SimpleNamespace(total=[85520809984, 10200547328][handle], used=[2147483648, 0][handle])

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        if handle:
            raise NVMLError("Not Supported")
        return SimpleNamespace(gpu=87, memory=34)

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        if handle:
            raise NVMLError("Not Supported")
        return 412345

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:
        return 61
