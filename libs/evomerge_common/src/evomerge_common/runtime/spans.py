"""What happened to a candidate, in spans of one trace, across services and processes.

A trace has its id from the run's id and the candidate's digest, and so has the trace's first span: whoever knows the
candidate knows its trace, and a service that was started again goes on in it. Between services the context travels as
W3C's `traceparent`, in headers of messages and metadata of calls. A span is handed to the process's sink when it has
ended: `trace_file` writes it, `otlp` sends it to a collector, and a child process gives its own back to its parent.
While tracing is off, a span costs a look at one variable.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

Value = str | bool | int | float
HEADER = "traceparent"
_TRACEPARENT = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})")


@dataclass(frozen=True)
class Context:
    """A place in a trace.

    Attributes:
        trace_id, span_id: 128 and 64 bits, not 0.
        sampled: whether the spans of this trace are recorded.

    """

    trace_id: int
    span_id: int
    sampled: bool = True

    def __str__(self) -> str:
        """Returns it as W3C's traceparent."""
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-{int(self.sampled):02x}"

    @classmethod
    def parse(cls, text: str) -> Context | None:
        """Reads a traceparent; None where it is none."""
        found = _TRACEPARENT.fullmatch(text)
        return cls(int(found[1], 16), int(found[2], 16), bool(int(found[3], 16) & 1)) if found else None


@dataclass(frozen=True, kw_only=True)
class Span:
    """What was done in a time. `start` and `end` are Unix nanoseconds; `error` is empty where it went well.

    `kind` is OpenTelemetry's: internal, server, client, producer or consumer.
    """

    name: str
    context: Context
    parent: Context | None
    start: int
    end: int
    attributes: Mapping[str, Value] = field(default_factory=dict)
    kind: str = "internal"
    error: str = ""
    links: tuple[Context, ...] = ()


Sink = Callable[[Span], None]
"""Called with each span that has ended, from the thread that ended it; must not block."""
Sampler = Callable[[int], bool]
"""Called with the id of a trace that begins; tells whether it is recorded: in every process the same of the same id."""

_sink: Sink | None = None
_sampler: Sampler = lambda _: True  # noqa: E731
_here: ContextVar[Context | None] = ContextVar("evomerge_span", default=None)


def record_to(sink: Sink | None, sampler: Sampler = lambda _: True) -> None:
    """Has this process's spans go to a sink; None: tracing is off."""
    global _sink, _sampler
    _sink, _sampler = sink, sampler


def is_on() -> bool:
    """Tells whether this process records spans."""
    return _sink is not None


def here() -> Context | None:
    """Returns the span that is under way here; None outside all traces, and while tracing is off."""
    return _here.get()


def exemplar() -> dict[str, str] | None:
    """Returns the labels by which a metric points to the trace that is under way here."""
    context = _here.get()
    return {"trace_id": f"{context.trace_id:032x}"} if context is not None and context.sampled else None


def headers() -> dict[str, str]:
    """Returns what a message or call carries to whoever takes it up."""
    context = _here.get()
    return {} if context is None else {HEADER: str(context)}


def received(headers: Mapping[str, str] | None) -> Context | None:
    """Returns the context that came with a message or call; None where none did, and while tracing is off."""
    return Context.parse(headers.get(HEADER, "")) if _sink is not None and headers else None


def of_candidate(run_id: str, digest: str = "") -> Context | None:
    """Returns the first span of a candidate's trace, or, without a digest, of the run's; None while tracing is off."""
    if _sink is None:
        return None
    found = hashlib.sha256(f"{run_id}:{digest}".encode()).digest()
    trace_id = int.from_bytes(found[:16], "big") or 1
    return Context(trace_id, int.from_bytes(found[16:24], "big") or 1, _sampler(trace_id))


@contextmanager
def inside(context: Context | None) -> Iterator[None]:
    """Has everything in it happen within a span that is recorded elsewhere."""
    if context is None:
        yield
        return
    token = _here.set(context)
    try:
        yield
    finally:
        _here.reset(token)


@contextmanager
def span(name: str, *, kind: str = "internal", **attributes: Value) -> Iterator[None]:
    """Records what is done in it, as part of the span that is under way here; where there is none, nothing."""
    parent = _here.get()
    if parent is None:
        yield
        return
    with _recorded(name, Context(parent.trace_id, _new_id(), parent.sampled), parent, kind, attributes):
        yield


@contextmanager
def call(name: str, metadata: Mapping[str, str]) -> Iterator[None]:
    """Records a call that this process answers: within the caller's trace, or in a new one."""
    if _sink is None:
        yield
        return
    parent = received(metadata)
    if parent is not None:
        with inside(parent), span(name, kind="server"):
            yield
        return
    trace_id = secrets.randbits(128) or 1
    with _recorded(name, Context(trace_id, _new_id(), _sampler(trace_id)), None, "server", {}):
        yield


@contextmanager
def _recorded(
    name: str, context: Context, parent: Context | None, kind: str, attributes: Mapping[str, Value]
) -> Iterator[None]:
    start, error = time.time_ns(), ""
    try:
        with inside(context):
            yield
    except BaseException as problem:
        error = f"{type(problem).__name__}: {problem}"
        raise
    finally:
        emit(
            name, start, time.time_ns(), context=context, parent=parent, kind=kind, error=error, links=(), **attributes
        )


def emit(
    name: str,
    start: float,
    end: float,
    *,
    parent: Context | None,
    context: Context | None = None,
    kind: str = "internal",
    error: str = "",
    links: tuple[Context, ...] = (),
    **attributes: Value,
) -> None:
    """Records a span that is over.

    Args:
        name: what was done.
        start, end: Unix nanoseconds.
        parent: the span that it is part of; None: of no other.
        context: its own place in the trace; None: a new one below `parent`.
        kind: see `Span`.
        error: what went wrong.
        links: other traces that have to do with it.
        **attributes: `run_id` becomes evomerge.run_id; names with a dot are OpenTelemetry's own.

    """
    whose = context or parent
    if _sink is None or whose is None or not whose.sampled:
        return
    words = {key if "." in key else f"evomerge.{key}": value for key, value in attributes.items()}
    words["process.pid"] = os.getpid()
    _sink(
        Span(
            name=name,
            context=context or Context(whose.trace_id, _new_id()),
            parent=parent,
            start=int(start),
            end=max(int(start), int(end)),
            attributes=words,
            kind=kind,
            error=error,
            links=links,
        )
    )


def nanoseconds(seconds: float) -> int:
    """Returns Unix nanoseconds of Unix seconds."""
    return int(seconds * 1e9)


@contextmanager
def collected(context: Context | None, spans: list[Span]) -> Iterator[None]:
    """In a child process: has what is done in it recorded within the caller's span, into a list for the caller."""
    if context is None:
        yield
        return
    record_to(spans.append)
    try:
        with inside(context):
            yield
    finally:
        record_to(None)


def pass_on(spans: list[Span]) -> None:
    """Records what a child process has collected."""
    if _sink is not None:
        for one in spans:
            _sink(one)


def _new_id() -> int:
    return secrets.randbits(64) or 1
