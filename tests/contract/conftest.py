"""The adapters that every contract test runs on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from evomerge_common.adapters import subjects
from evomerge_common.runtime.ports_factory import Ports, connect_ports, memory_ports
from evomerge_common.runtime.settings import Settings

ACK_WAIT = 0.8
MAX_DELIVER = 3
MAX_PENDING = 20


@pytest.fixture(params=["memory", "nats"])
async def ports(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Ports]:
    """Ports with a short ack_wait and a small queue; the queue and the buckets are empty, the log may not be."""
    if request.param == "memory":
        yield memory_ports(tmp_path, ack_wait=ACK_WAIT, max_deliver=MAX_DELIVER, max_pending=MAX_PENDING)
        return
    settings = Settings(
        nats_url=request.getfixturevalue("broker").url,
        artifact_store=str(tmp_path / "artifacts"),
        ack_wait=ACK_WAIT,
        max_deliver=MAX_DELIVER,
        max_pending=MAX_PENDING,
    )
    connected = await connect_ports(settings)
    for stream in (subjects.WORK, subjects.DLQ, *(f"KV_{b}" for b in subjects.BUCKETS)):
        await connected.queue.link.api("purge", f"STREAM.PURGE.{stream}")  # type: ignore[attr-defined]
    yield connected
    await connected.close()
