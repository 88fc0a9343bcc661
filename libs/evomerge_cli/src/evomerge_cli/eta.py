"""How long a run still takes, from what its jobs took."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from statistics import fmean, median

from evomerge_cli.run_view import RunView
from evomerge_common.domain import messages as m
from evomerge_common.ports import Recorded

RECENT = 16
"""Jobs of a kind that count: long enough to smooth, short enough to follow a machine that becomes busy."""
BETWEEN = 1.15
"""Wall time over the time that the bottleneck works: between two jobs a worker waits, and loads."""
HOLDOUT = 0.5
"""Of what an evaluation in the search costs: what one of the held-out items does, by experience."""


class TimeLeft:
    """Seconds until the champion is proven.

    A rate of candidates would mislead: each worker's first job takes in the model's code and warms up, sources need no
    merge, and candidates come in bursts. So it is reckoned from the seconds that jobs took, without the first of each
    worker: the slowest of scoring by all evaluators, merging by all mergers, and the way of the candidates in flight
    through both. What is replayed, of before this process began to watch, was the work of others and does not count.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._began = clock()
        self._workers: dict[str, set[str]] = {"merge": set(), "evaluate": set()}
        self._seconds: dict[str, deque[float]] = {kind: deque(maxlen=RECENT) for kind in self._workers}
        self._reckoned: tuple[float, float] | None = None

    def remaining(self, view: RunView, recorded: Recorded | None) -> float | None:
        """Estimates the seconds left; None while they cannot be known.

        Args:
            view: with the event counted.
            recorded: the event that is new; None: time alone has passed.

        """
        now = self._clock()
        if recorded is not None and recorded.event.time >= self._began - 1.0:
            self._learn(recorded.event)
            whole = self._reckon(view)
            self._reckoned = None if whole is None else (now, whole)
        if self._reckoned is None or not view.is_active:
            return None
        then, whole = self._reckoned
        return max(0.0, whole - (now - then))

    def _learn(self, event: m.Event) -> None:
        match event.payload:
            case m.CandidateMerged(seconds=seconds):
                kind = "merge"
            case m.CandidateEvaluated(seconds=seconds, split="search"):
                kind = "evaluate"
            case _:
                return
        if event.worker in self._workers[kind]:
            self._seconds[kind].append(seconds)
        self._workers[kind].add(event.worker)

    def _reckon(self, view: RunView) -> float | None:
        scoring = self._seconds["evaluate"]
        if not scoring or not view.budget:
            return None
        score = fmean(scoring)
        merge = median(self._seconds["merge"] or [0.0])  # one that had to import something new is no measure
        each = max(
            score / len(self._workers["evaluate"]),
            merge / max(1, len(self._workers["merge"])),
            (score + merge) / view.in_flight,
        )
        jobs = (view.budget - view.spent) + HOLDOUT * view.unproven
        return BETWEEN * each * jobs
