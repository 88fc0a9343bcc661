"""The ports of a service, put together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from evomerge_common.adapters.filesystem import FilesystemArtifactStore, FilesystemModelStore
from evomerge_common.errors import NotFound
from evomerge_common.ports import ArtifactStore, Clock, EventLog, JobQueue, KeyValue, ModelStore
from evomerge_common.runtime.settings import Settings
from evomerge_common.runtime.uris import local_path


@dataclass
class Ports:
    """What a service needs from outside.

    `stop` is set when the service must end: open streams watch it and return.
    """

    queue: JobQueue
    log: EventLog
    kv: KeyValue
    artifacts: ArtifactStore
    models: ModelStore
    clock: Clock
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    closers: list[Callable[[], Awaitable[None]]] = field(default_factory=list)

    async def close(self) -> None:
        """Ends the connections."""
        for close in reversed(self.closers):
            await close()


def artifact_store(settings: Settings) -> ArtifactStore:
    """Opens the store that EVOMERGE_ARTIFACT_STORE names.

    Raises:
        UnservedScheme: a URI of a scheme that no store serves.

    """
    return FilesystemArtifactStore(local_path(settings.artifact_store))


def model_store(settings: Settings) -> ModelStore:
    """Opens the store that EVOMERGE_MODEL_STORE names, for reading.

    Raises:
        UnservedScheme: a URI of a scheme that no store serves.

    """
    return FilesystemModelStore(local_path(str(settings.model_store)))


def store_folders(settings: Settings) -> dict[str, Path]:
    """Returns the folders of both stores on this machine, by the setting's name.

    Raises:
        UnservedScheme: a URI of a scheme that no store serves.

    """
    return {name: local_path(str(getattr(settings, name))) for name in ("artifact_store", "model_store")}


def open_artifact(uri: str) -> Path:
    """Returns a local path of an artifact of another process's store, such as a server's.

    Raises:
        NotFound: it is out of this machine's reach.
        UnservedScheme: a URI of a scheme that no store serves.

    """
    path = local_path(uri)
    if not path.exists():
        raise NotFound(f"no artifact {uri}: it was deleted, or belongs to a store that this machine does not see")
    return path


def memory_ports(tmp: Path, *, ack_wait: float = 60.0, max_deliver: int = 5, max_pending: int = 10_000) -> Ports:
    """Makes ports for tests: all in memory, artifacts and models under `tmp`."""
    from evomerge_common.adapters import memory

    clock = memory.MemoryClock()
    return Ports(
        queue=memory.MemoryJobQueue(clock, ack_wait=ack_wait, max_deliver=max_deliver, max_pending=max_pending),
        log=memory.MemoryEventLog(clock),
        kv=memory.MemoryKeyValue(),
        artifacts=FilesystemArtifactStore(tmp / "artifacts"),
        models=FilesystemModelStore(tmp / "models"),
        clock=clock,
    )


async def connect_ports(settings: Settings, *, stop: asyncio.Event | None = None, name: str = "evomerge") -> Ports:
    """Connects NATS and the stores. Waits for NATS to come up, and makes streams, consumers and buckets.

    Raises:
        Unavailable: NATS did not answer in time.
        UnservedScheme: a store is set to a URI of a scheme that none serves.

    """
    from evomerge_common.adapters.clock import SystemClock
    from evomerge_common.adapters.nats import connect

    artifacts, models = artifact_store(settings), model_store(settings)
    link = await connect(settings, name=name)
    return Ports(
        queue=link.queue,
        log=link.log,
        kv=link.kv,
        artifacts=artifacts,
        models=models,
        clock=SystemClock(),
        stop=stop or asyncio.Event(),
        closers=[link.close],
    )
