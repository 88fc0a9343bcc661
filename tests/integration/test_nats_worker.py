"""The worker loop on a real broker."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from evomerge_cli.stack.broker import Broker
from evomerge_common.domain.messages import CandidateFailed, CandidateMerged, Job, MergeJob, Result
from evomerge_common.errors import WorkerCrashed
from evomerge_common.runtime.metrics import WorkerMetrics
from evomerge_common.runtime.ports_factory import Ports, connect_ports
from evomerge_common.runtime.settings import Settings
from evomerge_common.runtime.worker import Worker
from helpers.support import assert_eventually


def settings_for(broker: Broker, tmp_path: Path, **more: Any) -> Settings:
    options: dict[str, Any] = {"ack_wait": 1.0, "max_deliver": 2, **more}
    return Settings(nats_url=broker.url, artifact_store=str(tmp_path / "artifacts"), **options)


@asynccontextmanager
async def working(
    settings: Settings, handler: Callable[[Job], Awaitable[Result]], registry: CollectorRegistry, count: int = 1
) -> AsyncIterator[Ports]:
    """`count` workers, each on a connection of its own; gives the first one's ports."""
    ports = [await connect_ports(settings) for _ in range(count)]
    metrics = WorkerMetrics(registry)
    workers = [
        Worker(kind="merge", handler=handler, ports=p, settings=settings, metrics=metrics, retry_delays=(0.0,))
        for p in ports
    ]
    tasks = [asyncio.create_task(w.run(p.stop)) for w, p in zip(workers, ports, strict=True)]
    try:
        yield ports[0]
    finally:
        for p in ports:
            p.stop.set()
        async with asyncio.timeout(10):
            await asyncio.gather(*tasks)
        for p in ports:
            await p.close()


def count(registry: CollectorRegistry, outcome: str) -> float:
    return registry.get_sample_value("evomerge_jobs_total", {"kind": "merge", "outcome": outcome}) or 0.0


def new_job() -> Job:
    name = uuid.uuid4().hex[:8]
    return Job(job_id=f"merge-{name}", run_id=f"run-{name}", payload=MergeJob(recipe_digest=name))


async def merged(job: Job) -> Result:
    return CandidateMerged(job_id=job.job_id, uri="file:///x")


async def results(ports: Ports, job: Job) -> list[Result]:
    return [r.event.payload async for r in ports.log.read(job.run_id)]  # type: ignore[misc]


async def test_many_jobs_several_workers_each_result_once(broker: Broker, tmp_path: Path) -> None:
    registry, jobs = CollectorRegistry(), [new_job() for _ in range(12)]

    async def handler(job: Job) -> Result:
        await asyncio.sleep(0.02)
        return await merged(job)

    async with working(settings_for(broker, tmp_path), handler, registry, count=3) as ports:
        for job in jobs:
            await ports.queue.publish(job)
        await assert_eventually(lambda: count(registry, "done") == len(jobs), 20)
        for job in jobs:
            assert await results(ports, job) == [CandidateMerged(job_id=job.job_id, uri="file:///x")]
        assert await ports.queue.depth("merge") == 0


async def test_a_handler_longer_than_ack_wait_is_not_delivered_again(broker: Broker, tmp_path: Path) -> None:
    registry, job, calls = CollectorRegistry(), new_job(), 0

    async def handler(job: Job) -> Result:
        nonlocal calls
        calls += 1
        await asyncio.sleep(2.5)
        return await merged(job)

    async with working(settings_for(broker, tmp_path), handler, registry, count=2) as ports:
        await ports.queue.publish(job)
        await assert_eventually(lambda: count(registry, "done") == 1)
        assert calls == 1
        assert len(await results(ports, job)) == 1


async def test_a_crashing_job_is_a_dead_letter_and_a_result(broker: Broker, tmp_path: Path) -> None:
    registry, job = CollectorRegistry(), new_job()

    async def handler(job: Job) -> Result:
        raise WorkerCrashed("killed by SIGKILL")

    async with working(settings_for(broker, tmp_path), handler, registry) as ports:
        await ports.queue.publish(job)
        await assert_eventually(lambda: count(registry, "dead_letter") == 1)
        (result,) = await results(ports, job)
        assert isinstance(result, CandidateFailed)
        assert (result.error.type, result.recipe_digest) == ("WorkerCrashed", job.job_id.removeprefix("merge-"))
        link = ports.queue.link  # type: ignore[attr-defined]
        dead = await link.api("dlq", "STREAM.MSG.GET.DLQ", {"last_by_subj": "evomerge.dlq.merge"})
        assert dead["message"]["subject"] == "evomerge.dlq.merge"
        assert await ports.queue.depth("merge") == 0
    assert count(registry, "retried") == 1


async def test_stopping_hands_the_job_to_another_worker_at_once(broker: Broker, tmp_path: Path) -> None:
    registry, job, started = CollectorRegistry(), new_job(), asyncio.Event()
    settings = settings_for(broker, tmp_path, ack_wait=30.0, drain_timeout=0.1)

    async def endless(job: Job) -> Result:
        started.set()
        await asyncio.sleep(60)
        return await merged(job)

    async with working(settings, endless, registry) as ports:
        await ports.queue.publish(job)
        await started.wait()
    assert count(registry, "given_back") == 1
    second = CollectorRegistry()
    async with working(settings, merged, second) as ports:
        await assert_eventually(lambda: count(second, "done") == 1, 5)
        assert len(await results(ports, job)) == 1


@pytest.mark.slow
async def test_a_broker_killed_under_a_working_job(nats_server: Broker, tmp_path: Path) -> None:
    """The work that was done while the broker was away is not done again, nor lost."""
    registry, job, calls, started = CollectorRegistry(), new_job(), 0, asyncio.Event()

    async def handler(job: Job) -> Result:
        nonlocal calls
        calls += 1
        started.set()
        await asyncio.sleep(1.0)
        return await merged(job)

    async with working(settings_for(nats_server, tmp_path, ack_wait=5.0), handler, registry) as ports:
        await ports.queue.publish(job)
        await started.wait()
        nats_server.kill()
        await asyncio.sleep(1.5)  # the handler ends with nobody to tell
        nats_server.start()
        await assert_eventually(lambda: count(registry, "done") == 1, 15)
        assert len(await results(ports, job)) == 1
        await assert_eventually(lambda: _empty(ports), 15)
        assert len(await results(ports, job)) == 1
    assert calls == 1


async def _empty(ports: Ports) -> bool:
    return await ports.queue.depth("merge") == 0
