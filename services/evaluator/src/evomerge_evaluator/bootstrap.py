"""The one place where the evaluator is put together."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from evomerge.v1 import evaluator_pb2_grpc
from evomerge_common.runtime.child import ChildProcess
from evomerge_common.runtime.ports_factory import Ports
from evomerge_common.runtime.service import Service
from evomerge_common.runtime.settings import Settings
from evomerge_common.runtime.worker import Worker
from evomerge_evaluator.fitness_cache import FitnessCache
from evomerge_evaluator.gpu import GpuMonitor, load_nvml, visible_indices
from evomerge_evaluator.grpc_api import EvaluatorServicer
from evomerge_evaluator.handlers import EvaluateHandler
from evomerge_scoring import child as scoring


def scoring_process(settings: Settings) -> ChildProcess:
    """Makes the process that scores; with `settings.warm` it starts, and imports what it needs, at once."""
    how = (settings.device, settings.backend, settings.allow_code, settings.warm, settings.tensor_parallel)
    child = ChildProcess(initializer=scoring.initialise, initargs=how)
    if settings.warm:
        child.start()
    return child


async def bootstrap(settings: Settings, ports: Ports, child: ChildProcess | None = None) -> Service:
    """Makes one scoring process, one worker, the gRPC API, and NVML's numbers where there are any."""
    child = child or scoring_process(settings)
    nvml = load_nvml()
    monitor = None if nvml is None else GpuMonitor(nvml, visible=visible_indices(os.environ))
    servicer = EvaluatorServicer(ports=ports, child=child, settings=settings, monitor=monitor)
    executor = ChildProcess()
    folder = Path(settings.score_cache) if settings.score_cache not in {"", "off"} else None
    cache = FitnessCache(ports.kv, folder)
    handler = EvaluateHandler(ports=ports, child=child, cache=cache, executor=executor, timeout=settings.score_timeout)

    async def close() -> None:
        for one in (child, executor):
            await asyncio.to_thread(one.close)
        handler.close()

    return Service(
        name="evaluator",
        servicers=[
            (
                "evomerge.v1.EvaluatorService",
                lambda server: evaluator_pb2_grpc.add_EvaluatorServiceServicer_to_server(servicer, server),
            )
        ],
        workers=[
            Worker(
                kind="evaluate",
                handler=handler.work,
                prepare=handler.prepare,
                finish=handler.finish,
                ports=ports,
                settings=settings,
            )
        ],
        background=[] if monitor is None else [monitor.run],
        closers=[close],
    )
