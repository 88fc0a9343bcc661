"""What the evaluator counts, beside the worker loop's own metrics."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge

from evomerge_common.runtime.metrics import REGISTRY


class EvaluatorMetrics:
    """Items scored; and, where NVML tells, how busy each GPU is."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.items = Counter("evomerge_items_scored", "Items scored", ["task_kind"], registry=registry)
        self.utilization = _gpu("utilization_ratio", "Share of time that the GPU computes, 0 to 1", registry)
        self.memory_used = _gpu("memory_used_bytes", "GPU memory in use", registry)
        self.memory_total = _gpu("memory_total_bytes", "Memory of the GPU", registry)
        self.power = _gpu("power_watts", "Power that the GPU draws", registry)
        self.temperature = _gpu("temperature_celsius", "Temperature of the GPU", registry)


def _gpu(name: str, text: str, registry: CollectorRegistry) -> Gauge:
    return Gauge(f"evomerge_gpu_{name}", text, ["gpu"], registry=registry)


EVALUATOR_METRICS = EvaluatorMetrics(REGISTRY)
