"""The ports of a service, put together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from evomerge_common.adapters.filesystem import FilesystemArtifactStore
from evomerge_common.ports import ArtifactStore, Clock, EventLog, JobQueue, KeyValue
from evomerge_common.runtime.settings import Settings


@dataclass
class Ports:
    """What a service needs from outside.

    `stop` is set when the service must end: open streams watch it and return.
    """

    queue: JobQueue
    log: EventLog
    kv: KeyValue
    artifacts: ArtifactStore
    clock: Clock
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    closers: list[Callable[[], Awaitable[None]]] = field(default_factory=list)

    async def close(self) -> None:
        """Ends the connections."""
        for close in reversed(self.closers):
            await close()


def memory_ports(tmp: Path, *, ack_wait: float = 60.0, max_deliver: int = 5, max_pending: int = 10_000) -> Ports:
    """Ports for tests: all in memory, artifacts under `tmp`."""
    from evomerge_common.adapters import memory

    clock = memory.MemoryClock()
    return Ports(
        queue=memory.MemoryJobQueue(clock, ack_wait=ack_wait, max_deliver=max_deliver, max_pending=max_pending),
        log=memory.MemoryEventLog(clock),
        kv=memory.MemoryKeyValue(),
        artifacts=FilesystemArtifactStore(tmp / "artifacts"),
        clock=clock,
    )


async def connect_ports(settings: Settings, *, stop: asyncio.Event | None = None, name: str = "evomerge") -> Ports:
    """NATS and the folder of artifacts. Waits for NATS to come up, and makes streams, consumers and buckets.

    Raises:
        Unavailable: NATS did not answer in time.

    """
    from evomerge_common.adapters.clock import SystemClock
    from evomerge_common.adapters.nats import connect

    artifacts = FilesystemArtifactStore(Path(settings.artifact_store))
    link = await connect(settings, name=name)
    return Ports(
        queue=link.queue,
        log=link.log,
        kv=link.kv,
        artifacts=artifacts,
        clock=SystemClock(),
        stop=stop or asyncio.Event(),
        closers=[link.close],
    )
