"""Spans as a trace file holds them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ReadSpan:
    trace_id: str
    span_id: str
    parent_id: str | None
    name: str
    service: str
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]
    links: tuple[str, ...] = ()
    error: str = ""

    @property
    def start(self) -> float:
        return self.start_ns / 1e9

    @property
    def end(self) -> float:
        return self.end_ns / 1e9

    @property
    def seconds(self) -> float:
        return self.end - self.start

    @property
    def pid(self) -> int:
        return int(self.attributes["process.pid"])

    def within(self, whole: ReadSpan) -> ReadSpan:
        """The part of it until another one's end."""
        return replace(self, end_ns=min(self.end_ns, whole.end_ns))

    def path(self, spans: Mapping[str, ReadSpan]) -> list[str]:
        """Names from the first span down to this one."""
        return [*(spans[self.parent_id].path(spans) if self.parent_id else []), self.name]


def read_spans(file: Path) -> list[ReadSpan]:
    """All spans of a file, in the order of their ends."""
    return [one for line in file.read_text().splitlines() for one in _of(json.loads(line))]


def covered(parts: Sequence[ReadSpan], whole: ReadSpan) -> float:
    """Seconds of a span in which at least one of the others is under way."""
    seconds, reached = 0.0, whole.start
    for one in sorted(parts, key=lambda one: one.start):
        begin, end = max(one.start, reached), min(one.end, whole.end)
        if end > begin:
            seconds, reached = seconds + end - begin, end
    return seconds


def _of(line: dict[str, Any]) -> list[ReadSpan]:
    found = []
    for group in line["resourceSpans"]:
        service = _words(group["resource"]["attributes"])["service.name"]
        for scope in group["scopeSpans"]:
            for one in scope["spans"]:
                found.append(
                    ReadSpan(
                        one["traceId"], one["spanId"], one.get("parentSpanId"), one["name"], service,
                        int(one["startTimeUnixNano"]), int(one["endTimeUnixNano"]), _words(one["attributes"]),
                        tuple(link["traceId"] for link in one.get("links", ())),
                        one.get("status", {}).get("message", ""),
                    )
                )  # fmt: skip
    return found


def _words(attributes: list[dict[str, Any]]) -> dict[str, Any]:
    return {one["key"]: next(iter(one["value"].values())) for one in attributes}
