"""What the services need from the outside world. Adapters: `adapters.{nats,filesystem,memory}`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from evomerge_common.domain.messages import Event, Job


@dataclass(frozen=True)
class Recorded:
    """An event with its place in the stream (1 for the first of all runs)."""

    sequence: int
    event: Event


class Delivery(Protocol):
    """A job in this worker's hands. An ack is not ownership: see messaging.md, fencing."""

    @property
    def job(self) -> Job: ...
    @property
    def attempt(self) -> int:
        """1 for the first delivery."""
        ...

    @property
    def is_last_attempt(self) -> bool: ...
    async def heartbeat(self) -> None:
        """Tells the queue that the job is still in work; due every third of `JobQueue.ack_wait`."""
        ...

    async def ack(self) -> None: ...
    async def retry(self, delay: float) -> None:
        """Gives it back, to be delivered again after `delay` seconds."""
        ...

    async def dead_letter(self, reason: str) -> None:
        """Puts it on evomerge.dlq.<kind> with the reason, and takes it off the queue."""
        ...


class JobQueue(Protocol):
    """Work queue: each job goes to one worker at a time, at least once."""

    @property
    def ack_wait(self) -> float:
        """Seconds without a heartbeat after which a job is delivered again."""
        ...

    async def publish(self, job: Job) -> None:
        """Queues it. The same job and attempt within two minutes is queued once.

        Raises:
            BackPressure: the queue is full.
            Unavailable: no answer.

        """
        ...

    async def fetch(self, kind: str, timeout: float) -> Delivery | None:
        """The next job of a kind, or None when none came within `timeout` seconds."""
        ...

    async def depth(self, kind: str) -> int:
        """Jobs waiting or in work."""
        ...


class EventLog(Protocol):
    """The runs' log."""

    async def append_result(self, event: Event, *, message_id: str) -> int:
        """A worker's result; the same message id within two minutes is stored once. Returns its sequence."""
        ...

    async def append_decision(self, event: Event, *, expected_last: int) -> int:
        """The selector's decision. `expected_last` is the sequence of the run's last decision (0: none yet).

        Raises:
            Fenced: another selector wrote one since.

        """
        ...

    def read(self, run_id: str, *, from_sequence: int = 0) -> AsyncIterator[Recorded]:
        """What the log holds of a run ("*": of all runs) now, in order, from a sequence on."""
        ...

    def follow(self, run_id: str, *, from_sequence: int = 0) -> AsyncIterator[Recorded]:
        """The same, then live, until the caller closes the iterator."""
        ...

    async def last_sequence(self) -> int:
        """Sequence of the newest event of all runs; 0 when there is none."""
        ...


class KeyValue(Protocol):
    """Small values with compare-and-set, in named buckets ("runs", "scores", "results", "models")."""

    async def get(self, bucket: str, key: str) -> tuple[bytes, int] | None:
        """Value and revision, or None."""
        ...

    async def create(self, bucket: str, key: str, value: bytes) -> bool:
        """Sets it if nobody has; tells whether it did."""
        ...

    async def update(self, bucket: str, key: str, value: bytes, *, revision: int) -> bool:
        """Sets it if its revision is still this one; tells whether it did."""
        ...

    async def delete(self, bucket: str, key: str) -> None: ...
    async def keys(self, bucket: str) -> list[str]: ...


class ArtifactStore(Protocol):
    """Files and folders by URI. A put is atomic: half an artifact never has a URI."""

    def stage(self, name: str) -> Path:
        """An empty folder to write in, on the store's own file system where it has one."""
        ...

    def commit(self, staged: Path, name: str) -> str:
        """Makes a staged folder the artifact `name` (such as "scratch/<digest>"), replacing one; returns its URI."""
        ...

    def put(self, name: str, data: bytes) -> str:
        """Stores one file; returns its URI."""
        ...

    def get(self, uri: str) -> bytes:
        """One file's bytes.

        Raises:
            NotFound: no such artifact, or a folder.
            UnservedScheme: a URI of a scheme that no store serves.

        """
        ...

    def open(self, uri: str) -> Path:
        """A local path of the artifact (a copy where the store is remote).

        Raises:
            NotFound: no such artifact, or out of this machine's reach.
            UnservedScheme: a URI of a scheme that no store serves.

        """
        ...

    def delete(self, uri: str) -> None:
        """Removes it; nothing happens when it is gone already."""
        ...


class ModelStore(Protocol):
    """Models by URI, read only: the downloader alone writes the store, and checks what it writes."""

    def uri(self, digest: str) -> str:
        """The URI of the model with a digest ("sha256:<hex>"), whether the store has it or not.

        Raises:
            InvalidInput: not a digest.

        """
        ...

    def open(self, uri: str) -> Path:
        """A local folder with the model's files (a copy where the store is remote).

        Raises:
            ModelNotFound: no such model, or out of this machine's reach.
            UnservedScheme: a URI of a scheme that no store serves.

        """
        ...


class Clock(Protocol):
    """Time, injected."""

    def now(self) -> float:
        """Unix seconds."""
        ...

    async def sleep(self, seconds: float) -> None: ...
