"""What the queues hold, for Prometheus. This one service asks the broker: a worker knows its own jobs alone."""

from __future__ import annotations

import asyncio
import contextlib

import structlog
from prometheus_client import CollectorRegistry, Gauge

from evomerge_common.adapters.subjects import KINDS
from evomerge_common.errors import Unavailable
from evomerge_common.ports import JobQueue
from evomerge_common.runtime.metrics import REGISTRY

SECONDS = 5.0
"""Between two questions."""


class QueueMetrics:
    """Gauges by kind of job."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.jobs = Gauge(
            "evomerge_queue_jobs", "Jobs queued, by whether a worker has them", ["kind", "state"], registry=registry
        )
        self.redelivered = Gauge(
            "evomerge_queue_redelivered_jobs", "Jobs in work that were delivered before", ["kind"], registry=registry
        )
        self.age = Gauge(
            "evomerge_queue_oldest_job_age_seconds", "Age of the oldest job queued", ["kind"], registry=registry
        )
        self.dead = Gauge("evomerge_dead_letters", "Jobs that were set aside", ["kind"], registry=registry)

    def clear(self) -> None:
        """Shows nothing: nobody knows."""
        for gauge in (self.jobs, self.redelivered, self.age, self.dead):
            gauge.clear()


QUEUE_METRICS = QueueMetrics(REGISTRY)


class QueueWatch:
    """Asks the queue every few seconds.

    Args:
        queue: what is asked.
        metrics: what is set.

    """

    def __init__(self, queue: JobQueue, metrics: QueueMetrics = QUEUE_METRICS) -> None:
        self._queue = queue
        self._metrics = metrics

    async def run(self, stop: asyncio.Event) -> None:
        """Asks until `stop`; while there is no answer, nothing is shown."""
        while not stop.is_set():
            try:
                await self.look()
            except Unavailable as error:
                self._metrics.clear()
                structlog.get_logger("evomerge.queues").warning("the queue does not answer", error=str(error))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), SECONDS)

    async def look(self) -> None:
        """Asks once.

        Raises:
            Unavailable: no answer.

        """
        for kind in KINDS:
            found = await self._queue.state(kind)
            self._metrics.jobs.labels(kind, "waiting").set(found.waiting)
            self._metrics.jobs.labels(kind, "in_work").set(found.in_work)
            self._metrics.redelivered.labels(kind).set(found.redelivered)
            self._metrics.age.labels(kind).set(found.oldest_age)
            self._metrics.dead.labels(kind).set(found.dead)
