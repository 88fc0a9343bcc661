"""The one place where the downloader is put together."""

from __future__ import annotations

from evomerge.v1 import downloader_pb2_grpc
from evomerge_common.runtime.ports_factory import Ports
from evomerge_common.runtime.service import Service
from evomerge_common.runtime.settings import Settings
from evomerge_common.runtime.worker import Worker
from evomerge_downloader.fetch import Fetcher
from evomerge_downloader.grpc_api import DownloaderServicer
from evomerge_downloader.handlers import DownloadHandler
from evomerge_downloader.run_pins import RunPins
from evomerge_models.hub import Hub
from evomerge_models.store import WritableModelStore


async def bootstrap(settings: Settings, ports: Ports) -> Service:
    """Makes a store, the hub, one worker, the gRPC API and what follows the runs."""
    store = WritableModelStore(settings.model_store, settings.model_store_quota)
    fetcher = Fetcher(store, Hub(limit=settings.download_limit), link=settings.link_models)
    runs = RunPins(store, ports.log, ports.clock)
    servicer = DownloaderServicer(fetcher, store)
    return Service(
        name="downloader",
        servicers=[
            (
                "evomerge.v1.DownloaderService",
                lambda server: downloader_pb2_grpc.add_DownloaderServiceServicer_to_server(servicer, server),
            )
        ],
        workers=[Worker(kind="download", handler=DownloadHandler(fetcher), ports=ports, settings=settings)],
        background=[runs.follow],
        closers=[],
    )
