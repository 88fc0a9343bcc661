"""What no client may do: read the server's files, hold a service up, or end it."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from evomerge.v1 import evaluator_pb2, evaluator_pb2_grpc, merger_pb2, merger_pb2_grpc, selector_pb2, selector_pb2_grpc
from evomerge_cli.stack.broker import Broker
from evomerge_common.runtime.grpc_server import GrpcServer, client_channel
from evomerge_common.runtime.ports_factory import memory_ports
from evomerge_common.runtime.service import Service
from evomerge_common.runtime.settings import Settings
from evomerge_evaluator.bootstrap import bootstrap as evaluator
from evomerge_merger.bootstrap import bootstrap as merger
from helpers.hostile import TEXTS
from helpers.support import assert_eventually, python_process

Bootstrap = Callable[[Settings, Any], Awaitable[Service]]


@asynccontextmanager
async def served(bootstrap: Bootstrap, folder: Path) -> AsyncIterator[grpc.aio.Channel]:
    """A service of this process, on memory ports, behind its real server."""
    settings = Settings(artifact_store=str(folder / "store"), state_dir=folder / "state", grpc_address="127.0.0.1:0")
    service = await bootstrap(settings, memory_ports(folder / "store"))
    server = GrpcServer(settings)
    port = await server.start()
    await server.attach(service.servicers)
    async with client_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(0)
    for close in service.closers:
        await close()


async def refused(call: Callable[..., Awaitable[Any]], request: Any) -> str:
    """What an InvalidArgument says."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(request, timeout=30)
    details = caught.value.details() or ""
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, details
    return details + repr(caught.value.trailing_metadata())


async def test_a_recipe_that_is_a_path_of_the_server_is_a_text_like_any_other(tmp_path: Path) -> None:
    secret, fifo = tmp_path / "secret.yml", tmp_path / "fifo"
    secret.write_text("password: hunter2\n")
    os.mkfifo(fifo)
    async with served(merger, tmp_path) as channel:
        stub = merger_pb2_grpc.MergerServiceStub(channel)
        await refused(stub.ValidateRecipe, merger_pb2.ValidateRecipeRequest(recipe="warm"))
        for path in (secret, fifo, Path("/etc/passwd"), Path("/dev/zero")):
            for text in (str(path), path.as_uri(), f"{{path: {path}}}", f"!!python/object/apply:open [{path}]"):
                for call, request in (
                    (stub.ValidateRecipe, merger_pb2.ValidateRecipeRequest),
                    (stub.Merge, merger_pb2.MergeRequest),
                    (stub.Export, merger_pb2.ExportRequest),
                ):
                    began = time.monotonic()
                    said = await refused(call, request(recipe=text))
                    assert time.monotonic() - began < 3
                    assert "hunter2" not in said
                    assert "root:" not in said


async def test_the_merger_refuses_whatever_is_no_recipe(tmp_path: Path) -> None:
    async with served(merger, tmp_path) as channel:
        stub = merger_pb2_grpc.MergerServiceStub(channel)
        for text in TEXTS.values():
            await refused(stub.ValidateRecipe, merger_pb2.ValidateRecipeRequest(recipe=text))


async def test_the_evaluator_refuses_whatever_is_no_suite(tmp_path: Path) -> None:
    async with served(evaluator, tmp_path) as channel:
        stub = evaluator_pb2_grpc.EvaluatorServiceStub(channel)
        for text in TEXTS.values():
            request = evaluator_pb2.EvaluateRequest(suite_json=text)
            request.model.digest = "sha256:" + "a" * 64
            await refused(stub.Evaluate, request)


@pytest.mark.slow
async def test_a_selector_answers_every_client_and_lives(broker: Broker, tmp_path: Path) -> None:
    """What killed it: the supervisor of an embedded stack gives a service up after its fifth quick death."""
    settings = Settings(nats_url=broker.url, artifact_store=str(tmp_path / "artifacts"), state_dir=tmp_path)
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        metrics = f"127.0.0.1:{one.getsockname()[1]}"
    addresses = {"EVOMERGE_GRPC_ADDRESS": "127.0.0.1:0", "EVOMERGE_METRICS_ADDRESS": metrics}
    with python_process("evomerge_selector", settings, cwd=tmp_path, **addresses) as process:
        file = tmp_path / "selector.port"
        await assert_eventually(lambda: file.exists() and file.read_text().endswith("\n"), 60)
        async with client_channel(f"127.0.0.1:{int(file.read_text())}", settings) as channel:
            stub = selector_pb2_grpc.SelectorServiceStub(channel)

            async def answers() -> bool:
                try:
                    await stub.ListRuns(selector_pb2.ListRunsRequest(), timeout=5)
                except grpc.aio.AioRpcError:
                    return False
                return True

            await assert_eventually(answers, 60)
            for text in TEXTS.values():
                await refused(stub.StartRun, selector_pb2.StartRunRequest(spec=text))
            brackets = selector_pb2.StartRunRequest(spec=TEXTS["brackets"])
            began = time.monotonic()
            await asyncio.gather(*(refused(stub.StartRun, brackets) for _ in range(6)))
            assert time.monotonic() - began < 3
            assert await answers()
            assert process.poll() is None, "the process that was started is the one that answers"
