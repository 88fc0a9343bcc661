"""Reading from JetStream consumers by pull requests: one job, or a run's events, past and live.

The client library's own `fetch` waits for a full batch or its whole timeout, and its ordered consumer is slow; both
are a page of code over the protocol: a request names an inbox, messages and status lines come there.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

import nats.errors
import nats.js.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from evomerge_common.adapters import codec, subjects
from evomerge_common.adapters.nats_link import Link
from evomerge_common.domain.messages import Event
from evomerge_common.errors import InvalidInput, Unavailable
from evomerge_common.ports import Recorded

_BATCH = 2000
_HEARTBEAT = 2.0  # seconds between signs of life of an idle consumer
_EXPIRES = 60.0


class _Inbox:
    """Where the answers to pull requests on one consumer come in."""

    def __init__(self, link: Link, stream: str, consumer: str) -> None:
        self._link = link
        self._subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        self._messages: deque[Msg] = deque()
        self._arrived = asyncio.Event()
        self._lost = False
        self._subscription: Subscription | None = None
        self._inbox = link.client.new_inbox()

    async def __aenter__(self) -> _Inbox:
        self._subscription = await self._link.client.subscribe(self._inbox, cb=self._on_message)
        self._link.on_reconnect.add(self._on_reconnect)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._link.on_reconnect.discard(self._on_reconnect)
        if self._subscription is not None:
            with contextlib.suppress(nats.errors.Error):
                await self._subscription.unsubscribe()

    async def _on_message(self, message: Msg) -> None:
        self._messages.append(message)
        self._arrived.set()

    def _on_reconnect(self) -> None:
        self._lost = True
        self._arrived.set()

    async def ask(self, batch: int, expires: float, *, heartbeat: float = 0.0) -> None:
        """Asks the consumer for messages."""
        body: dict[str, Any] = {"batch": batch, "expires": int(expires * 1e9)}
        if heartbeat:
            body["idle_heartbeat"] = int(heartbeat * 1e9)
        await self._link.client.publish(self._subject, json.dumps(body).encode(), reply=self._inbox)

    async def next(self, timeout: float) -> Msg:
        """Waits for the next message or status line.

        Raises:
            TimeoutError: none came, or none will: the connection was lost meanwhile, and the request with it.

        """
        while not self._messages:
            if self._lost:
                raise TimeoutError
            self._arrived.clear()
            async with asyncio.timeout(timeout):
                await self._arrived.wait()
        return self._messages.popleft()


def _status(message: Msg) -> str:
    """Status code of a line that is no message ("" for a message)."""
    if message.data or not message.headers:
        return ""
    return str(message.headers.get("Status", ""))


async def fetch_one(link: Link, stream: str, consumer: str, timeout: float) -> Msg | None:
    """Fetches one message of a durable consumer; None when none came within `timeout` seconds.

    Raises:
        Unavailable: not connected, or the consumer does not answer.

    """
    try:
        async with _Inbox(link, stream, consumer) as inbox:
            await inbox.ask(1, timeout)
            # The broker ends the request; waiting longer than it, no message comes that nobody waits for.
            message = await inbox.next(timeout + 2.0)
    except TimeoutError:
        if not link.client.is_connected:
            raise Unavailable("fetch: not connected to NATS") from None
        return None
    except nats.errors.Error as error:
        raise Unavailable(f"fetch: {error or type(error).__name__}") from error
    status = _status(message)
    if status in {"404", "408"}:
        return None
    if status:
        reason = (message.headers or {}).get("Description", "") or "no such consumer, or JetStream is starting"
        raise Unavailable(f"fetch from {stream}/{consumer}: {status} {reason}")
    return message


async def events(link: Link, subject: str, from_sequence: int, *, live: bool) -> AsyncIterator[Recorded]:
    """Yields the events of a subject in order: what the log holds now, or with `live` all that come until closed.

    Outlives the broker: a reader that is lost starts again after the last event that it gave.
    """
    following = max(from_sequence, 1)
    end = 0
    if not live:
        info = await link.api("state of the event log", f"STREAM.INFO.{subjects.EVENTS}")
        end = int(info["state"]["last_seq"])
    pause = 0.05
    while live or following <= end:
        consumer = ""
        try:
            consumer, pending = await _consumer(link, subject, following)
            if not live and not pending:
                return
            async with _Inbox(link, subjects.EVENTS, consumer) as inbox:
                async for message, place in _ordered(inbox):
                    sequence, left = place
                    following = sequence + 1
                    pause = 0.05
                    if live or sequence <= end:
                        event = _decode(link, message, sequence)
                        if event is not None:
                            yield Recorded(sequence, event)
                    if not live and (not left or sequence >= end):
                        return
        except (_Lost, nats.errors.Error, TimeoutError, Unavailable) as error:
            if link.client.is_closed:
                raise Unavailable("the event log: the connection to NATS is closed") from error
            link.log.info("reading the event log again", from_sequence=following, reason=str(error))
            await asyncio.sleep(pause)
            pause = min(pause * 2, 2.0)
        finally:
            if consumer and link.client.is_connected:
                with contextlib.suppress(nats.errors.Error, TimeoutError):
                    await link.client.request(f"$JS.API.CONSUMER.DELETE.{subjects.EVENTS}.{consumer}", b"", timeout=1.0)


class _Lost(Exception):
    """The consumer is gone, or messages are missing."""


async def _consumer(link: Link, subject: str, start: int) -> tuple[str, int]:
    """An ephemeral consumer from a sequence on; its name, and how many messages wait there."""
    name = link.client.new_inbox().rpartition(".")[2]
    config = {
        "name": name,
        "deliver_policy": "by_start_sequence",
        "opt_start_seq": start,
        "ack_policy": "none",
        "filter_subject": subject,
        "inactive_threshold": int(30e9),
        "mem_storage": True,
        "num_replicas": 1,
    }
    answer = await link.api(
        "reading the event log",
        f"CONSUMER.CREATE.{subjects.EVENTS}.{name}.{subject}",
        {"stream_name": subjects.EVENTS, "config": config},
    )
    return str(answer["name"]), int(answer["num_pending"])


async def _ordered(inbox: _Inbox) -> AsyncIterator[tuple[Msg, tuple[int, int]]]:
    """Messages with (stream sequence, messages left), asking for more in good time.

    Raises:
        _Lost: a gap, a consumer that is gone, no sign of life.

    """
    outstanding = 0
    received = 0
    while True:
        if outstanding < _BATCH // 2:
            await inbox.ask(_BATCH, _EXPIRES, heartbeat=_HEARTBEAT)
            outstanding += _BATCH
        try:
            message = await inbox.next(_HEARTBEAT * 3)
        except TimeoutError:
            raise _Lost("no sign of life") from None
        status = _status(message)
        if status == "100":
            continue
        if status == "408":  # a request has expired; there may be others, and one too many does no harm
            outstanding = 0
            continue
        if status:
            raise _Lost(f"status {status} {(message.headers or {}).get('Description', '')}")
        # $JS.ACK.[domain.account.]stream.consumer.delivered.stream-seq.consumer-seq.time.pending[.token]
        parts = message.reply.split(".")
        at = 5 if len(parts) == 9 else 7
        received += 1
        outstanding -= 1
        if int(parts[at + 1]) != received:
            raise _Lost(f"message {received} is missing")
        yield message, (int(parts[at]), int(parts[at + 3]))


def _decode(link: Link, message: Msg, sequence: int) -> Event | None:
    try:
        return codec.decode(Event, message.data)
    except InvalidInput as error:
        link.log.error("event that cannot be read, left out", sequence=sequence, error=str(error))
        return None
