"""Ports in this process's memory, with the semantics of the NATS adapter. One event loop only."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

from evomerge_common.adapters import codec, subjects
from evomerge_common.domain.messages import Event, Job
from evomerge_common.errors import BackPressure, Fenced
from evomerge_common.ports import Clock, QueueState, Recorded
from evomerge_common.runtime import spans


class MemoryClock:
    """Real time plus what it was advanced by; `advance` wakes whoever sleeps."""

    def __init__(self) -> None:
        self._offset = 0.0
        self._changed = Signal()

    def now(self) -> float:
        """Returns Unix seconds."""
        return time.time() + self._offset

    def advance(self, seconds: float) -> None:
        """Lets time pass at once."""
        self._offset += seconds
        self._changed.notify()

    async def sleep(self, seconds: float) -> None:
        """Waits for real time or for `advance`."""
        end = self.now() + seconds
        while (rest := end - self.now()) > 0:
            await self._changed.wait(rest)
        await asyncio.sleep(0)


class Signal:
    """Wakes everyone who waits; never loses a waiter."""

    def __init__(self) -> None:
        self._waiters: set[asyncio.Event] = set()

    def notify(self) -> None:
        """Wakes all who wait now."""
        for event in self._waiters:
            event.set()

    async def wait(self, timeout: float) -> None:
        """Returns on the next `notify`, or after `timeout` seconds."""
        event = asyncio.Event()
        self._waiters.add(event)
        try:
            async with asyncio.timeout(timeout):
                await event.wait()
        except TimeoutError:
            pass
        finally:
            self._waiters.discard(event)


@dataclass(eq=False)
class _Entry:
    data: bytes
    kind: str
    headers: Mapping[str, str]
    queued_at: float
    attempts: int = 0
    visible_at: float = 0.0  # in work (or delayed) until then
    gone: bool = False


class MemoryJobQueue:
    """Work queue."""

    def __init__(
        self, clock: Clock, *, ack_wait: float = 60.0, max_deliver: int = 5, max_pending: int = 10_000
    ) -> None:
        self.ack_wait = ack_wait
        self.clock = clock
        self.max_deliver = max_deliver
        self.dead: list[tuple[Job, str]] = []
        """Dead letters: job and reason."""
        self._max_pending = max_pending
        self._entries: list[_Entry] = []
        self._seen: dict[str, float] = {}
        self._changed = Signal()

    async def publish(self, job: Job) -> None:
        """Queues a job."""
        subjects.work_subject(job.kind)
        now = self.clock.now()
        if now - self._seen.get(job.message_id, -1e18) < subjects.DEDUPE_WINDOW:
            return
        if len(self._entries) >= self._max_pending:
            raise BackPressure(f"the work queue holds {self._max_pending} jobs; wait until workers have done some")
        self._seen[job.message_id] = now
        self._entries.append(_Entry(codec.encode(job), job.kind, spans.headers(), now))
        self._changed.notify()

    async def fetch(self, kind: str, timeout: float) -> MemoryDelivery | None:
        """Waits for the next job of a kind."""
        subjects.work_subject(kind)
        end = time.monotonic() + timeout
        while True:
            now = self.clock.now()
            for entry in self._entries:
                if entry.kind == kind and entry.visible_at <= now:
                    entry.attempts += 1
                    entry.visible_at = now + self.ack_wait
                    return MemoryDelivery(self, entry)
            rest = end - time.monotonic()
            if rest <= 0:
                return None
            await self._changed.wait(min(rest, 0.02))  # the clock may be advanced meanwhile

    async def depth(self, kind: str) -> int:
        """Counts the jobs waiting or in work."""
        subjects.work_subject(kind)
        return sum(e.kind == kind for e in self._entries)

    async def state(self, kind: str) -> QueueState:
        """Tells what the queue and the dead letters hold of a kind."""
        subjects.work_subject(kind)
        now, entries = self.clock.now(), [one for one in self._entries if one.kind == kind]
        in_work = [one for one in entries if one.visible_at > now]
        return QueueState(
            waiting=len(entries) - len(in_work),
            in_work=len(in_work),
            redelivered=sum(one.attempts > 1 for one in in_work),
            oldest_age=max((now - one.queued_at for one in entries), default=0.0),
            dead=sum(job.kind == kind for job, _ in self.dead),
        )

    def remove(self, entry: _Entry) -> None:
        """Takes a job off the queue; nothing happens when it is gone already."""
        if not entry.gone:
            entry.gone = True
            self._entries.remove(entry)

    def delay(self, entry: _Entry, seconds: float) -> None:
        """Delivers it again after that time."""
        entry.visible_at = self.clock.now() + seconds
        self._changed.notify()


class MemoryDelivery:
    """A job in a worker's hands."""

    def __init__(self, queue: MemoryJobQueue, entry: _Entry) -> None:
        self._queue = queue
        self._entry = entry
        self.job: Job = codec.decode(Job, entry.data)
        self.attempt = entry.attempts
        self.headers = entry.headers
        self.queued_at = entry.queued_at

    @property
    def is_last_attempt(self) -> bool:
        """Tells whether a failure now is final."""
        return self.attempt >= self._queue.max_deliver

    async def heartbeat(self) -> None:
        """Starts `ack_wait` again."""
        self._entry.visible_at = self._queue.clock.now() + self._queue.ack_wait

    async def ack(self) -> None:
        """Takes it off the queue."""
        self._queue.remove(self._entry)

    async def retry(self, delay: float) -> None:
        """Gives it back."""
        self._queue.delay(self._entry, delay)

    async def dead_letter(self, reason: str) -> None:
        """Sets it aside."""
        self._queue.dead.append((self.job, reason))
        self._queue.remove(self._entry)


class MemoryEventLog:
    """The runs' log."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._events: list[tuple[str, bytes]] = []  # run id and bytes: what goes in is what the wire carries
        self._decisions: dict[str, int] = {}
        self._seen: dict[str, tuple[int, float]] = {}
        self._changed = Signal()

    async def append_result(self, event: Event, *, message_id: str) -> int:
        """Appends a worker's result."""
        if not event.is_result:
            raise ValueError(f"{event.type} is a decision")
        sequence, at = self._seen.get(message_id, (0, -1e18))
        if self._clock.now() - at >= subjects.DEDUPE_WINDOW:
            sequence = self._append(event)
            self._seen[message_id] = (sequence, self._clock.now())
        return sequence

    async def append_decision(self, event: Event, *, expected_last: int) -> int:
        """Appends the selector's decision."""
        if event.is_result:
            raise ValueError(f"{event.type} is a result")
        last = self._decisions.get(event.run_id, 0)
        if last != expected_last:
            raise Fenced(f"run {event.run_id}: another selector wrote decision {last} after {expected_last}")
        self._decisions[event.run_id] = self._append(event)
        return self._decisions[event.run_id]

    def _append(self, event: Event) -> int:
        subjects.event_subject(event)
        self._events.append((event.run_id, codec.encode(event)))
        self._changed.notify()
        return len(self._events)

    async def read(self, run_id: str, *, from_sequence: int = 0) -> AsyncIterator[Recorded]:
        """Yields the events up to now."""
        subjects.run_filter(run_id)
        for sequence in range(max(from_sequence, 1), len(self._events) + 1):
            owner, data = self._events[sequence - 1]
            if run_id in ("*", owner):
                yield Recorded(sequence, codec.decode(Event, data))

    async def follow(self, run_id: str, *, from_sequence: int = 0) -> AsyncIterator[Recorded]:
        """Yields the events up to now, then live."""
        subjects.run_filter(run_id)
        sequence = max(from_sequence, 1)
        while True:
            while sequence <= len(self._events):
                owner, data = self._events[sequence - 1]
                sequence += 1
                if run_id in ("*", owner):
                    yield Recorded(sequence - 1, codec.decode(Event, data))
            await self._changed.wait(60.0)

    async def last_sequence(self) -> int:
        """Returns the sequence of the newest event."""
        return len(self._events)


@dataclass
class MemoryKeyValue:
    """Buckets of small values."""

    _buckets: dict[str, dict[str, tuple[bytes, int]]] = field(default_factory=dict)
    _revision: int = 0

    def _bucket(self, bucket: str, key: str = "any") -> dict[str, tuple[bytes, int]]:
        subjects.check_key(bucket, key)
        return self._buckets.setdefault(bucket, {})

    def _set(self, bucket: str, key: str, value: bytes) -> None:
        self._revision += 1
        self._buckets[bucket][key] = (value, self._revision)

    async def get(self, bucket: str, key: str) -> tuple[bytes, int] | None:
        """Returns the value and revision."""
        return self._bucket(bucket, key).get(key)

    async def create(self, bucket: str, key: str, value: bytes) -> bool:
        """Sets it if nobody has."""
        if key in self._bucket(bucket, key):
            return False
        self._set(bucket, key, value)
        return True

    async def update(self, bucket: str, key: str, value: bytes, *, revision: int) -> bool:
        """Sets it if its revision is still this one."""
        found = self._bucket(bucket, key).get(key)
        if found is None or found[1] != revision:
            return False
        self._set(bucket, key, value)
        return True

    async def delete(self, bucket: str, key: str) -> None:
        """Removes it."""
        self._bucket(bucket, key).pop(key, None)

    async def keys(self, bucket: str) -> list[str]:
        """Returns all keys, sorted."""
        return sorted(self._bucket(bucket))
