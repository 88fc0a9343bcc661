"""The merger put together."""

from __future__ import annotations

import asyncio

from evomerge.v1 import merger_pb2_grpc
from evomerge_common.runtime.child import ChildProcess
from evomerge_common.runtime.ports_factory import Ports
from evomerge_common.runtime.service import Service
from evomerge_common.runtime.settings import Settings
from evomerge_common.runtime.worker import Worker
from evomerge_merger import engine
from evomerge_merger.grpc_api import MergerServicer
from evomerge_merger.handlers import ExportHandler, MergeHandler


async def bootstrap(settings: Settings, ports: Ports) -> Service:
    """Makes one engine process, a worker for merges and one for exports, the gRPC API."""
    child = ChildProcess(initializer=engine.initialise, initargs=(settings.warm,))
    servicer = MergerServicer(ports=ports, child=child)

    async def close() -> None:
        await asyncio.to_thread(child.close)

    return Service(
        name="merger",
        servicers=[
            (
                "evomerge.v1.MergerService",
                lambda server: merger_pb2_grpc.add_MergerServiceServicer_to_server(servicer, server),
            )
        ],
        workers=[
            Worker(kind="merge", handler=MergeHandler(ports=ports, child=child), ports=ports, settings=settings),
            Worker(kind="export", handler=ExportHandler(ports=ports, child=child), ports=ports, settings=settings),
        ],
        closers=[close],
    )
