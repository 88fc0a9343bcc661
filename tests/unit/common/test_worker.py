"""The worker loop on memory ports; tests/integration/test_nats_worker.py runs it on a broker."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from evomerge_common.adapters import codec
from evomerge_common.domain.messages import (
    ADHOC,
    CandidateFailed,
    EvaluateJob,
    Event,
    Job,
    JobPostponed,
    MergeJob,
    Model,
    ModelReady,
    Result,
)
from evomerge_common.errors import (
    DeadlineExceeded,
    DiskFull,
    EvoMergeException,
    InvalidInput,
    ModelNotFound,
    OutOfMemory,
    Unavailable,
    WorkerCrashed,
    WorkFailed,
)
from evomerge_common.runtime.metrics import WorkerMetrics
from evomerge_common.runtime.ports_factory import Ports, memory_ports
from evomerge_common.runtime.settings import Settings
from evomerge_common.runtime.worker import Worker
from helpers.support import assert_eventually, download_job


@pytest.fixture
def ports(tmp_path: Path) -> Ports:
    return memory_ports(tmp_path, ack_wait=0.6, max_deliver=3)


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


Handle = Callable[[Job], Any]


@asynccontextmanager
async def working(ports: Ports, registry: CollectorRegistry, handler: Handle, **settings: Any) -> AsyncIterator[None]:
    worker = Worker(
        kind=settings.pop("kind", "download"),
        handler=handler,
        prepare=settings.pop("prepare", None),
        finish=settings.pop("finish", None),
        ports=ports,
        settings=Settings(max_deliver=3, **settings),
        metrics=WorkerMetrics(registry),
        retry_delays=(0.0,),
    )
    task = asyncio.create_task(worker.run(ports.stop))
    try:
        yield
    finally:
        ports.stop.set()
        async with asyncio.timeout(5):
            await task


async def results(ports: Ports) -> list[Result]:
    return [r.event.payload async for r in ports.log.read("*")]  # type: ignore[misc]


def count(registry: CollectorRegistry, outcome: str, kind: str = "download") -> float:
    return registry.get_sample_value("evomerge_jobs_total", {"kind": kind, "outcome": outcome}) or 0.0


async def ready(job: Job) -> Result:
    return ModelReady(job_id=job.job_id, model=Model(reference="x"))


async def test_one_job_one_result(ports: Ports, registry: CollectorRegistry) -> None:
    await ports.queue.publish(download_job("a"))
    async with working(ports, registry, ready):
        await assert_eventually(lambda: count(registry, "done") == 1)
    assert await results(ports) == [ModelReady(job_id="a", model=Model(reference="x"))]
    assert await ports.queue.depth("download") == 0
    stored, _ = await ports.kv.get("results", "a") or (b"", 0)
    assert codec.decode(Event, stored).payload == (await results(ports))[0]
    assert registry.get_sample_value("evomerge_jobs_in_progress", {"kind": "download"}) == 0
    assert registry.get_sample_value("evomerge_job_duration_seconds_count", {"kind": "download"}) == 1


async def test_a_job_with_a_result_is_absorbed(ports: Ports, registry: CollectorRegistry) -> None:
    calls = 0

    async def handler(job: Job) -> Result:
        nonlocal calls
        calls += 1
        return await ready(job)

    async with working(ports, registry, handler):
        await ports.queue.publish(download_job("a"))
        await assert_eventually(lambda: count(registry, "done") == 1)
        ports.clock.advance(200.0)  # type: ignore[attr-defined]  # past the dedupe window: the queue takes it again
        await ports.queue.publish(download_job("a"))
        await assert_eventually(lambda: count(registry, "duplicate") == 1)
    assert calls == 1
    assert len(await results(ports)) == 1
    assert registry.get_sample_value("evomerge_duplicate_results_total", {"kind": "download"}) == 1
    assert await ports.queue.depth("download") == 0


async def test_two_workers_with_the_same_job_the_first_result_wins(ports: Ports, registry: CollectorRegistry) -> None:
    """A worker that lost its job (no heartbeat got through) comes back with a second result."""
    slow = asyncio.Event()

    async def handler(job: Job) -> Result:
        await slow.wait()
        return ModelReady(job_id=job.job_id, model=Model(reference="slow"))

    await ports.queue.publish(download_job("a"))
    async with working(ports, registry, handler):
        await assert_eventually(
            lambda: registry.get_sample_value("evomerge_jobs_in_progress", {"kind": "download"}) == 1
        )
        first = Event(run_id="run-1", payload=ModelReady(job_id="a", model=Model(reference="fast")))
        await ports.log.append_result(first, message_id="a")
        await ports.kv.create("results", "a", codec.encode(first))
        slow.set()
        await assert_eventually(lambda: count(registry, "duplicate") == 1)
    assert await results(ports) == [first.payload]


async def test_a_handler_longer_than_ack_wait_keeps_its_job(ports: Ports, registry: CollectorRegistry) -> None:
    calls = 0

    async def handler(job: Job) -> Result:
        nonlocal calls
        calls += 1
        await asyncio.sleep(1.5)  # 2.5 times ack_wait
        return await ready(job)

    await ports.queue.publish(download_job("a"))
    async with working(ports, registry, handler):
        await assert_eventually(lambda: calls == 1)
        assert await ports.queue.fetch("download", 1.2) is None
        await assert_eventually(lambda: count(registry, "done") == 1)
    assert calls == 1


@pytest.mark.parametrize("error", [ModelNotFound("no model x"), WorkFailed("nan"), DeadlineExceeded("too long")])
async def test_a_permanent_error_is_a_result_at_once(
    ports: Ports, registry: CollectorRegistry, error: EvoMergeException
) -> None:
    async def handler(job: Job) -> Result:
        raise error

    await ports.queue.publish(download_job("a", reference="org/x"))
    async with working(ports, registry, handler):
        await assert_eventually(lambda: count(registry, "failed") == 1)
    (result,) = await results(ports)
    assert isinstance(result, CandidateFailed)
    assert (result.job_id, result.kind, result.reference) == ("a", "download", "org/x")
    assert (result.error.type, result.error.message) == (type(error).__name__, str(error))
    assert await ports.queue.depth("download") == 0
    assert ports.queue.dead == []  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "error",
    [Unavailable("hub down"), OutOfMemory("small"), WorkerCrashed("SIGKILL"), OSError(5, "io"), KeyError("bug")],
)
async def test_a_passing_error_is_tried_again_then_a_dead_letter(
    ports: Ports, registry: CollectorRegistry, error: Exception
) -> None:
    calls = 0

    async def handler(job: Job) -> Result:
        nonlocal calls
        calls += 1
        raise error

    job = Job(job_id="a", run_id="r", payload=EvaluateJob(recipe_digest="d", split="holdout"))
    await ports.queue.publish(job)
    async with working(ports, registry, handler, kind="evaluate"):
        await assert_eventually(lambda: count(registry, "dead_letter", "evaluate") == 1)
    assert calls == 3
    assert count(registry, "retried", "evaluate") == 2
    (result,) = await results(ports)
    assert isinstance(result, CandidateFailed)
    assert (result.recipe_digest, result.split, result.kind) == ("d", "holdout", "evaluate")
    assert str(error) in result.error.message
    ((dead, reason),) = ports.queue.dead  # type: ignore[attr-defined]
    assert dead == job
    assert str(error) in reason


@pytest.mark.parametrize(
    ("kind", "error", "named"),
    [
        ("merge", DiskFull("the model needs 9 bytes, and /x has 5 left: free some"), "DiskFull"),
        ("merge", OutOfMemory("small"), "OutOfMemory"),
        ("merge", OSError(errno.ENOSPC, "No space left on device", "/x/model.safetensors"), "DiskFull"),
        ("evaluate", DiskFull("full"), "DiskFull"),
    ],
)
async def test_what_the_machine_lacks_postpones_a_job_of_a_run(
    ports: Ports, registry: CollectorRegistry, kind: str, error: Exception, named: str
) -> None:
    """It is no result, and the next attempt is queued although the same job was queued a moment ago."""
    lacks = True

    async def handler(job: Job) -> Result:
        if lacks:
            raise error
        return await ready(job)

    payload = MergeJob(recipe_digest="d") if kind == "merge" else EvaluateJob(recipe_digest="d", split="search")
    job = Job(job_id="a", run_id="r", payload=payload)
    await ports.queue.publish(job)
    async with working(ports, registry, handler, kind=kind):
        await assert_eventually(lambda: count(registry, "postponed", kind) == 1)
        (told,) = await results(ports)
        assert isinstance(told, JobPostponed)
        assert (told.job_id, told.kind, told.attempt, told.error.type) == ("a", kind, 0, named)
        assert str(getattr(error, "filename", None) or error) in told.error.message
        assert await ports.kv.get("results", "a") is None
        assert await ports.queue.depth(kind) == 0
        assert ports.queue.dead == []  # type: ignore[attr-defined]
        lacks = False
        await ports.queue.publish(job)
        assert await ports.queue.depth(kind) == 0, "this attempt has been queued"
        await ports.queue.publish(replace(job, attempt=1))
        await assert_eventually(lambda: count(registry, "done", kind) == 1)
    assert await ports.kv.get("results", "a") is not None


async def test_without_a_run_that_waits_a_lack_fails_the_job(ports: Ports, registry: CollectorRegistry) -> None:
    async def handler(job: Job) -> Result:
        raise DiskFull("full")

    await ports.queue.publish(Job(job_id="a", run_id=ADHOC, payload=MergeJob(recipe_digest="d")))
    async with working(ports, registry, handler, kind="merge"):
        await assert_eventually(lambda: count(registry, "dead_letter", "merge") == 1)
    (result,) = await results(ports)
    assert isinstance(result, CandidateFailed)
    assert result.error.type == "DiskFull"


async def test_trouble_that_passes_leaves_one_good_result(ports: Ports, registry: CollectorRegistry) -> None:
    errors: list[Exception] = [Unavailable("x"), RuntimeError("bug")]

    async def handler(job: Job) -> Result:
        if errors:
            raise errors.pop()
        return await ready(job)

    await ports.queue.publish(download_job("a"))
    async with working(ports, registry, handler):
        await assert_eventually(lambda: count(registry, "done") == 1)
    assert [type(r) for r in await results(ports)] == [ModelReady]


async def test_a_job_that_kills_its_workers_ends(ports: Ports, registry: CollectorRegistry) -> None:
    """Workers that vanish never say so: the deliveries are counted."""
    await ports.queue.publish(download_job("a"))
    for _ in range(6):  # twice max_deliver
        delivery = await ports.queue.fetch("download", 1.0)
        assert delivery is not None
        await delivery.retry(0.0)
    async with working(ports, registry, ready):
        await assert_eventually(lambda: count(registry, "dead_letter") == 1)
    (result,) = await results(ports)
    assert isinstance(result, CandidateFailed)
    assert result.error.type == "WorkerCrashed"


async def test_stopping_lets_a_short_job_finish(ports: Ports, registry: CollectorRegistry) -> None:
    started = asyncio.Event()

    async def handler(job: Job) -> Result:
        started.set()
        await asyncio.sleep(0.2)
        return await ready(job)

    await ports.queue.publish(download_job("a"))
    async with working(ports, registry, handler, drain_timeout=5.0):
        await started.wait()
    assert count(registry, "done") == 1


async def test_stopping_gives_a_long_job_back(ports: Ports, registry: CollectorRegistry) -> None:
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def handler(job: Job) -> Result:
        started.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return await ready(job)

    await ports.queue.publish(download_job("a"))
    async with working(ports, registry, handler, drain_timeout=0.1):
        await started.wait()
    assert cancelled.is_set()
    assert count(registry, "given_back") == 1
    assert await results(ports) == []
    again = await ports.queue.fetch("download", 0.2)  # at once, not after ack_wait
    assert again is not None
    assert again.attempt == 2


async def test_an_idle_worker_stops_within_a_fetch(ports: Ports, registry: CollectorRegistry) -> None:
    async with working(ports, registry, ready):
        await asyncio.sleep(0.05)
        started = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - started < 1.5


async def test_a_result_outlives_an_outage_of_the_log(
    ports: Ports, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, append = 0, ports.log.append_result
    outage = 2

    async def flaky(event: Event, *, message_id: str) -> int:
        nonlocal outage
        if outage:
            outage -= 1
            raise Unavailable("NATS does not answer")
        return await append(event, message_id=message_id)

    async def handler(job: Job) -> Result:
        nonlocal calls
        calls += 1
        return await ready(job)

    monkeypatch.setattr(ports.log, "append_result", flaky)
    await ports.queue.publish(download_job("a"))
    async with working(ports, registry, handler):
        await assert_eventually(lambda: count(registry, "done") == 1)
    assert calls == 1
    assert len(await results(ports)) == 1


async def test_bad_input_in_one_job_does_not_stop_the_next(ports: Ports, registry: CollectorRegistry) -> None:
    async def handler(job: Job) -> Result:
        if job.job_id == "bad":
            raise InvalidInput("bad")
        return await ready(job)

    for job_id in ("bad", "good"):
        await ports.queue.publish(download_job(job_id))
    async with working(ports, registry, handler):
        await assert_eventually(lambda: count(registry, "done") == 1)
    assert [type(r) for r in await results(ports)] == [CandidateFailed, ModelReady]


async def test_the_next_job_is_prepared_while_one_is_in_work_and_results_wait_for_nobody(
    ports: Ports, registry: CollectorRegistry
) -> None:
    said: list[str] = []
    let_go = {name: asyncio.Event() for name in ("a", "b", "c")}
    publishing = asyncio.Event()

    async def prepare(job: Job) -> None:
        said.append(f"prepare {job.job_id}")

    async def handler(job: Job) -> Result:
        said.append(f"work {job.job_id}")
        await let_go[job.job_id].wait()
        return await ready(job)

    async def finish(job: Job, result: Any) -> Result:
        if job.job_id == "a":
            await publishing.wait()
        said.append(f"finish {job.job_id}")
        return ModelReady(job_id=job.job_id, model=Model(reference="changed"))

    for name in let_go:
        await ports.queue.publish(download_job(name))
    async with working(ports, registry, handler, prepare=prepare, finish=finish):
        await assert_eventually(lambda: sorted(said) == ["prepare a", "prepare b", "work a"])
        assert await ports.queue.depth("download") == 3
        assert registry.get_sample_value("evomerge_jobs_in_progress", {"kind": "download"}) == 1, "one at a time"
        let_go["a"].set()
        await assert_eventually(lambda: said[-1] == "work b")
        let_go["b"].set()
        await assert_eventually(lambda: said[-3:] == ["finish b", "prepare c", "work c"])
        publishing.set()
        let_go["c"].set()
        await assert_eventually(lambda: count(registry, "done") == 3)
    assert {one.model.reference for one in await results(ports)} == {"changed"}  # type: ignore[union-attr]
    told = [r.event async for r in ports.log.read("*")]
    assert all(event.worker.startswith("download@") and 0 < event.began <= event.time for event in told)


async def test_a_job_goes_to_an_idle_worker_rather_than_ahead_to_a_busy_one(
    ports: Ports, registry: CollectorRegistry
) -> None:
    """Taken ahead, it would wait for a job that may be long, while nobody works it."""
    said: list[str] = []
    let_go = asyncio.Event()

    async def prepare(job: Job) -> None:
        pass

    async def handler(job: Job) -> Result:
        said.append(job.job_id)
        if job.job_id.startswith("long"):
            await let_go.wait()
        return await ready(job)

    at_once, other = 0, CollectorRegistry()
    async with working(ports, registry, handler, prepare=prepare), working(ports, other, handler, prepare=prepare):
        for number in range(10):
            let_go.clear()
            for name in (f"long-{number}", f"short-{number}"):
                await ports.queue.publish(download_job(name))
                with contextlib.suppress(AssertionError):
                    await assert_eventually(lambda name=name: name in said, 0.4)
            at_once += f"short-{number}" in said
            let_go.set()
            await assert_eventually(lambda number=number: f"short-{number}" in said)
    assert at_once >= 9, "once in a while a glance comes first"


async def test_a_prepared_job_is_given_back_when_the_service_stops(ports: Ports, registry: CollectorRegistry) -> None:
    prepared: list[str] = []

    async def prepare(job: Job) -> None:
        prepared.append(job.job_id)

    async def handler(job: Job) -> Result:
        await asyncio.sleep(30)
        return await ready(job)

    for name in ("a", "b"):
        await ports.queue.publish(download_job(name))
    async with working(ports, registry, handler, prepare=prepare, drain_timeout=0.05):
        await assert_eventually(lambda: prepared == ["a", "b"])
    assert count(registry, "given_back") == 2
    assert await ports.queue.depth("download") == 2
    assert await results(ports) == []


async def test_a_finish_that_fails_is_tried_again_with_its_job(ports: Ports, registry: CollectorRegistry) -> None:
    failures = iter([Unavailable("the broker is away")])

    async def finish(job: Job, result: Any) -> Result:
        for error in failures:
            raise error
        return await ready(job)

    await ports.queue.publish(download_job("a"))
    async with working(ports, registry, ready, finish=finish):
        await assert_eventually(lambda: count(registry, "done") == 1)
    assert count(registry, "retried") == 1
