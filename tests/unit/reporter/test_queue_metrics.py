"""What the reporter shows of the queues, and what it shows while nobody answers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from evomerge_common.errors import Unavailable
from evomerge_common.ports import QueueState
from evomerge_common.runtime.ports_factory import memory_ports
from evomerge_reporter import queue_metrics
from evomerge_reporter.queue_metrics import QueueMetrics, QueueWatch
from helpers.support import assert_eventually, download_job


async def test_each_kind_is_shown_and_nothing_while_the_broker_is_silent(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(queue_metrics, "SECONDS", 0.01)
    ports, registry, stop = memory_ports(tmp_path), CollectorRegistry(), asyncio.Event()
    await ports.queue.publish(download_job())
    silent = False

    class Queue:
        async def state(self, kind: str) -> QueueState:
            if silent:
                raise Unavailable("no answer")
            return await ports.queue.state(kind)

    queue: Any = Queue()

    def jobs(kind: str, state: str) -> float | None:
        return registry.get_sample_value("evomerge_queue_jobs", {"kind": kind, "state": state})

    task = asyncio.create_task(QueueWatch(queue, QueueMetrics(registry)).run(stop))
    await assert_eventually(lambda: jobs("download", "waiting") == 1.0)
    delivery = await ports.queue.fetch("download", 1.0)
    assert delivery is not None
    await assert_eventually(lambda: (jobs("download", "waiting"), jobs("download", "in_work")) == (0.0, 1.0))
    assert jobs("merge", "waiting") == 0.0
    silent = True
    await assert_eventually(lambda: jobs("download", "in_work") is None)
    silent = False
    await assert_eventually(lambda: jobs("download", "in_work") == 1.0)
    stop.set()
    await task
