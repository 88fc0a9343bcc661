"""Keeps the projection and the metrics at the end of the log."""

from __future__ import annotations

import asyncio
import contextlib

import structlog

from evomerge_common.errors import Unavailable
from evomerge_common.ports import Clock, EventLog
from evomerge_report.projection import Projection
from evomerge_report.queries import Queries
from evomerge_reporter.metrics import RunMetrics

log = structlog.get_logger(__name__)
_BATCH = 500
_PAUSE = 0.25
_RETRY = 2.0


class Follower:
    """Two background tasks: `follow` takes events in, `tick` makes them durable and shows them."""

    def __init__(
        self, projection: Projection, queries: Queries, metrics: RunMetrics, events: EventLog, clock: Clock
    ) -> None:
        self._projection = projection
        self._queries = queries
        self._metrics = metrics
        self._log = events
        self._clock = clock
        self._dirty = 0
        self._waiters: set[asyncio.Event] = set()

    async def follow(self, stop: asyncio.Event) -> None:
        """Follows the log until `stop`; goes on where it was when the log was out of reach for a while."""
        work = asyncio.create_task(self._follow())
        ended = asyncio.create_task(stop.wait())
        await asyncio.wait({work, ended}, return_when=asyncio.FIRST_COMPLETED)
        for task in (work, ended):
            task.cancel()
        results = await asyncio.gather(work, ended, return_exceptions=True)
        if isinstance(results[0], Exception):
            raise results[0]

    async def _follow(self) -> None:
        while True:
            try:
                await self._projection.check(self._log)
                stream = self._log.follow("*", from_sequence=self._projection.sequence + 1)
                async for recorded in stream:
                    if self._projection.apply(recorded):
                        self._dirty += 1
                    if self._dirty >= _BATCH:
                        self._settle()
                        await asyncio.sleep(0)  # a long backlog leaves the page and the probes their turn
            except Unavailable as error:
                log.warning("the event log does not answer", error=str(error))
            await asyncio.sleep(_RETRY)

    async def tick(self, stop: asyncio.Event) -> None:
        """Ticks a few times a second, until `stop`."""
        rounds = 0
        while not stop.is_set():
            if self._dirty or rounds % 20 == 0:
                self._settle()
                self._metrics.update(self._queries, self._clock.now())
            rounds += 1
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), _PAUSE)
        self._metrics.clear()
        self._wake()

    async def changed(self, timeout: float) -> bool:
        """Waits until something was taken in; False after `timeout` seconds without."""
        event = asyncio.Event()
        self._waiters.add(event)
        try:
            await asyncio.wait_for(event.wait(), timeout)
        except TimeoutError:
            return False
        finally:
            self._waiters.discard(event)
        return True

    def _settle(self) -> None:
        if self._dirty:
            self._dirty = 0
            self._projection.flush()
            self._wake()

    def _wake(self) -> None:
        for event in self._waiters:
            event.set()
