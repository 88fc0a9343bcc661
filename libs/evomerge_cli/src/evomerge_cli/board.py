"""What a full-screen view of a run shows beside how far it is: workers, queues, the tail of its log."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from evomerge_cli.run_view import RunView
from evomerge_common.domain import messages as m
from evomerge_common.domain.history import change_of
from evomerge_common.ports import Recorded

LINES = 500
"""Of the log that are kept."""


@dataclass
class Worker:
    """One worker, by what it has reported.

    Attributes:
        seconds: that its jobs took.
        seen: when it reported last, Unix seconds.

    """

    name: str
    jobs: int = 0
    seconds: float = 0.0
    seen: float = 0.0


@dataclass
class Board:
    """The fold of a run's events that its full-screen view shows.

    Attributes:
        lines: of the log, oldest first.

    """

    view: RunView = field(default_factory=RunView)
    run_id: str = ""
    workers: dict[str, Worker] = field(default_factory=dict)
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=LINES))
    _merging: set[str] = field(default_factory=set)
    _scoring: set[str] = field(default_factory=set)

    @property
    def queues(self) -> dict[str, int]:
        """Counts the candidates that wait for, or are in, each kind of work."""
        return {"merge": len(self._merging), "evaluate": len(self._scoring)}

    def apply(self, recorded: Recorded) -> str:
        """Folds one event in; returns its line of the log."""
        event = recorded.event
        self.run_id = self.run_id or event.run_id
        self.view.apply(event)
        self._queue(event)
        if event.worker:
            worker = self.workers.setdefault(event.worker, Worker(event.worker))
            worker.jobs += 1
            worker.seconds += float(getattr(event.payload, "seconds", 0.0) or 0.0)
            worker.seen = event.time
        line = "  ".join(_words(event))
        self.lines.append(line)
        return line

    def _queue(self, event: m.Event) -> None:
        change = change_of(event.payload)
        if change.proposed is not None:
            waiting = self._scoring if change.proposed.operator == "source" else self._merging
            waiting.add(change.proposed.recipe_digest)
        if change.state is not None:
            digest, state = change.state
            self._merging.discard(digest)
            (self._scoring.add if state == "merged" else self._scoring.discard)(digest)


def _words(event: m.Event) -> Iterator[str]:
    payload = event.payload
    yield time.strftime("%H:%M:%S", time.localtime(event.time))
    yield event.type
    if digest := getattr(payload, "recipe_digest", "") or getattr(payload, "champion_digest", ""):
        yield digest[:8]
    match payload:
        case m.CandidateProposed(operator=operator):
            yield operator
        case m.CandidateEvaluated(split=split, fitness=fitness):
            yield f"{split} {fitness:.4f}"
        case m.ChampionChanged(fitness=fitness):
            yield f"{fitness:.4f}"
        case m.CandidateFailed(error=error) | m.RunFailed(error=error):
            yield error.message
        case m.RunPaused(reason=reason) | m.RunCancelled(reason=reason) | m.SearchEnded(reason=reason):
            yield reason
        case _:
            pass
    if seconds := getattr(payload, "seconds", 0.0):
        yield f"{seconds:.1f} s"
    if event.worker:
        yield event.worker
