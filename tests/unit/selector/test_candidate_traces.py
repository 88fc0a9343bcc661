"""The selector's spans of a candidate, also across its own restart."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from evomerge_common.adapters.memory import MemoryClock
from evomerge_common.domain.messages import (
    CandidateEvaluated,
    CandidateFailed,
    CandidateProposed,
    ChampionChanged,
    Decision,
    ErrorInfo,
    EvaluateJob,
    Event,
    Job,
    ModelReady,
    Result,
    RunFinished,
    RunStarted,
)
from evomerge_common.runtime import spans
from evomerge_common.runtime.spans import Span
from evomerge_selector.candidate_traces import CandidateTraces

FIRST, SECOND = "1" * 64, "2" * 64
JOB = Job(job_id="j", run_id="r", payload=EvaluateJob(recipe_digest=FIRST))


@pytest.fixture
def recorded() -> Iterator[list[Span]]:
    found: list[Span] = []
    spans.record_to(found.append)
    yield found
    spans.record_to(None)


class Clock(MemoryClock):
    def __init__(self) -> None:
        super().__init__()
        self.time = 0.0

    def now(self) -> float:
        return self.time


def event(time: float, payload: Decision | Result, began: float = 0.0) -> Event:
    return Event(run_id="r", time=time, payload=payload, began=began)


BEFORE = [
    event(100.5, RunStarted(), began=100.0),
    event(102.0, ModelReady()),
    event(102.1, CandidateProposed(recipe_digest=FIRST)),
]


def take(traces: CandidateTraces, clock: Clock, one: Event, sequence: int) -> None:
    clock.time = max(clock.time, one.time)
    traces.note(one, sequence)


def seconds(span: Span) -> tuple[str, float, float]:
    return span.name.split()[0], span.start / 1e9, span.end / 1e9


def test_a_candidates_spans_follow_one_another_without_a_gap(recorded: list[Span]) -> None:
    clock = Clock()
    traces = CandidateTraces("r", clock)
    for number, one in enumerate(BEFORE):
        take(traces, clock, one, number + 1)
    traces.queued(JOB)
    assert [seconds(one) for one in recorded] == [
        ("StartRun", 100.0, 100.5), ("prepare", 100.5, 102.0), ("wait", 102.0, 102.0), ("propose", 102.0, 102.1),
    ]  # fmt: skip
    take(traces, clock, event(105.0, CandidateEvaluated(recipe_digest=FIRST, split="search")), 4)
    clock.time = 105.2
    take(traces, clock, event(105.2, ChampionChanged(recipe_digest=FIRST)), 5)
    take(traces, clock, event(105.3, CandidateProposed(recipe_digest=SECOND, generation=1)), 6)
    traces.settle()
    assert [seconds(one) for one in recorded[4:]] == [("decide", 105.0, 105.3), ("candidate", 100.0, 105.3)]
    assert recorded[-1].context == spans.of_candidate("r", FIRST)
    assert all(one.parent == recorded[-1].context for one in recorded[:-1])
    take(traces, clock, event(106.0, CandidateFailed(recipe_digest=SECOND, error=ErrorInfo(type="E", message="m"))), 7)
    traces.settle()
    assert seconds(recorded[-1]) == ("candidate", 105.0, 106.0), "a later one begins with the result it waited for"
    assert recorded[-1].error == "E: m"


def test_a_selector_that_is_started_again_goes_on_in_the_same_trace(recorded: list[Span]) -> None:
    clock = Clock()
    for traces in (CandidateTraces("r", clock), CandidateTraces("r", clock)):
        traces.forget()
        for number, one in enumerate(BEFORE):
            take(traces, clock, one, number + 1)
        traces.resume(3)
        traces.queued(JOB)
    take(traces, clock, event(110.0, CandidateEvaluated(recipe_digest=FIRST, split="search")), 4)
    traces.settle()
    assert seconds(recorded[-1]) == ("candidate", 100.0, 110.0)
    assert {one.context.trace_id for one in recorded} == {recorded[-1].context.trace_id}
    # Killed between the score and what followed from it, and after: the span around all comes once, in either case.
    for decided in (False, True):
        recorded.clear()
        again = CandidateTraces("r", clock)
        scored = event(110.0, CandidateEvaluated(recipe_digest=FIRST, split="search"))
        after = [event(110.1, ChampionChanged(recipe_digest=FIRST))] if decided else []
        for number, one in enumerate([*BEFORE, scored, *after]):
            take(again, clock, one, number + 1)
        again.resume(5 if decided else 3)
        again.settle()
        assert [one.name.split()[0] for one in recorded] == ([] if decided else ["decide", "candidate"])


def test_what_the_end_of_the_run_cuts_off_is_told(recorded: list[Span]) -> None:
    clock = Clock()
    traces = CandidateTraces("r", clock)
    for number, one in enumerate([*BEFORE, event(120.0, RunFinished())]):
        take(traces, clock, one, number + 1)
    traces.settle()
    cut, run = recorded
    assert (cut.error, seconds(run)) == ("the run ended first", ("run", 100.0, 120.0))


def test_while_tracing_is_off_nothing_is_noted() -> None:
    clock = Clock()
    traces = CandidateTraces("r", clock)
    for number, one in enumerate(BEFORE):
        take(traces, clock, one, number + 1)
    assert traces._open == {}
