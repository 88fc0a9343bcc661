"""The selector's part of each candidate's trace: how it came to be, what was decided on it, and the span around all.

A candidate's trace begins with what let it be proposed: of the first generation, the call that started the run; of
later ones, the result that was waited for. It ends when what follows from its score has been decided. Between, it is
the selector's turn ("propose", "decide"), or a worker's, which records its own spans, the wait in the queue included.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from evomerge_common.domain.messages import (
    TERMINAL,
    CandidateEvaluated,
    CandidateFailed,
    CandidateMerged,
    CandidateProposed,
    CandidateRaced,
    Event,
    Job,
    ModelReady,
    RunContinued,
    RunStarted,
)
from evomerge_common.ports import Clock
from evomerge_common.runtime import spans
from evomerge_common.runtime.logging import short


@dataclass
class _Open:
    """A candidate on its way; times in Unix seconds.

    Attributes:
        began: when its trace begins.
        turn: since when it is the selector's turn; None: a worker has a job of it.
        doing: what the selector does in its turn.
        end: the sequence of the event that ended it, 0 before.

    """

    began: float
    turn: float | None
    doing: str = "propose"
    end: int = 0
    error: str = ""


class CandidateTraces:
    """Of one run. While tracing is off, nothing is noted.

    Args:
        run_id: the run.
        clock: the time.

    """

    def __init__(self, run_id: str, clock: Clock) -> None:
        self.started_by: spans.Context | None = None
        """The call that started the run, where this process answered it."""
        self._run_id = run_id
        self._clock = clock
        self.forget()

    def forget(self) -> None:
        """Begins anew; called before the log is folded."""
        self._open: dict[str, _Open] = {}
        self._called = self._started = self._prepared = self._cause = 0.0
        self._over = False

    def of(self, digest: str) -> spans.Context | None:
        """Returns the context in which a candidate's jobs and decisions travel; without a digest, the run's."""
        return spans.of_candidate(self._run_id, digest)

    def note(self, event: Event, sequence: int) -> None:
        """Takes an event in; called with every one, in order, when it is applied."""
        if not spans.is_on():
            return
        payload = event.payload
        match payload:
            case RunStarted():
                self._called, self._started = event.began or event.time, event.time
                self._cause = event.time
            case CandidateProposed():
                began = self._cause if payload.generation or not self._called else self._called
                self._open[payload.recipe_digest] = _Open(began, self._cause)
            case ModelReady():
                self._prepared = event.time
            case CandidateEvaluated() | CandidateFailed():
                self._take_in(payload, sequence)
            case CandidateMerged():
                self._take_turn(payload.recipe_digest)
            case CandidateRaced(stopped=True) if one := self._open.get(payload.recipe_digest):
                one.end = sequence
            case RunContinued():
                self._over = False
        if event.is_result:
            self._cause = event.time
        self._over = self._over or isinstance(payload, TERMINAL)

    def _take_in(self, payload: CandidateEvaluated | CandidateFailed, sequence: int) -> None:
        one = self._open.get(payload.recipe_digest)
        if one is None:
            return
        if isinstance(payload, CandidateFailed):
            one.error = f"{payload.error.type}: {payload.error.message}"
            one.end = sequence
        elif payload.split == "search" and not payload.partial:
            one.end = sequence
        self._take_turn(payload.recipe_digest)

    def _take_turn(self, digest: str) -> None:
        if (one := self._open.get(digest)) is not None:
            one.turn, one.doing = self._clock.now(), "decide"

    def resume(self, decision: int, waiting: Iterable[str] = ()) -> None:
        """Goes on after a fold: what happened before the last decision has had its spans, or will never have them.

        `waiting`: the candidates without a result; of those whose proposal was not folded (a snapshot has it), the
        trace's first span begins now.
        """
        if not spans.is_on():
            return
        now = self._clock.now()
        for digest in waiting:
            self._open.setdefault(digest, _Open(now, now))
        for digest, one in list(self._open.items()):
            one.turn, one.doing = now, "decide"
            if one.end and one.end < decision:
                del self._open[digest]

    def queued(self, job: Job) -> None:
        """Notes that a job was queued: it is a worker's turn."""
        digest = getattr(job.payload, "recipe_digest", "")
        if (one := self._open.get(digest)) is not None:
            self._end_turn(digest, one)

    def settle(self) -> None:
        """Ends the traces of the candidates on whose result everything has been decided; called then."""
        for digest, one in list(self._open.items()):
            if one.end:
                self._end_turn(digest, one)
                self._around(f"candidate {short(digest)}", digest, one.began, error=one.error)
                del self._open[digest]
        if self._over:
            for digest, one in self._open.items():
                self._around(f"candidate {short(digest)}", digest, one.began, error="the run ended first")
            self._open.clear()
            self._over = False
            self._around(f"run {self._run_id}", "", self._called)

    def _end_turn(self, digest: str, one: _Open) -> None:
        if one.turn is None:
            return
        parent = self.of(digest)
        if one.doing == "propose" and one.began == self._called:
            self._emit("StartRun", self._called, self._started, parent)
            self._emit("prepare the run", self._started, self._prepared, parent)
            self._emit("wait for results", self._prepared, one.turn, parent)
        self._emit(one.doing, one.turn, self._clock.now(), parent)
        one.turn = None

    def _emit(self, name: str, start: float, end: float, parent: spans.Context | None) -> None:
        spans.emit(name, spans.nanoseconds(start), spans.nanoseconds(end), parent=parent)

    def _around(self, name: str, digest: str, began: float, *, error: str = "") -> None:
        spans.emit(
            name,
            spans.nanoseconds(began),
            spans.nanoseconds(self._clock.now()),
            parent=None,
            context=self.of(digest),
            error=error,
            links=() if self.started_by is None else (self.started_by,),
            run_id=self._run_id,
            candidate=digest,
        )
