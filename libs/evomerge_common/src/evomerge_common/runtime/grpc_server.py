"""gRPC server and client: health and reflection always on, typed errors, token, TLS."""

from __future__ import annotations

import hmac
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from evomerge_common.errors import EvoMergeException, Unavailable
from evomerge_common.runtime import spans
from evomerge_common.runtime.grpc_errors import error_from_rpc, to_status
from evomerge_common.runtime.settings import Settings

__all__ = ["GrpcServer", "client_channel", "error_from_rpc"]

MAX_MESSAGE = 64 * 1024 * 1024
CALL_SECONDS = 30.0
"""Deadline of a unary client call that sets none."""

_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.max_send_message_length", MAX_MESSAGE),
    ("grpc.so_reuseport", 0),  # a port that is taken is an error, not a second server behind it
)
_HEALTH = "grpc.health.v1.Health"
_Register = Callable[[grpc.aio.Server], None]


class GrpcServer:
    """Listens at once, says NOT_SERVING, and takes up its services when they are ready (`attach`)."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._late = _LateServices()
        self._health = health.aio.HealthServicer()
        self._server = grpc.aio.server(
            interceptors=[_TokenCheck(settings.token), _Errors()] if settings.token else [_Errors()], options=_OPTIONS
        )
        self._probe: grpc.aio.Server | None = None
        self.port = 0

    async def start(self) -> int:
        """Binds; returns the port.

        Raises:
            Unavailable: the address cannot be bound.

        """
        settings = self._settings
        await self._health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._reflect(())
        self._server.add_generic_rpc_handlers((self._late,))
        self.port = _bind(self._server, settings.grpc_address, _server_credentials(settings))
        await self._server.start()
        if settings.health_address:
            self._probe = grpc.aio.server(options=_OPTIONS)
            health_pb2_grpc.add_HealthServicer_to_server(self._health, self._probe)
            _bind(self._probe, settings.health_address, None)
            await self._probe.start()
        host = settings.grpc_address.rpartition(":")[0].strip("[]")
        if host not in {"127.0.0.1", "::1", "localhost"} and not (settings.token or settings.tls_client_ca):
            structlog.get_logger("evomerge.grpc").warning(
                "ANYONE WHO REACHES THIS PORT CONTROLS THIS SERVICE: it listens beyond loopback without token or mTLS",
                address=settings.grpc_address,
                what_to_do="set EVOMERGE_TOKEN_FILE or EVOMERGE_TLS_CLIENT_CA, or keep the network private",
            )
        return self.port

    async def attach(self, servicers: list[tuple[str, _Register]]) -> None:
        """Adds services and reflection, and says SERVING for each and for the whole."""
        self._late.clear()
        for _, register in servicers:
            register(self._late)  # type: ignore[arg-type]
        self._reflect(name for name, _ in servicers)
        self._late.ready = True
        for name in (*(name for name, _ in servicers), ""):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    def _reflect(self, names: Iterable[str]) -> None:
        from grpc_reflection.v1alpha import _async, reflection, reflection_pb2_grpc

        servicer = _async.ReflectionServicer([*names, _HEALTH, reflection.SERVICE_NAME])
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, self._late)

    async def not_serving(self) -> None:
        """Tells probes and balancers to send nobody any more."""
        await self._health.enter_graceful_shutdown()

    async def stop(self, grace: float) -> None:
        """Refuses new calls, waits `grace` seconds for those under way, cuts the rest."""
        await self._server.stop(grace)
        if self._probe is not None:
            await self._probe.stop(0)


class _LateServices(grpc.GenericRpcHandler):
    """Looks like a server to the generated `add_…_to_server`, and like a handler to the real server."""

    def __init__(self) -> None:
        self.ready = False
        self._handlers: list[Any] = []

    def clear(self) -> None:
        """Forgets all handlers."""
        self._handlers.clear()

    def add_generic_rpc_handlers(self, handlers: tuple[Any, ...]) -> None:
        """Takes the handlers of a service; called by the generated code."""
        self._handlers.extend(handlers)

    def add_registered_method_handlers(self, service_name: str, method_handlers: dict[str, Any]) -> None:
        """Takes no more: the generic handlers serve them too."""

    def service(self, handler_call_details: Any) -> Any:
        """Finds the handler of a call; called by gRPC."""
        for handler in self._handlers:
            found = handler.service(handler_call_details)
            if found is not None:
                return found
        if self.ready or handler_call_details.method.startswith(f"/{_HEALTH}/"):
            return None

        async def refuse(_: Any, context: Any) -> None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "this service is starting: it waits for NATS")

        return grpc.unary_unary_rpc_method_handler(refuse)


class _Errors(grpc.aio.ServerInterceptor):
    """Maps what a servicer raises to a status. Bugs are logged with their traceback."""

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], details: Any) -> Any:
        """Has the errors of a call's handler become statuses; called by gRPC for each call."""
        handler = await continuation(details)
        if handler is None or details.method.startswith("/grpc."):
            return handler
        if handler.request_streaming:
            return handler  # no service of ours has one
        method = details.method
        metadata = {key: value for key, value in details.invocation_metadata or () if isinstance(value, str)}

        async def unary(request: Any, context: Any) -> Any:
            try:
                with spans.call(method.lstrip("/"), metadata):
                    return await handler.unary_unary(request, context)
            except Exception as error:
                await _abort(error, context, method)

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            try:
                async for item in handler.unary_stream(request, context):
                    yield item
            except Exception as error:
                await _abort(error, context, method)

        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                stream, handler.request_deserializer, handler.response_serializer
            )
        return grpc.unary_unary_rpc_method_handler(unary, handler.request_deserializer, handler.response_serializer)


async def _abort(error: Exception, context: Any, method: str) -> None:
    if isinstance(error, grpc.aio.BaseError | NotImplementedError):  # abort() was called; the generated default
        raise error
    if not isinstance(error, EvoMergeException):
        structlog.get_logger("evomerge.grpc").exception("bug in a call", method=method, error=str(error))
    await context.abort_with_status(to_status(error))


class _TokenCheck(grpc.aio.ServerInterceptor):
    """Refuses calls without the bearer token; health stays open for probes."""

    def __init__(self, token: str) -> None:
        self._expected = f"Bearer {token}".encode()

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], details: Any) -> Any:
        """Refuses a call without the token; called by gRPC for each call."""
        given = dict(details.invocation_metadata or ()).get("authorization", "")
        given = given if isinstance(given, bytes) else str(given).encode()
        if details.method.startswith(f"/{_HEALTH}/") or hmac.compare_digest(given, self._expected):
            return await continuation(details)

        async def refuse(_: Any, context: Any) -> None:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "missing or wrong bearer token")

        return grpc.unary_unary_rpc_method_handler(refuse)


def client_channel(address: str, settings: Settings | None = None) -> grpc.aio.Channel:
    """Opens a channel to a service, with the token and TLS of the settings.

    Unary calls get a deadline of CALL_SECONDS unless they set one. Turn what they raise into the exception that the
    server raised with `error_from_rpc`.
    """
    settings = settings or Settings()
    interceptors = [_UnaryClient(settings.token), _StreamClient(settings.token)]
    authority = settings.tls_ca or settings.tls_client_ca
    options = _OPTIONS[:2]
    if authority or settings.tls_cert:
        credentials = grpc.ssl_channel_credentials(
            root_certificates=_read(authority or settings.tls_cert),
            private_key=_read(settings.tls_key),
            certificate_chain=_read(settings.tls_cert),
        )
        return grpc.aio.secure_channel(address, credentials, options=options, interceptors=interceptors)
    return grpc.aio.insecure_channel(address, options=options, interceptors=interceptors)


def _details(details: Any, token: str, timeout: float | None) -> Any:
    metadata = grpc.aio.Metadata(*(details.metadata or ()), *spans.headers().items())
    if token:
        metadata.add("authorization", f"Bearer {token}")
    return grpc.aio.ClientCallDetails(
        details.method, details.timeout or timeout, metadata, details.credentials, details.wait_for_ready
    )


class _UnaryClient(grpc.aio.UnaryUnaryClientInterceptor):
    def __init__(self, token: str) -> None:
        self._token = token

    async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        """Adds the metadata to a call; called by gRPC."""
        return await continuation(_details(details, self._token, CALL_SECONDS), request)


class _StreamClient(grpc.aio.UnaryStreamClientInterceptor):
    def __init__(self, token: str) -> None:
        self._token = token

    async def intercept_unary_stream(self, continuation: Any, details: Any, request: Any) -> Any:
        """Adds the metadata to a call; called by gRPC."""
        return await continuation(_details(details, self._token, None), request)


def _read(path: str) -> bytes | None:
    return Path(path).read_bytes() if path else None


def _server_credentials(settings: Settings) -> Any:
    if not settings.tls_cert:
        return None
    return grpc.ssl_server_credentials(
        [(Path(settings.tls_key).read_bytes(), Path(settings.tls_cert).read_bytes())],
        root_certificates=_read(settings.tls_client_ca),
        require_client_auth=bool(settings.tls_client_ca),
    )


def _bind(server: grpc.aio.Server, address: str, credentials: Any) -> int:
    try:
        if credentials is None:
            return int(server.add_insecure_port(address))
        return int(server.add_secure_port(address, credentials))
    except RuntimeError as error:
        raise Unavailable(f"cannot listen on {address}: is another service using it?") from error
