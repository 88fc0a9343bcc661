"""Which runs still keep their models in the store: as the event log tells."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import structlog

from evomerge_common.domain.messages import TERMINAL, ends
from evomerge_common.errors import Unavailable
from evomerge_common.ports import Clock, EventLog
from evomerge_models.pins import run_owner
from evomerge_models.store import WritableModelStore

log = structlog.get_logger(__name__)

_RETRY_SECONDS = 5.0
_SETTLE_SECONDS = 3600.0


class RunPins:
    """Lets models go when their run has ended, and says of the others' that they are still in use.

    A run that this log does not know is another stack's, which shares the store: its pins are left alone, and lapse
    when nobody refreshes them (`evomerge_models.pins`).
    """

    def __init__(self, store: WritableModelStore, events: EventLog, clock: Clock) -> None:
        self._store, self._events, self._clock = store, events, clock

    async def follow(self, stop: asyncio.Event) -> None:
        """Follows the log until `stop`; a service's background work."""
        tasks = [asyncio.create_task(work) for work in (self._follow(), self._settle_hourly(), _wait(stop))]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception):
                raise result

    async def _follow(self) -> None:
        while True:
            try:
                start = await self._events.last_sequence() + 1
                await self.settle()
                async for recorded in self._events.follow("*", from_sequence=start):
                    if isinstance(recorded.event.payload, TERMINAL):
                        self._let_go(recorded.event.run_id)
            except Unavailable as error:
                log.warning("the event log does not answer", error=str(error))
            await self._clock.sleep(_RETRY_SECONDS)

    async def _settle_hourly(self) -> None:
        while True:
            await self._clock.sleep(_SETTLE_SECONDS)
            with suppress(Unavailable):  # the follower tells
                await self.settle()

    async def settle(self) -> None:
        """Asks the log about every run that keeps anything.

        Raises:
            Unavailable: it does not answer.

        """
        for run_id in self._store.pins.runs():
            active = await self._is_active(run_id)
            if active:
                self._store.pins.refresh(run_owner(run_id))
            elif active is not None:
                self._let_go(run_id)

    async def _is_active(self, run_id: str) -> bool | None:
        """Tells whether a run goes on; None where the log does not know it."""
        active = None
        async for recorded in self._events.read(run_id):
            if (ended := ends(recorded.event.payload)) is not None:
                active = not ended
            elif active is None:
                active = True
        return active

    def _let_go(self, run_id: str) -> None:
        if names := self._store.pins.release(run_owner(run_id)):
            log.info("run has ended: its models may go when room is needed", run_id=run_id, models=len(names))


async def _wait(stop: asyncio.Event) -> None:
    await stop.wait()
