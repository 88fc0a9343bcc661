"""Fitness of the runs under way, for Prometheus. A run's numbers go a while after its end; the log keeps everything."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Gauge

from evomerge_common.domain.pareto import Point, front, hypervolume
from evomerge_common.runtime.metrics import REGISTRY
from evomerge_report.queries import Queries
from evomerge_report.result import OBJECTIVE, VOLUME_TASKS
from evomerge_report.rows import RunRow

LINGER = 60.0
"""Seconds that an ended run's numbers stay, so that a scrape sees the end."""
SILENT = 24 * 3600.0
"""A run without any event for so long counts as ended: its selector is gone."""
STATES = ("proposed", "merged", "evaluated", "stopped", "failed")


class RunMetrics:
    """Gauges with a run_id label, for active runs alone."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._best = Gauge(
            "evomerge_run_best_fitness", "Best fitness on search items", ["run_id", "objective"], registry=registry
        )
        self._mean = Gauge(
            "evomerge_run_mean_fitness", "Mean fitness of the last generation", ["run_id"], registry=registry
        )
        self._generation = Gauge(
            "evomerge_run_generation", "Last generation that was completed", ["run_id"], registry=registry
        )
        self._candidates = Gauge(
            "evomerge_run_candidates", "Candidates by how far they are", ["run_id", "state"], registry=registry
        )
        self._hypervolume = Gauge(
            "evomerge_run_hypervolume", "Volume under the front over two to five tasks", ["run_id"], registry=registry
        )
        self._shown: dict[str, float] = {}
        self._fronts: dict[str, tuple[list[Point], int]] = {}  # the front so far, and up to where it was read

    def update(self, queries: Queries, now: float) -> None:
        """Shows what the projection says; `now` is in Unix seconds."""
        active = {run.run_id: run for run in queries.active_runs(since=now - SILENT)}
        for run_id, seen in list(self._shown.items()):
            if run_id not in active:
                if now - seen >= LINGER:
                    self._remove(run_id)
                else:
                    self._show(queries.run(run_id), queries)
        for run in active.values():
            self._shown[run.run_id] = now
            self._show(run, queries)

    def clear(self) -> None:
        """Shows no run."""
        for run_id in list(self._shown):
            self._remove(run_id)

    def _show(self, run: RunRow, queries: Queries) -> None:
        if run.best is not None:
            self._best.labels(run.run_id, OBJECTIVE).set(run.best)
        if run.mean is not None:
            self._mean.labels(run.run_id).set(run.mean)
        self._generation.labels(run.run_id).set(run.generation)
        for state in STATES:
            self._candidates.labels(run.run_id, state).set(run.states.get(state, 0))

        self._show_volume(run.run_id, queries)

    def _show_volume(self, run_id: str, queries: Queries) -> None:
        known, mark = self._fronts.get(run_id, ([], 0))
        fresh, last = queries.points(run_id, after=mark)
        if last < mark:
            known = []
        points = [*known, *fresh]
        if fresh and len(fresh[0]) in VOLUME_TASKS:
            points = [points[i] for i in front(points)]
            self._hypervolume.labels(run_id).set(hypervolume(points, (0.0,) * len(points[0])))
        self._fronts[run_id] = (points, last)

    def _remove(self, run_id: str) -> None:
        del self._shown[run_id]
        self._fronts.pop(run_id, None)
        for gauge in (self._best, self._mean, self._generation, self._candidates, self._hypervolume):
            gauge.remove_by_labels({"run_id": run_id})


RUN_METRICS = RunMetrics(REGISTRY)
