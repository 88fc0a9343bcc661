"""The selector put together."""

from __future__ import annotations

from evomerge.v1 import selector_pb2_grpc
from evomerge_common.runtime.ports_factory import Ports
from evomerge_common.runtime.service import Service
from evomerge_common.runtime.settings import Settings
from evomerge_selector.grpc_api import SelectorServicer
from evomerge_selector.runs import Runs


async def bootstrap(settings: Settings, ports: Ports) -> Service:
    """Makes the runs, and the API that controls them."""
    runs = Runs(ports)
    servicer = SelectorServicer(runs, ports)
    return Service(
        name="selector",
        servicers=[
            (
                "evomerge.v1.SelectorService",
                lambda server: selector_pb2_grpc.add_SelectorServiceServicer_to_server(servicer, server),
            )
        ],
        background=[runs.adopt],
    )
