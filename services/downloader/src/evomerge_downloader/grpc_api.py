"""DownloaderService: parse, call, map. The runtime's interceptor maps errors to status codes."""

from __future__ import annotations

from typing import Any

import grpc

from evomerge.v1 import downloader_pb2, downloader_pb2_grpc, types_pb2
from evomerge_common.adapters.codec import to_proto
from evomerge_common.domain.messages import Model
from evomerge_common.errors import InvalidInput
from evomerge_downloader.fetch import Fetcher
from evomerge_downloader.threads import in_daemon_thread
from evomerge_models.store import WritableModelStore


class DownloaderServicer(downloader_pb2_grpc.DownloaderServiceServicer):
    """See proto/evomerge/v1/downloader.proto."""

    def __init__(self, fetcher: Fetcher, store: WritableModelStore) -> None:
        self._fetcher = fetcher
        self._store = store

    async def Download(
        self, request: downloader_pb2.DownloadRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> types_pb2.Model:
        """Waits for the download; when the caller gives up it goes on, and asking again finds it."""
        if not request.reference.strip():
            raise InvalidInput("reference is empty; give a hub id (org/name, perhaps @revision) or a folder")
        return _message(await in_daemon_thread(self._fetcher.fetch, request.reference, request.base))

    async def GetModel(
        self, request: downloader_pb2.GetModelRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> types_pb2.Model:
        """Answers with one entry of the store."""
        return _message(await in_daemon_thread(self._store.get, request.digest))

    async def ListModels(
        self, request: downloader_pb2.ListModelsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> downloader_pb2.ListModelsResponse:
        """Answers with all entries of the store."""
        models = await in_daemon_thread(self._store.list)
        return downloader_pb2.ListModelsResponse(models=[_message(model) for model in models])

    async def EvictModel(
        self, request: downloader_pb2.EvictModelRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> downloader_pb2.EvictModelResponse:
        """Removes an entry; the user's own folder behind a link is never touched."""
        return downloader_pb2.EvictModelResponse(freed_bytes=await in_daemon_thread(self._store.evict, request.digest))


def _message(model: Model) -> types_pb2.Model:
    message: types_pb2.Model = to_proto(model)
    return message
