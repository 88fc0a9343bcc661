"""Where a run's time went: who was at work when, from the log's own times.

A worker says with each result when it took the job in hand, when it had the result, and how long it computed. What is
left of the wall time when nobody of all services computed is orchestration. The part of it in which the first job waits
in an evaluator's hands is told apart as the start: its scoring process still imports its libraries, which takes seconds
once, however long the run is.

Where it is known when the command was given and when it ended, all of the command counts: its checks and the start of
the services before the run's first event, and report and stop after the last.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from evomerge_common.domain import messages as m
from evomerge_common.domain.history import change_of
from evomerge_common.ports import Recorded

Window = tuple[float, float]


@dataclass(frozen=True)
class Span:
    """One job in one worker's hands; times in seconds since the run began. `seconds` is the computing alone."""

    worker: str
    work: str
    began: float
    ended: float
    seconds: float
    label: str = ""


@dataclass
class Trace:
    """All spans of a run, and the moments that cut it into parts.

    Attributes:
        primed: when the first candidate that is no source was taken up by an evaluator.
        search_ended: when no further candidate was proposed.
        waits: kind of job → seconds that each job waited for a worker.
        command: when the command was given and when it had ended; None: not known, or it took several commands.

    """

    run_id: str = ""
    wall: float = 0.0
    primed: float | None = None
    search_ended: float | None = None
    spans: list[Span] = field(default_factory=list)
    decisions: list[float] = field(default_factory=list)
    champions: list[float] = field(default_factory=list)
    waits: dict[str, list[float]] = field(default_factory=dict)
    command: Window | None = None


def trace_of(events: Iterable[Recorded], command: Window | None = None) -> Trace:
    """Folds one run's events; `command` is its window in Unix seconds."""
    trace = Trace()
    start, ended = 0.0, False
    sources: set[str] = set()
    ready: dict[tuple[str, str], float] = {}
    for recorded in events:
        event = recorded.event
        payload = event.payload
        if isinstance(payload, m.RunStarted):
            trace.run_id, start = event.run_id, event.time
        if isinstance(payload, m.RunContinued) and ended:
            start = event.time - trace.wall  # nobody worked since the end
        ended = isinstance(payload, m.TERMINAL)
        now = event.time - start
        trace.wall = max(trace.wall, now)
        if not event.is_result:
            trace.decisions.append(now)
        change = change_of(payload)
        if change.proposed is not None:
            digest, is_source = change.proposed.recipe_digest, change.proposed.operator == "source"
            if is_source:
                sources.add(digest)
            ready["evaluate" if is_source else "merge", digest] = now
        if change.improvement is not None:
            trace.champions.append(now)
        if change.status is not None and change.status.word == "finishing":
            trace.search_ended = now
        work = change.model or change.merged or change.evaluation or change.exported
        if work is not None:
            span = _span(event, work, start)
            trace.spans.append(span)
            digest = "" if isinstance(work, m.ModelReady) else work.recipe_digest
            if (since := ready.pop((span.work, digest), None)) is not None:
                trace.waits.setdefault(span.work, []).append(max(0.0, span.began - since))
            if isinstance(work, m.CandidateMerged | m.CandidateEvaluated):
                ready["evaluate", digest] = now
            if span.work == "evaluate" and digest not in sources:
                trace.primed = span.began if trace.primed is None else min(trace.primed, span.began)
    if command is not None:
        trace.command = (command[0] - start, command[1] - start)
    return trace


def _span(
    event: m.Event, payload: m.ModelReady | m.CandidateMerged | m.CandidateEvaluated | m.ArtifactExported, start: float
) -> Span:
    kind = {"ModelReady": "download", "CandidateMerged": "merge", "ArtifactExported": "export"}.get(
        event.type, "evaluate"
    )
    began = event.began or event.time - payload.seconds  # a log of another version: what the worker measured
    label = kind
    if isinstance(payload, m.CandidateEvaluated):
        label = "holdout" if payload.split == "holdout" else f"rung {payload.rung + 1}" if payload.partial else "whole"
        label += " (known)" if payload.cached else ""
    return Span(event.worker or kind, kind, began - start, event.time - start, payload.seconds, label)


def summary(trace: Trace) -> dict[str, Any]:
    """Gathers plain data: shares of the wall time, by kind and by worker.

    `evaluator_busy` is the share of all evaluators' time with a job in hand, between the first candidate and the end of
    the search; `evaluator_scoring` counts the computing alone. `orchestration` is `start` plus what comes after it.
    `command` has the same of the whole command, in seconds and as shares of it, where its window is known.
    """
    whole = (0.0, trace.wall)
    window = (trace.primed, trace.search_ended or trace.wall) if trace.primed is not None else None
    evaluations = [span for span in trace.spans if span.work == "evaluate"]
    evaluators = sorted({span.worker for span in evaluations})
    busy = scoring = None
    if window is not None and window[1] > window[0]:
        total = (window[1] - window[0]) * len(evaluators)
        busy = sum(_covered([s for s in evaluations if s.worker == one], window) for one in evaluators) / total
        scoring = sum(min(s.seconds, _overlap(s, window)) for s in evaluations) / total
    computing = [replace(span, began=max(span.began, span.ended - span.seconds)) for span in trace.spans]
    working = _covered(computing, whole)
    scores = [pair for pair in zip(trace.spans, computing, strict=True) if pair[0].work == "evaluate"]
    waited = min(((ours.began, job.began) for job, ours in scores), default=(0.0, 0.0))
    start = waited[0] - waited[1] - _covered(computing, (waited[1], waited[0]))
    merging = sum(span.seconds for span in trace.spans if span.work == "merge")
    scored = sum(span.seconds for span in evaluations)
    return {
        "run_id": trace.run_id,
        "wall_seconds": round(trace.wall, 3),
        "primed_at": None if trace.primed is None else round(trace.primed, 3),
        "search_ended_at": None if trace.search_ended is None else round(trace.search_ended, 3),
        "evaluator_busy": busy,
        "evaluator_scoring": scoring,
        "merge_to_evaluation": merging / scored if scored else None,
        "orchestration": 1.0 - working / trace.wall if trace.wall else None,
        "start": start / trace.wall if trace.wall else None,
        "orchestration_after_start": (trace.wall - working - start) / trace.wall if trace.wall else None,
        **({} if trace.command is None else {"command": _of_command(computing, trace.command)}),
        "decisions": len(trace.decisions),
        "workers": [
            {
                "worker": worker,
                "kind": spans[0].work,
                "jobs": len(spans),
                "busy_seconds": round(_covered(spans, whole), 3),
                "busy": _covered(spans, whole) / trace.wall if trace.wall else None,
            }
            for worker in sorted({span.worker for span in trace.spans}, key=lambda one: (_row(trace, one), one))
            if (spans := [span for span in trace.spans if span.worker == worker])
        ],
        "mean_wait_seconds": {kind: round(sum(found) / len(found), 4) for kind, found in sorted(trace.waits.items())},
    }


def _of_command(computing: Sequence[Span], command: Window) -> dict[str, Any]:
    """Cuts the command where somebody computes first, and where somebody did last: start, search, end."""
    first = min((span.began for span in computing), default=command[1])
    last = max((span.ended for span in computing), default=command[1])
    seconds = command[1] - command[0]
    idle = {
        "start": first - command[0],
        "search": last - first - _covered(computing, (first, last)),
        "end": command[1] - last,
    }
    return {
        "seconds": round(seconds, 3),
        **{f"{part}_seconds": round(value, 3) for part, value in idle.items()},
        "orchestration": sum(idle.values()) / seconds,
    }


def _row(trace: Trace, worker: str) -> int:
    kinds = ("download", "merge", "evaluate", "export")
    return kinds.index(next(span.work for span in trace.spans if span.worker == worker))


def _overlap(span: Span, window: Window) -> float:
    return max(0.0, min(span.ended, window[1]) - max(span.began, window[0]))


def _covered(spans: Sequence[Span], window: Window) -> float:
    """Seconds of the window in which at least one of the spans runs."""
    covered, reached = 0.0, window[0]
    for span in sorted(spans, key=lambda one: one.began):
        begin, end = max(span.began, reached), min(span.ended, window[1])
        if end > begin:
            covered += end - begin
            reached = end
    return covered
