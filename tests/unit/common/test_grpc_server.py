"""Errors, token, health, TLS: a real server and a real client on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from evomerge.v1 import selector_pb2, selector_pb2_grpc
from evomerge_common import errors
from evomerge_common.runtime.grpc_server import GrpcServer, client_channel, error_from_rpc
from evomerge_common.runtime.settings import Settings

NAME = "evomerge.v1.SelectorService"
CODES = {
    errors.InvalidInput: "INVALID_ARGUMENT",
    errors.ModelNotFound: "INVALID_ARGUMENT",
    errors.NotFound: "NOT_FOUND",
    errors.Unavailable: "UNAVAILABLE",
    errors.Fenced: "ABORTED",
    errors.BackPressure: "RESOURCE_EXHAUSTED",
    errors.DiskFull: "RESOURCE_EXHAUSTED",
    errors.DeadlineExceeded: "DEADLINE_EXCEEDED",
    errors.WorkFailed: "INTERNAL",
}


class Selector(selector_pb2_grpc.SelectorServiceServicer):
    """Raises what it is told to."""

    def __init__(self) -> None:
        self.error: Exception | None = None

    async def GetRun(self, request: Any, context: Any) -> Any:  # noqa: N802
        if self.error is not None:
            raise self.error
        return selector_pb2.Run(run_id=request.run_id, message="x" * request.ByteSize())

    async def WatchRun(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        yield selector_pb2.WatchRunResponse(sequence=1)
        if self.error is not None:
            raise self.error

    async def PauseRun(self, request: Any, context: Any) -> Any:  # noqa: N802
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not now")

    async def ResumeRun(self, request: Any, context: Any) -> Any:  # noqa: N802
        await asyncio.sleep(60)


@asynccontextmanager
async def serving(
    server_settings: Settings | None = None, client_settings: Settings | None = None, host: str = "127.0.0.1"
) -> AsyncIterator[tuple[Selector, Any, Any]]:
    server, servicer = GrpcServer(server_settings or Settings()), Selector()
    port = await server.start()
    await server.attach([(NAME, lambda s: selector_pb2_grpc.add_SelectorServiceServicer_to_server(servicer, s))])
    async with client_channel(f"{host}:{port}", client_settings) as channel:
        yield servicer, selector_pb2_grpc.SelectorServiceStub(channel), channel
    await server.stop(0)


@pytest.mark.parametrize("kind", CODES, ids=lambda k: k.__name__)
async def test_our_errors_cross_the_wire(kind: type[errors.EvoMergeException]) -> None:
    async with serving() as (servicer, stub, _):
        servicer.error = kind("what, where, what to do")
        for call in (stub.GetRun(selector_pb2.GetRunRequest()), _drain(stub.WatchRun(selector_pb2.WatchRunRequest()))):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert caught.value.code().name == CODES[kind]
            back = error_from_rpc(caught.value)
            assert type(back) is kind
            assert str(back) == "what, where, what to do"


async def _drain(stream: Any) -> None:
    async for _ in stream:
        pass


async def test_a_place_in_a_document_is_a_field_violation() -> None:
    from google.rpc import error_details_pb2
    from grpc_status import rpc_status

    async with serving() as (servicer, stub, _):
        servicer.error = errors.SpecError("unknown key", ("search", 0, "seeed"), file="run.yaml", line=4)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetRun(selector_pb2.GetRunRequest())
    status = rpc_status.from_call(caught.value)
    bad = error_details_pb2.BadRequest()
    assert any(detail.Unpack(bad) for detail in status.details)
    assert [(v.field, v.description) for v in bad.field_violations] == [("search[0].seeed", "unknown key")]
    back = error_from_rpc(caught.value)
    assert isinstance(back, errors.SpecError)
    assert str(back) == "run.yaml:4: search[0].seeed: unknown key"


async def test_a_bug_is_internal_and_named() -> None:
    async with serving() as (servicer, stub, _):
        servicer.error = KeyError("oops")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetRun(selector_pb2.GetRunRequest())
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "KeyError" in str(caught.value.details())
    assert type(error_from_rpc(caught.value)) is errors.WorkFailed


async def test_own_aborts_and_missing_methods_keep_their_codes() -> None:
    async with serving() as (_, stub, _channel):
        with pytest.raises(grpc.aio.AioRpcError) as aborted:
            await stub.PauseRun(selector_pb2.PauseRunRequest())
        with pytest.raises(grpc.aio.AioRpcError) as missing:
            await stub.CancelRun(selector_pb2.CancelRunRequest())
    assert aborted.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert missing.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_large_messages_pass() -> None:
    async with serving() as (_, stub, _channel):
        answer = await stub.GetRun(selector_pb2.GetRunRequest(run_id="r" * 10_000_000))
    assert len(answer.message) > 10_000_000


async def test_nobody_there_is_unavailable_and_slow_is_deadline_exceeded() -> None:
    async with client_channel("127.0.0.1:1") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as gone:
            await selector_pb2_grpc.SelectorServiceStub(channel).GetRun(selector_pb2.GetRunRequest())
    assert type(error_from_rpc(gone.value)) is errors.Unavailable
    async with serving() as (_, stub, _channel):
        with pytest.raises(grpc.aio.AioRpcError) as slow:
            await stub.ResumeRun(selector_pb2.ResumeRunRequest(), timeout=0.2)
    assert type(error_from_rpc(slow.value)) is errors.DeadlineExceeded


async def test_the_token_is_checked_on_everything_but_health() -> None:
    server = Settings(token="hunter2")
    for client in (Settings(), Settings(token="wrong")):
        async with serving(server, client) as (_, stub, channel):
            for call in (
                stub.GetRun(selector_pb2.GetRunRequest()),
                _drain(stub.WatchRun(selector_pb2.WatchRunRequest())),
            ):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call
                assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
            health = health_pb2_grpc.HealthStub(channel)
            assert (await health.Check(health_pb2.HealthCheckRequest(service=NAME))).status == 1
    async with serving(server, server) as (_, stub, _channel):
        assert (await stub.GetRun(selector_pb2.GetRunRequest(run_id="r"))).run_id == "r"
        await _drain(stub.WatchRun(selector_pb2.WatchRunRequest()))


async def test_before_it_is_ready_it_says_so() -> None:
    server = GrpcServer(Settings())
    port = await server.start()
    async with client_channel(f"127.0.0.1:{port}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        assert (
            await health.Check(health_pb2.HealthCheckRequest())
        ).status == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(grpc.aio.AioRpcError, match="starting") as caught:
            await selector_pb2_grpc.SelectorServiceStub(channel).GetRun(selector_pb2.GetRunRequest())
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        servicer = Selector()
        await server.attach([(NAME, lambda s: selector_pb2_grpc.add_SelectorServiceServicer_to_server(servicer, s))])
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING
        assert await selector_pb2_grpc.SelectorServiceStub(channel).GetRun(selector_pb2.GetRunRequest())
        await server.not_serving()
        for name in ("", NAME):
            status = (await health.Check(health_pb2.HealthCheckRequest(service=name))).status
            assert status == health_pb2.HealthCheckResponse.NOT_SERVING
    await server.stop(0)


async def test_a_taken_port_is_an_error() -> None:
    first = GrpcServer(Settings())
    port = await first.start()
    with pytest.raises(errors.Unavailable, match=f"cannot listen on 127.0.0.1:{port}"):
        await GrpcServer(Settings(grpc_address=f"127.0.0.1:{port}")).start()
    await first.stop(0)


async def test_listening_beyond_loopback_without_protection_is_loud(capsys: pytest.CaptureFixture[str]) -> None:
    for settings, loud in ((Settings(grpc_address="0.0.0.0:0"), True), (Settings(), False)):
        server = GrpcServer(settings)
        await server.start()
        await server.stop(0)
        said = capsys.readouterr()
        assert ("ANYONE WHO REACHES THIS PORT" in said.out + said.err) == loud


async def test_tls_and_mutual_tls(certificates: Path) -> None:
    def settings(name: str, **more: Any) -> Settings:
        return Settings(
            tls_cert=str(certificates / f"{name}.pem"), tls_key=str(certificates / f"{name}.key"),
            **dict[str, Any]((k, str(certificates / v)) for k, v in more.items()),
        )  # fmt: skip

    request = selector_pb2.GetRunRequest(run_id="r")
    anonymous = Settings(tls_ca=str(certificates / "ca.pem"))
    async with serving(settings("server"), anonymous, "localhost") as (_, stub, _channel):
        assert (await stub.GetRun(request)).run_id == "r"
    mutual = settings("server", tls_client_ca="ca.pem")
    async with serving(mutual, settings("client", tls_ca="ca.pem"), "localhost") as (_, stub, _channel):
        assert (await stub.GetRun(request)).run_id == "r"
    for refused in (anonymous, Settings()):  # no certificate; no TLS
        async with serving(mutual, refused, "localhost") as (_, stub, _channel):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.GetRun(request, timeout=5)
            assert type(error_from_rpc(caught.value)) is errors.Unavailable


async def test_probes_have_a_plaintext_port(certificates: Path, unused_tcp_port: int) -> None:
    settings = Settings(
        tls_cert=str(certificates / "server.pem"), tls_key=str(certificates / "server.key"),
        health_address=f"127.0.0.1:{unused_tcp_port}",
    )  # fmt: skip
    async with serving(settings), grpc.aio.insecure_channel(settings.health_address) as channel:
        assert (await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())).status == 1
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await selector_pb2_grpc.SelectorServiceStub(channel).GetRun(selector_pb2.GetRunRequest())
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
