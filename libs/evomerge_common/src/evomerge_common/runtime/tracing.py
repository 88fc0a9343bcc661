"""Switches tracing on, where the environment asks for it."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

import structlog

from evomerge_common import __version__
from evomerge_common.errors import InvalidInput
from evomerge_common.runtime import spans
from evomerge_common.runtime.settings import PREFIX, Settings
from evomerge_common.runtime.trace_file import TraceFile

PROTOCOLS = ("grpc", "http/protobuf")
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def start_tracing(service: str, settings: Settings, environ: Mapping[str, str] | None = None) -> Callable[[], None]:
    """Has this process's spans go to `settings.trace_file`, to the collector that OTEL_* names, or both.

    Returns what ends it. Without either, nothing is recorded.

    Raises:
        InvalidInput: the trace file cannot be written.

    """
    environ = os.environ if environ is None else environ
    resource: dict[str, spans.Value] = {
        "service.version": __version__,
        "service.namespace": "evomerge",
        "service.instance.id": f"{socket.gethostname()}:{os.getpid()}",
        "service.name": environ.get("OTEL_SERVICE_NAME") or f"evomerge-{service}",
    }
    sinks: list[spans.Sink] = []
    closers: list[Callable[[], None]] = []
    sampler: spans.Sampler = lambda _: True  # noqa: E731
    if settings.trace_file:
        try:
            file = TraceFile(Path(settings.trace_file).expanduser(), resource)
        except OSError as error:
            raise InvalidInput(f"{PREFIX}TRACE_FILE={settings.trace_file}: cannot be written: {error}") from error
        sinks.append(file)
        closers.append(file.close)
    if (protocol := wanted_protocol(environ)) is not None:
        try:
            from evomerge_common.runtime.otlp import OtlpSink
        except ImportError as error:
            structlog.get_logger("evomerge.tracing").warning(
                "OTEL_* asks for traces, and OpenTelemetry's SDK is not here",
                error=str(error),
                what_to_do="pip install 'evomerge-common[otlp]', or unset OTEL_EXPORTER_OTLP_ENDPOINT",
            )
        else:
            sink = OtlpSink(protocol, resource)
            sampler = sink.sampled
            sinks.append(sink)
            closers.append(sink.close)
    if not sinks:
        return lambda: None

    def record(span: spans.Span) -> None:
        for sink in sinks:
            with contextlib.suppress(OSError):  # a full disk costs the trace, never the work
                sink(span)

    def end() -> None:
        spans.record_to(None)
        for close in closers:
            close()

    spans.record_to(record, sampler)
    return end


def wanted_protocol(environ: Mapping[str, str]) -> str | None:
    """Tells by which protocol OpenTelemetry's variables want traces sent; None: they want none.

    They do where OTEL_TRACES_EXPORTER is otlp, or an endpoint is named and OTEL_TRACES_EXPORTER does not say none.
    """
    exporter = environ.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    named = any(environ.get(name) for name in _ENDPOINTS)
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    if exporter not in {"", "otlp"} or not (named or exporter == "otlp"):
        return None
    protocol = environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    return protocol if protocol in PROTOCOLS else "http/protobuf"
