"""GPU numbers from NVML, with a recorded answer of one: an H100 and a slice that tells little."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from evomerge.v1 import evaluator_pb2
from evomerge_common.runtime.ports_factory import memory_ports
from evomerge_common.runtime.settings import Settings
from evomerge_evaluator.gpu import GpuMonitor, visible_indices
from evomerge_evaluator.grpc_api import EvaluatorServicer
from evomerge_evaluator.metrics import EvaluatorMetrics
from evomerge_scoring.report import DeviceInfo
from helpers.recorded_nvml import RecordedNvml
from helpers.support import assert_eventually

VISIBLE = "CUDA_VISIBLE_DEVICES"


def test_samples_become_metrics_in_base_units() -> None:
    registry = CollectorRegistry()
    first, second = GpuMonitor(RecordedNvml(), EvaluatorMetrics(registry)).sample()
    assert (first.name, first.memory_bytes, first.memory_used_bytes) == (
        "NVIDIA H100 80GB HBM3",
        85520809984,
        2147483648,
    )
    assert (first.utilization_ratio, first.power_watts, first.temperature_celsius) == (0.87, 412.345, 61.0)
    assert (second.name, second.utilization_ratio, second.power_watts) == (
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        0.0,
        0.0,
    )
    values = {
        name: registry.get_sample_value(f"evomerge_gpu_{name}", {"gpu": "0"})
        for name in ("utilization_ratio", "memory_used_bytes", "power_watts", "temperature_celsius")
    }
    assert values == {
        "utilization_ratio": 0.87, "memory_used_bytes": 2147483648, "power_watts": 412.345, "temperature_celsius": 61,
    }  # fmt: skip


async def test_get_devices_tells_what_nvml_tells(tmp_path: Path) -> None:
    class Child:
        async def call(self, *_: Any) -> tuple[DeviceInfo, ...]:
            return (
                DeviceInfo("0: NVIDIA H100 80GB HBM3", "cuda", "bfloat16", 85520809984, 3 << 30),
                DeviceInfo("Xeon", "cpu", "float32", 64 << 30, 8 << 30),
            )

    monitor = GpuMonitor(RecordedNvml(), EvaluatorMetrics(CollectorRegistry()))
    child: Any = Child()
    servicer = EvaluatorServicer(ports=memory_ports(tmp_path), child=child, settings=Settings(), monitor=monitor)
    context: Any = None
    gpu, cpu = (await servicer.GetDevices(evaluator_pb2.GetDevicesRequest(), context)).devices
    assert (gpu.kind, gpu.memory_used_bytes) == ("cuda", 3 << 30)
    assert (gpu.utilization_ratio, gpu.power_watts, gpu.temperature_celsius) == (0.87, 412.345, 61.0)
    assert (cpu.kind, cpu.power_watts) == ("cpu", 0.0)


def test_an_evaluator_tells_of_its_own_gpus_alone() -> None:
    registry = CollectorRegistry()
    monitor = GpuMonitor(RecordedNvml(), EvaluatorMetrics(registry), visible=visible_indices({VISIBLE: "1,7"}))
    assert [sample.index for sample in monitor.sample()] == [1]
    assert registry.get_sample_value("evomerge_gpu_temperature_celsius", {"gpu": "0"}) is None
    read = {text: visible_indices({VISIBLE: text}) for text in ("", "0", "1, 0", "GPU-8f", "0,-1")}
    assert read == {"": None, "0": (0,), "1, 0": (1, 0), "GPU-8f": None, "0,-1": None}
    assert visible_indices({}) is None


async def test_a_lost_gpu_ends_no_service() -> None:
    nvml = RecordedNvml()
    nvml.lost = True
    monitor = GpuMonitor(nvml, EvaluatorMetrics(CollectorRegistry()))
    stop = asyncio.Event()
    task = asyncio.create_task(monitor.run(stop))
    await assert_eventually(lambda: nvml.asked > 0)
    stop.set()
    await asyncio.wait_for(task, 5)
