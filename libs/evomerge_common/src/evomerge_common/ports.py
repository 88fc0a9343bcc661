"""What the services need from the outside world. Adapters: `adapters.{nats,filesystem,memory}`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from evomerge_common.domain.messages import Event, Job


@dataclass(frozen=True)
class Recorded:
    """An event with its place in the stream (1 for the first of all runs)."""

    sequence: int
    event: Event


@dataclass(frozen=True)
class QueueState:
    """What a kind of job has in the queue now, for operators.

    Attributes:
        waiting, in_work: jobs in no worker's hands, and in one's.
        redelivered: of those in work, how many were delivered before.
        oldest_age: seconds since the oldest of them was queued; 0 without any.
        dead: dead letters of the kind.

    """

    waiting: int = 0
    in_work: int = 0
    redelivered: int = 0
    oldest_age: float = 0.0
    dead: int = 0


class Delivery(Protocol):
    """A job in this worker's hands. An ack is not ownership: see messaging.md, fencing."""

    @property
    def job(self) -> Job:
        """Returns the job, as it was queued."""
        ...

    @property
    def attempt(self) -> int:
        """Returns the number of this delivery, 1 for the first."""
        ...

    @property
    def is_last_attempt(self) -> bool:
        """Tells whether a failure now is final; asked by the worker before it gives a job back."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """Returns what was sent along with the job: the context of a trace, see `runtime.spans`."""
        ...

    @property
    def queued_at(self) -> float:
        """Returns when the job was queued, by the queue's clock: Unix seconds."""
        ...

    async def heartbeat(self) -> None:
        """Tells the queue that the job is still in work; called by the worker each third of `JobQueue.ack_wait`."""
        ...

    async def ack(self) -> None:
        """Takes the job off the queue; called by the worker when its result is in the log."""
        ...

    async def retry(self, delay: float) -> None:
        """Gives it back, to come again after `delay` seconds; called by the worker after a failure that may pass."""
        ...

    async def dead_letter(self, reason: str) -> None:
        """Puts it on evomerge.dlq.<kind> with the reason, off the queue; called after the last attempt."""
        ...


class JobQueue(Protocol):
    """Work queue: each job goes to one worker at a time, at least once."""

    @property
    def ack_wait(self) -> float:
        """Returns the seconds without a heartbeat after which a job is delivered again."""
        ...

    async def publish(self, job: Job) -> None:
        """Queues it; called by the selector. The same job and attempt within two minutes is queued once.

        Raises:
            BackPressure: the queue is full.
            Unavailable: no answer.

        """
        ...

    async def fetch(self, kind: str, timeout: float) -> Delivery | None:
        """Returns the next job of a kind, None when none came in `timeout` seconds; called by a worker that is free."""
        ...

    async def depth(self, kind: str) -> int:
        """Counts the jobs of a kind that wait or are in work."""
        ...

    async def state(self, kind: str) -> QueueState:
        """Tells what the queue and the dead letters hold of a kind; called a few times a minute, for metrics."""
        ...


class EventLog(Protocol):
    """The runs' log."""

    async def append_result(self, event: Event, *, message_id: str) -> int:
        """Appends a worker's result; the same message id within two minutes is stored once. Returns its sequence."""
        ...

    async def append_decision(self, event: Event, *, expected_last: int) -> int:
        """Appends the selector's decision after the run's last, number `expected_last` (0: none); returns its sequence.

        Raises:
            Fenced: another selector wrote one since.

        """
        ...

    def read(self, run_id: str, *, from_sequence: int = 0) -> AsyncIterator[Recorded]:
        """Yields what the log holds of a run ("*": all runs) now, in order, from a sequence on."""
        ...

    def follow(self, run_id: str, *, from_sequence: int = 0) -> AsyncIterator[Recorded]:
        """Yields the same, then what comes, until the caller closes it; called by the selector and the reporter."""
        ...

    async def last_sequence(self) -> int:
        """Returns the sequence of the newest event of all runs; 0 when there is none."""
        ...


class KeyValue(Protocol):
    """Small values with compare-and-set, in named buckets ("runs", "scores", "results", "models")."""

    async def get(self, bucket: str, key: str) -> tuple[bytes, int] | None:
        """Returns value and revision, or None."""
        ...

    async def create(self, bucket: str, key: str, value: bytes) -> bool:
        """Sets it if nobody has; tells whether it did. Called by whoever wants to be the first to write a key."""
        ...

    async def update(self, bucket: str, key: str, value: bytes, *, revision: int) -> bool:
        """Sets it if its revision is still this one, as read before; tells whether it did."""
        ...

    async def delete(self, bucket: str, key: str) -> None:
        """Removes a key; nothing happens when it is gone already."""
        ...

    async def keys(self, bucket: str) -> list[str]:
        """Returns all keys of a bucket, sorted."""
        ...


class ArtifactStore(Protocol):
    """Files and folders by URI. A put is atomic: half an artifact never has a URI."""

    def stage(self, name: str) -> Path:
        """Makes an empty folder, on the store's file system where it has one; called before writing and `commit`."""
        ...

    def commit(self, staged: Path, name: str) -> str:
        """Makes a staged folder the artifact `name` (such as "scratch/<digest>"), replacing one; returns its URI."""
        ...

    def put(self, name: str, data: bytes) -> str:
        """Stores one file under a name; returns its URI."""
        ...

    def get(self, uri: str) -> bytes:
        """Reads one file.

        Raises:
            NotFound: no such artifact, or a folder.
            UnservedScheme: a URI of a scheme that no store serves.

        """
        ...

    def open(self, uri: str) -> Path:
        """Returns a local path of the artifact (a copy where the store is remote).

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
        """Returns the URI of the model with a digest ("sha256:<hex>"), whether the store has it or not.

        Raises:
            InvalidInput: not a digest.

        """
        ...

    def open(self, uri: str) -> Path:
        """Returns a local folder with the model's files (a copy where the store is remote).

        Raises:
            ModelNotFound: no such model, or out of this machine's reach.
            UnservedScheme: a URI of a scheme that no store serves.

        """
        ...


class Clock(Protocol):
    """Time, injected."""

    def now(self) -> float:
        """Returns Unix seconds."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Waits for some seconds."""
        ...
