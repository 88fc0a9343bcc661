"""Fitness of the runs under way, for Prometheus. A run's numbers go a while after its end; the log keeps everything."""

from __future__ import annotations

from statistics import variance

from prometheus_client import CollectorRegistry, Gauge

from evomerge_common.domain.pareto import Point, front, hypervolume
from evomerge_common.runtime.metrics import REGISTRY
from evomerge_report.queries import Queries
from evomerge_report.result import OBJECTIVE, VOLUME_TASKS
from evomerge_report.rows import RunRow
from evomerge_report.views.numbers import HALF_WIDTH, standard_error
from evomerge_report.views.run import tasks_of, weights_of

LINGER = 60.0
"""Seconds that an ended run's numbers stay, so that a scrape sees the end."""
SILENT = 24 * 3600.0
"""A run without any event for so long counts as ended: its selector is gone."""
QUANTILES = (0.1, 0.5, 0.9)
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
        self._interval = Gauge(
            "evomerge_run_champion_interval",
            "95% interval of the best candidate's fitness, by the variance of its items' scores",
            ["run_id", "bound"],
            registry=registry,
        )
        self._quantile = Gauge(
            "evomerge_run_fitness_quantile",
            "Of the fitness on the last generation's places",
            ["run_id", "quantile"],
            registry=registry,
        )
        self._diversity = Gauge(
            "evomerge_run_diversity", "Of the last generation that was completed, 0 to 1", ["run_id"], registry=registry
        )
        self._champions = Gauge(
            "evomerge_run_champions", "How often there was a new champion", ["run_id"], registry=registry
        )
        self._champion = Gauge(
            "evomerge_run_champion_index",
            "The champion's place in order of proposal",
            ["run_id"],
            registry=registry,
        )
        self._made = Gauge(
            "evomerge_run_operator_candidates", "Candidates by operator", ["run_id", "operator"], registry=registry
        )
        self._best_made = Gauge(
            "evomerge_run_operator_best_fitness", "Best fitness by operator", ["run_id", "operator"], registry=registry
        )
        self._last = Gauge(
            "evomerge_run_last_event_timestamp_seconds", "When the run's log last grew", ["run_id"], registry=registry
        )
        self._paused = Gauge("evomerge_run_paused", "1 while the run is paused, else 0", ["run_id"], registry=registry)
        self._shown: dict[str, float] = {}
        self._searched: dict[str, int] = {}  # the sequence at which a run's search was shown
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
        self._last.labels(run.run_id).set(run.last_at)
        self._paused.labels(run.run_id).set(run.status == "paused")
        self._show_search(run, queries)
        self._show_volume(run.run_id, queries)

    def _show_search(self, run: RunRow, queries: Queries) -> None:
        """What more of the search there is; asked of the database once for each change."""
        if self._searched.get(run.run_id) == run.sequence:
            return
        self._searched[run.run_id] = run.sequence
        last = [fitness for _, fitness in queries.estimates(run.run_id, after=run.proposed - 1 - 2 * run.population)]
        if recent := sorted(last[-run.population :]):
            for share in QUANTILES:
                self._quantile.labels(run.run_id, str(share)).set(recent[round(share * (len(recent) - 1))])
        for operator, count, best in queries.yields(run.run_id):
            self._made.labels(run.run_id, operator).set(count)
            if best is not None:
                self._best_made.labels(run.run_id, operator).set(best)
        if generations := queries.generations(run.run_id):
            self._diversity.labels(run.run_id).set(generations[-1]["diversity"])
        if champions := queries.champions(run.run_id):
            self._champions.labels(run.run_id).set(len(champions))
            self._champion.labels(run.run_id).set(champions[-1][0])
            self._show_interval(run, champions[-1][1], queries)

    def _show_interval(self, run: RunRow, fitness: float, queries: Queries) -> None:
        """That of the run's champion; none where its items are not known one by one."""
        items = queries.items(run.run_id, run.champion, "search")
        spreads = {task: variance(one) / len(one) if len(one) > 1 else None for task, one in items.items()}
        error = standard_error(spreads, weights_of(tasks_of(queries, run)))
        for bound, sign in (("low", -1.0), ("high", 1.0)):
            if error is not None:
                self._interval.labels(run.run_id, bound).set(fitness + sign * HALF_WIDTH * error)

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
        self._searched.pop(run_id, None)
        for gauge in (
            *(self._best, self._mean, self._generation, self._candidates, self._hypervolume, self._quantile),
            *(self._diversity, self._champions, self._champion, self._made, self._best_made, self._last, self._paused),
            self._interval,
        ):
            gauge.remove_by_labels({"run_id": run_id})


RUN_METRICS = RunMetrics(REGISTRY)
