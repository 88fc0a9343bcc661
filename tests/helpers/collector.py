"""A collector of traces: OTLP's own gRPC service, which keeps what it gets."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self) -> None:
        self._groups: list[Any] = []
        self._server = grpc.server(ThreadPoolExecutor(4))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self) -> Collector:
        self._server.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.stop(0)

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - OTLP's name
        self._groups.extend(request.resource_spans)
        return trace_service_pb2.ExportTraceServiceResponse()

    def spans(self) -> dict[str, Any]:
        """By id in hexadecimal."""
        return {one.span_id.hex(): one for group in self._groups for scope in group.scope_spans for one in scope.spans}

    def services(self) -> set[str]:
        return {
            word.value.string_value
            for group in self._groups
            for word in group.resource.attributes
            if word.key == "service.name"
        }
