"""Spans to a collector by OpenTelemetry's SDK, which the extra `otlp` installs. Its own variables (OTEL_*) steer it."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from opentelemetry.context import Context as OtelContext
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from evomerge_common.runtime.spans import Context, Span, Value

FLUSH_SECONDS = 2.0
"""Seconds that the last spans may take to be sent when a service stops; a collector that is gone holds nobody up."""


class _Ids(IdGenerator):
    """Gives a span the ids that it has already."""

    def __init__(self) -> None:
        self.next = threading.local()

    def generate_trace_id(self) -> int:
        return int(self.next.context.trace_id)

    def generate_span_id(self) -> int:
        return int(self.next.context.span_id)


class OtlpSink:
    """A sink; sends in batches, from a thread of its own.

    Args:
        protocol: "grpc" or "http/protobuf", as in OTEL_EXPORTER_OTLP_PROTOCOL.
        resource: attributes of this process.

    """

    def __init__(self, protocol: str, resource: Mapping[str, Value]) -> None:
        self._ids = _Ids()
        self._provider = TracerProvider(
            resource=Resource.create(dict(resource)), id_generator=self._ids, shutdown_on_exit=False
        )
        self._provider.add_span_processor(BatchSpanProcessor(_exporter(protocol)))
        self._tracer = self._provider.get_tracer("evomerge")

    def sampled(self, trace_id: int) -> bool:
        """Tells what the sampler (OTEL_TRACES_SAMPLER) says of a trace."""
        return bool(self._provider.sampler.should_sample(None, trace_id, "").decision is Decision.RECORD_AND_SAMPLE)

    def __call__(self, span: Span) -> None:
        """Hands a span over; called when it has ended."""
        self._ids.next.context = span.context
        within = OtelContext()
        if span.parent is not None:
            within = set_span_in_context(NonRecordingSpan(_context(span.parent)), within)
        made = self._tracer.start_span(
            span.name,
            context=within,
            kind=SpanKind[span.kind.upper()],
            attributes=dict(span.attributes),
            links=[Link(_context(one)) for one in span.links],
            start_time=span.start,
        )
        if span.error:
            made.set_status(Status(StatusCode.ERROR, span.error))
        made.end(span.end)

    def close(self) -> None:
        """Sends what is left, within FLUSH_SECONDS."""
        ending = threading.Thread(target=self._provider.shutdown, name="last-spans", daemon=True)
        ending.start()
        ending.join(FLUSH_SECONDS)


def _context(context: Context) -> SpanContext:
    flags = TraceFlags(TraceFlags.SAMPLED if context.sampled else TraceFlags.DEFAULT)
    return SpanContext(context.trace_id, context.span_id, is_remote=True, trace_flags=flags)


def _exporter(protocol: str) -> SpanExporter:
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter

        return GrpcExporter()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()
