"""Spans in a file, a line each: OTLP's own JSON, which the OpenTelemetry collector's `otlpjsonfile` receiver reads too.

See https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding: ids are hexadecimal, 64 bit numbers are strings.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evomerge_common.runtime.spans import Span, Value

KINDS = ("internal", "server", "client", "producer", "consumer")
_ERROR = 2


class TraceFile:
    """A sink. All processes of a stack may write one file: each line is one write, at the file's end.

    Raises:
        OSError: the file cannot be written.

    """

    def __init__(self, path: Path, resource: Mapping[str, Value]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._resource = {"attributes": _attributes(resource)}

    def __call__(self, span: Span) -> None:
        """Writes a span; called when it has ended."""
        spans = [{"scope": {"name": "evomerge"}, "spans": [as_otlp(span)]}]
        line = json.dumps({"resourceSpans": [{"resource": self._resource, "scopeSpans": spans}]}, separators=(",", ":"))
        os.write(self._handle, f"{line}\n".encode())

    def close(self) -> None:
        """Ends it."""
        os.close(self._handle)


def as_otlp(span: Span) -> dict[str, Any]:
    """Returns a span in OTLP's JSON."""
    found: dict[str, Any] = {
        "traceId": f"{span.context.trace_id:032x}",
        "spanId": f"{span.context.span_id:016x}",
        "flags": int(span.context.sampled),
        "name": span.name,
        "kind": KINDS.index(span.kind) + 1,
        "startTimeUnixNano": str(span.start),
        "endTimeUnixNano": str(span.end),
        "attributes": _attributes(span.attributes),
    }
    if span.parent is not None:
        found["parentSpanId"] = f"{span.parent.span_id:016x}"
    if span.links:
        found["links"] = [{"traceId": f"{one.trace_id:032x}", "spanId": f"{one.span_id:016x}"} for one in span.links]
    if span.error:
        found["status"] = {"code": _ERROR, "message": span.error}
    return found


def _attributes(words: Mapping[str, Value]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _value(value)} for key, value in words.items()]


def _value(value: Value) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    return {"doubleValue": value} if isinstance(value, float) else {"stringValue": value}
