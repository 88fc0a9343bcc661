"""The downloader put together over ports in memory: a job becomes an event, and the API shows the store."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from evomerge.v1 import downloader_pb2, downloader_pb2_grpc
from evomerge_common.domain import messages as m
from evomerge_common.ports import Recorded
from evomerge_common.runtime.grpc_server import GrpcServer
from evomerge_common.runtime.ports_factory import Ports, memory_ports
from evomerge_common.runtime.settings import Settings
from evomerge_downloader.bootstrap import bootstrap
from evomerge_downloader.threads import in_daemon_thread
from helpers.hub_server import write_model_folder


@pytest.fixture
def ports(tmp_path: Path) -> Ports:
    return memory_ports(tmp_path)


@pytest.fixture
async def api(tmp_path: Path, ports: Ports) -> AsyncIterator[downloader_pb2_grpc.DownloaderServiceStub]:
    settings, stop = Settings(model_store=tmp_path / "store"), asyncio.Event()
    service, server = await bootstrap(settings, ports), GrpcServer(settings)
    port = await server.start()
    await server.attach(service.servicers)
    tasks = [asyncio.ensure_future(worker.run(stop)) for worker in service.workers]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield downloader_pb2_grpc.DownloaderServiceStub(channel)
    stop.set()
    await asyncio.wait_for(asyncio.gather(*tasks), 10)
    await server.stop(0)


async def first_event(ports: Ports) -> m.Decision | m.Result:
    stream = ports.log.follow("r")
    async with asyncio.timeout(20), contextlib.aclosing(stream):  # type: ignore[type-var]
        found: Recorded = await anext(stream)
    return found.event.payload


async def test_job_becomes_model_ready(
    tmp_path: Path, ports: Ports, api: downloader_pb2_grpc.DownloaderServiceStub
) -> None:
    folder = write_model_folder(tmp_path / "model")
    await ports.queue.publish(m.Job(job_id="j", run_id="r", payload=m.DownloadJob(reference=str(folder))))
    ready = await first_event(ports)
    assert isinstance(ready, m.ModelReady)
    assert ready.model.parameters == 320
    listed = await api.ListModels(downloader_pb2.ListModelsRequest())
    assert [model.digest for model in listed.models] == [ready.model.digest]


async def test_bad_model_becomes_candidate_failed(
    tmp_path: Path, ports: Ports, api: downloader_pb2_grpc.DownloaderServiceStub
) -> None:
    (tmp_path / "empty").mkdir()
    reference = str(tmp_path / "empty")
    await ports.queue.publish(m.Job(job_id="j", run_id="r", payload=m.DownloadJob(reference=reference)))
    failed = await first_event(ports)
    assert isinstance(failed, m.CandidateFailed)
    assert (failed.kind, failed.reference, failed.error.type) == ("download", reference, "NotAModel")


async def test_api(tmp_path: Path, api: downloader_pb2_grpc.DownloaderServiceStub) -> None:
    folder = write_model_folder(tmp_path / "model")
    model = await api.Download(downloader_pb2.DownloadRequest(reference=str(folder)))
    assert await api.GetModel(downloader_pb2.GetModelRequest(digest=model.digest)) == model
    freed = await api.EvictModel(downloader_pb2.EvictModelRequest(digest=model.digest))
    assert freed.freed_bytes == 0
    for call, request, code in (
        (api.GetModel, downloader_pb2.GetModelRequest(digest=model.digest), grpc.StatusCode.NOT_FOUND),
        (api.GetModel, downloader_pb2.GetModelRequest(digest="../x"), grpc.StatusCode.INVALID_ARGUMENT),
        (api.Download, downloader_pb2.DownloadRequest(reference=" "), grpc.StatusCode.INVALID_ARGUMENT),
        (api.Download, downloader_pb2.DownloadRequest(reference="./none"), grpc.StatusCode.INVALID_ARGUMENT),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(request)
        assert caught.value.code() is code, request


async def test_thread_leaves_the_loop_free_and_brings_errors() -> None:
    def wrong() -> None:
        raise KeyError("x")

    assert await in_daemon_thread(lambda: 7) == 7
    with pytest.raises(KeyError):
        await in_daemon_thread(wrong)
