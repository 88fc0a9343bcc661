"""What must exist on the broker before anyone works: streams, consumers, buckets. Safe to run any number of times."""

from __future__ import annotations

from typing import Any

import nats.js.errors
from nats.js import api

from evomerge_common.adapters import subjects
from evomerge_common.adapters.nats_link import Link
from evomerge_common.errors import Unavailable


async def ensure(link: Link) -> None:
    """Makes what is missing and updates what differs.

    The consumers have no `max_deliver`: the worker loop itself sets a job aside at its last attempt. A broker that
    stops delivering would leave the job in the stream where nobody sees it, and its run would wait for ever.
    """
    settings = link.settings
    common: dict[str, Any] = {
        "storage": api.StorageType.FILE,
        "num_replicas": settings.replicas,
        "duplicate_window": subjects.DEDUPE_WINDOW,
    }
    streams = (
        api.StreamConfig(
            name=subjects.WORK,
            subjects=["evomerge.work.*"],
            retention=api.RetentionPolicy.WORK_QUEUE,
            discard=api.DiscardPolicy.NEW,  # the old would be work that nobody has done
            max_msgs=settings.max_pending,
            **common,
        ),
        api.StreamConfig(
            name=subjects.EVENTS, subjects=["evomerge.event.>"], retention=api.RetentionPolicy.LIMITS, **common
        ),
        api.StreamConfig(
            name=subjects.DLQ, subjects=["evomerge.dlq.>"], retention=api.RetentionPolicy.LIMITS, **common
        ),
    )
    for stream in streams:
        await _stream(link, stream)
    for kind in subjects.KINDS:
        config = api.ConsumerConfig(
            durable_name=kind,
            filter_subject=subjects.work_subject(kind),
            ack_policy=api.AckPolicy.EXPLICIT,
            ack_wait=settings.ack_wait,
            max_deliver=-1,
            max_ack_pending=-1,
        )
        await link.retry(f"consumer {kind}", lambda c=config: link.js.add_consumer(subjects.WORK, c))  # type: ignore[misc]
    for bucket in subjects.BUCKETS:
        await _bucket(link, bucket)


async def _stream(link: Link, config: api.StreamConfig) -> None:
    async def once() -> None:
        try:
            now = (await link.js.stream_info(str(config.name))).config
        except nats.js.errors.NotFoundError:
            await link.js.add_stream(config)
            return
        if (now.max_msgs, now.num_replicas) != (config.max_msgs or -1, config.num_replicas):
            await link.js.update_stream(config)

    await _tolerant(link, f"stream {config.name}", once)


async def _bucket(link: Link, bucket: str) -> None:
    async def once() -> None:
        try:
            await link.js.stream_info(f"KV_{bucket}")
        except nats.js.errors.NotFoundError:
            await link.js.create_key_value(bucket=bucket, history=1, replicas=link.settings.replicas)

    await _tolerant(link, f"bucket {bucket}", once)


async def _tolerant(link: Link, what: str, once: Any) -> None:
    """Two services that start together may both find it missing: the loser looks again."""
    try:
        await link.retry(what, once, patience=60.0)
    except Unavailable:
        await link.retry(what, once)
