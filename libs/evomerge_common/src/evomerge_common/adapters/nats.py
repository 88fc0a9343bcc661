"""JobQueue, EventLog and KeyValue on NATS JetStream."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import re
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import datetime

import nats.errors
import nats.js.errors
from nats.aio.msg import Msg
from nats.js import api

from evomerge_common.adapters import codec, subjects
from evomerge_common.adapters.nats_init import ensure
from evomerge_common.adapters.nats_link import Link
from evomerge_common.adapters.nats_pull import events, fetch_one
from evomerge_common.domain.messages import Event, Job
from evomerge_common.errors import Fenced, InvalidInput, Unavailable
from evomerge_common.ports import QueueState, Recorded
from evomerge_common.runtime import spans
from evomerge_common.runtime.settings import Settings


class NatsConnection:
    """The three ports on one connection."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.queue = NatsJobQueue(link)
        self.log = NatsEventLog(link)
        self.kv = NatsKeyValue(link)

    async def close(self) -> None:
        """Leaves."""
        await self.link.close()


async def connect(settings: Settings, *, name: str = "evomerge") -> NatsConnection:
    """Connects, waits for the broker if need be, and makes what it lacks.

    Raises:
        Unavailable: it does not answer, or refuses us.

    """
    link = Link(settings, name)
    await link.connect()
    try:
        await ensure(link)
    except BaseException:
        await link.close()
        raise
    return NatsConnection(link)


class NatsJobQueue:
    """Work queue: one durable pull consumer a kind."""

    def __init__(self, link: Link) -> None:
        self.link = link

    @property
    def ack_wait(self) -> float:
        """Returns the seconds without a heartbeat after which a job is delivered again."""
        return self.link.settings.ack_wait

    async def publish(self, job: Job) -> None:
        """Queues a job."""
        headers = {api.Header.MSG_ID.value: job.message_id, **spans.headers()}
        await self.link.publish(f"job {job.job_id}", subjects.work_subject(job.kind), codec.encode(job), headers)

    async def fetch(self, kind: str, timeout: float) -> NatsDelivery | None:
        """Waits for the next job of a kind."""
        subjects.work_subject(kind)
        message = await fetch_one(self.link, subjects.WORK, kind, timeout)
        if message is None:
            return None
        try:
            job = codec.decode(Job, message.data)
        except InvalidInput as error:  # written by another version, or by hand: set it aside, with its bytes
            self.link.log.error("job that cannot be read", kind=kind, error=str(error))
            await _bury(self.link, message, kind, f"InvalidInput: {error}", "")
            return None
        return NatsDelivery(self.link, message, job)

    async def depth(self, kind: str) -> int:
        """Counts the jobs waiting or in work.

        The stream says it, which holds a job until its ack: a consumer's count follows a publish only moments later.
        """
        subject = subjects.work_subject(kind)
        info = await self.link.api(f"depth of {kind}", f"STREAM.INFO.{subjects.WORK}", {"subjects_filter": subject})
        return int((info["state"].get("subjects") or {}).get(subject, 0))

    async def state(self, kind: str) -> QueueState:
        """Tells what the queue and the dead letters hold of a kind."""
        subject = subjects.work_subject(kind)
        consumer = await self.link.api(f"consumer {kind}", f"CONSUMER.INFO.{subjects.WORK}.{kind}")
        letters = f"evomerge.dlq.{kind}"
        dead = await self.link.api("dead letters", f"STREAM.INFO.{subjects.DLQ}", {"subjects_filter": letters})
        age = 0.0
        with contextlib.suppress(nats.js.errors.NotFoundError):
            asked = {"seq": 1, "next_by_subj": subject}
            oldest = await self.link.api(f"oldest {kind}", f"STREAM.MSG.GET.{subjects.WORK}", asked)
            age = time.time() - datetime.fromisoformat(oldest["message"]["time"]).timestamp()
        return QueueState(
            waiting=int(consumer["num_pending"]),
            in_work=int(consumer["num_ack_pending"]),
            redelivered=int(consumer["num_redelivered"]),
            oldest_age=max(0.0, age),
            dead=int((dead["state"].get("subjects") or {}).get(letters, 0)),
        )


class NatsDelivery:
    """A job in a worker's hands."""

    def __init__(self, link: Link, message: Msg, job: Job) -> None:
        self.link = link
        self._message = message
        self.job = job
        self.attempt = int(message.metadata.num_delivered)
        self.queued_at = message.metadata.timestamp.timestamp()
        self.headers: Mapping[str, str] = message.headers or {}

    @property
    def is_last_attempt(self) -> bool:
        """Tells whether a failure now is final."""
        return self.attempt >= self.link.settings.max_deliver

    async def heartbeat(self) -> None:
        """Starts `ack_wait` again."""
        await self._send(b"+WPI")

    async def ack(self) -> None:
        """Takes it off the queue, and waits for the broker's word.

        One try: a broker that was killed may have forgotten that it delivered this, and then it never answers.
        """
        await self.link.request(f"ack of {self.job.job_id}", self._message.reply, b"+ACK", patience=0.0)

    async def retry(self, delay: float) -> None:
        """Gives it back."""
        await self._send(b'-NAK {"delay": %d}' % int(delay * 1e9) if delay > 0 else b"-NAK")

    async def dead_letter(self, reason: str) -> None:
        """Sets it aside."""
        await _bury(self.link, self._message, self.job.kind, reason, self.job.job_id)

    async def _send(self, word: bytes) -> None:
        try:
            await self.link.client.publish(self._message.reply, word)
            await self.link.client.flush(timeout=2)
        except (nats.errors.Error, TimeoutError) as error:
            raise Unavailable(f"job {self.job.job_id}: NATS does not answer: {error}") from error


async def _bury(link: Link, message: Msg, kind: str, reason: str, job_id: str) -> None:
    number = message.metadata.sequence.stream
    headers = {
        api.Header.MSG_ID.value: f"dlq-{job_id or kind}-{number}",
        "Evomerge-Reason": " ".join(reason.split())[:2000],
        "Evomerge-Job-Id": job_id,
        **spans.headers(),
    }
    await link.publish(f"dead letter {job_id}", f"evomerge.dlq.{kind}", message.data, headers)
    await link.request(f"ack of dead letter {job_id}", message.reply, b"+ACK", patience=0.0)


class NatsEventLog:
    """The runs' log: results by anyone, decisions fenced."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self._writer = uuid.uuid4().hex[:12]

    async def append_result(self, event: Event, *, message_id: str) -> int:
        """Appends a worker's result."""
        if not event.is_result:
            raise ValueError(f"{event.type} is a decision")
        headers = {api.Header.MSG_ID.value: f"result-{message_id}", **spans.headers()}
        return await self.link.publish(
            f"result of {message_id}", subjects.event_subject(event), codec.encode(event), headers
        )

    async def append_decision(self, event: Event, *, expected_last: int) -> int:
        """Appends the selector's decision.

        The message id holds this writer's own mark and the content: trying again after a lost answer finds its own
        first try, and never another writer's. (The broker compares sequences before message ids, so the second try
        is refused, and the last message tells whose it was.)
        """
        if event.is_result:
            raise ValueError(f"{event.type} is a result")
        data = codec.encode(event)
        mark = hashlib.sha256(data).hexdigest()[:16]
        message_id = f"decision-{event.run_id}-{expected_last}-{self._writer}-{mark}"
        chain = f"evomerge.event.{subjects.run_token(event.run_id)}.decision.>"
        headers = {
            api.Header.MSG_ID.value: message_id,
            api.Header.EXPECTED_LAST_SUBJECT_SEQUENCE.value: str(expected_last),
            "Nats-Expected-Last-Subject-Sequence-Subject": chain,
            **spans.headers(),
        }
        try:
            return await self.link.publish(
                f"decision {event.type} of run {event.run_id}", subjects.event_subject(event), data, headers
            )
        except Fenced as error:
            last = await _last_message(self.link, subjects.EVENTS, chain)
            if last is not None and last.message_id == message_id:
                return last.sequence
            raise Fenced(
                f"run {event.run_id}: another selector wrote a decision after {expected_last}; this one must stop"
            ) from error

    def read(self, run_id: str, *, from_sequence: int = 0) -> AsyncIterator[Recorded]:
        """Yields the events up to now."""
        return events(self.link, subjects.run_filter(run_id), from_sequence, live=False)

    def follow(self, run_id: str, *, from_sequence: int = 0) -> AsyncIterator[Recorded]:
        """Yields the events up to now, then live."""
        return events(self.link, subjects.run_filter(run_id), from_sequence, live=True)

    async def last_sequence(self) -> int:
        """Returns the sequence of the newest event."""
        info = await self.link.api("state of the event log", f"STREAM.INFO.{subjects.EVENTS}")
        return int(info["state"]["last_seq"])


class NatsKeyValue:
    """Buckets of small values; on the wire they are NATS KV buckets with a history of one."""

    def __init__(self, link: Link) -> None:
        self.link = link

    async def get(self, bucket: str, key: str) -> tuple[bytes, int] | None:
        """Returns the value and revision."""
        subjects.check_key(bucket, key)
        last = await _last_message(self.link, f"KV_{bucket}", f"$KV.{bucket}.{key}")
        return None if last is None else (last.data, last.sequence)

    async def create(self, bucket: str, key: str, value: bytes) -> bool:
        """Sets it if nobody has."""
        return await self.update(bucket, key, value, revision=0)

    async def update(self, bucket: str, key: str, value: bytes, *, revision: int) -> bool:
        """Sets it if its revision is still this one."""
        subjects.check_key(bucket, key)
        subject, message_id = f"$KV.{bucket}.{key}", uuid.uuid4().hex
        headers = {
            api.Header.MSG_ID.value: message_id,
            api.Header.EXPECTED_LAST_SUBJECT_SEQUENCE.value: str(revision),
        }
        try:
            await self.link.publish(f"{bucket}/{key}", subject, value, headers)
        except Fenced:  # by somebody else, or by our own first try, whose answer was lost
            last = await _last_message(self.link, f"KV_{bucket}", subject)
            return last is not None and last.message_id == message_id
        return True

    async def delete(self, bucket: str, key: str) -> None:
        """Removes it, without a trace."""
        subjects.check_key(bucket, key)
        await self.link.api(f"{bucket}/{key}", f"STREAM.PURGE.KV_{bucket}", {"filter": f"$KV.{bucket}.{key}"})

    async def keys(self, bucket: str) -> list[str]:
        """Returns all keys, sorted."""
        subjects.check_key(bucket, "any")
        found: list[str] = []
        while True:  # the broker answers in pages
            body = {"subjects_filter": ">", "offset": len(found)}
            info = await self.link.api(f"keys of {bucket}", f"STREAM.INFO.KV_{bucket}", body)
            page = info["state"].get("subjects") or {}
            found += page
            if not page or len(found) >= int(info.get("total", 0)):
                return sorted(name.removeprefix(f"$KV.{bucket}.") for name in found)


@dataclass(frozen=True)
class _Stored:
    sequence: int
    data: bytes
    message_id: str


async def _last_message(link: Link, stream: str, subject: str) -> _Stored | None:
    """The newest message of a subject (wildcards allowed), from the stream's leader."""
    try:
        answer = await link.api(f"last of {subject}", f"STREAM.MSG.GET.{stream}", {"last_by_subj": subject})
    except nats.js.errors.NotFoundError:
        return None
    message = answer["message"]
    header = base64.b64decode(message.get("hdrs", "")).decode()
    found = re.search(r"^Nats-Msg-Id: *(.*?)\r?$", header, re.MULTILINE)
    return _Stored(int(message["seq"]), base64.b64decode(message.get("data", "")), found[1] if found else "")
