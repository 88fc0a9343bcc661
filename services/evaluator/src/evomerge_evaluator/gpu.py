"""GPUs as NVML tells of them. Needs nvidia-ml-py and a driver; without them there is nothing to tell."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from evomerge_evaluator.metrics import EVALUATOR_METRICS, EvaluatorMetrics

SAMPLE_SECONDS = 5.0


@dataclass(frozen=True)
class GpuSample:
    """One GPU now; a number that the driver does not tell is 0."""

    index: int
    name: str
    utilization_ratio: float
    memory_bytes: int
    memory_used_bytes: int
    power_watts: float
    temperature_celsius: float


def load_nvml() -> Any | None:
    """Loads NVML, initialised; None without the library or a driver."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


def visible_indices(environ: Mapping[str, str]) -> tuple[int, ...] | None:
    """Reads which GPUs this process may use, in its own order; None: all, or they are named by other words."""
    named = [one.strip() for one in environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    return tuple(map(int, named)) if all(one.isdigit() for one in named) else None


class GpuMonitor:
    """Samples GPUs into metrics.

    Args:
        nvml: the module pynvml, or an object with its functions.
        visible: those of this process; NVML tells of every one of the machine. None: all.

    """

    def __init__(
        self, nvml: Any, metrics: EvaluatorMetrics = EVALUATOR_METRICS, *, visible: Sequence[int] | None = None
    ) -> None:
        self._nvml = nvml
        self._metrics = metrics
        self._visible = visible

    def sample(self) -> list[GpuSample]:
        """Measures every GPU of this process now, in its own order, also for the metrics."""
        count = self._nvml.nvmlDeviceGetCount()
        indices = range(count) if self._visible is None else [one for one in self._visible if one < count]
        samples = [self._one(index) for index in indices]
        for sample in samples:
            gpu = str(sample.index)
            self._metrics.utilization.labels(gpu).set(sample.utilization_ratio)
            self._metrics.memory_used.labels(gpu).set(sample.memory_used_bytes)
            self._metrics.memory_total.labels(gpu).set(sample.memory_bytes)
            self._metrics.power.labels(gpu).set(sample.power_watts)
            self._metrics.temperature.labels(gpu).set(sample.temperature_celsius)
        return samples

    def _one(self, index: int) -> GpuSample:
        nvml = self._nvml
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        name = nvml.nvmlDeviceGetName(handle)
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        utilization = power = temperature = 0.0
        with self._unsupported():
            utilization = nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
        with self._unsupported():
            power = nvml.nvmlDeviceGetPowerUsage(handle) / 1000  # milliwatts
        with self._unsupported():
            temperature = float(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
        return GpuSample(
            index=index,
            name=name.decode() if isinstance(name, bytes) else name,
            utilization_ratio=utilization,
            memory_bytes=int(memory.total),
            memory_used_bytes=int(memory.used),
            power_watts=power,
            temperature_celsius=temperature,
        )

    @contextlib.contextmanager
    def _unsupported(self) -> Iterator[None]:
        """Some GPUs do not tell some numbers (a laptop's power, a slice's utilization)."""
        with contextlib.suppress(self._nvml.NVMLError):
            yield

    async def run(self, stop: asyncio.Event) -> None:
        """Samples until `stop`; a GPU that stops answering is logged once, never fatal."""
        warned = False
        while not stop.is_set():
            try:
                await asyncio.to_thread(self.sample)
                warned = False
            except self._nvml.NVMLError as error:
                if not warned:
                    structlog.get_logger("evomerge.gpu").warning("NVML does not answer", error=str(error))
                warned = True
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), SAMPLE_SECONDS)
