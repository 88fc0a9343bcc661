"""JobQueue: the same on memory and on NATS."""

from __future__ import annotations

import asyncio
import time
import uuid

import pytest

from evomerge_common.domain.messages import EvaluateJob, Job, MergeJob, Model
from evomerge_common.errors import BackPressure, InvalidInput
from evomerge_common.ports import QueueState
from evomerge_common.runtime import spans
from evomerge_common.runtime.ports_factory import Ports
from helpers.support import assert_eventually, download_job

KIND = "download"


def new_id() -> str:
    return f"job-{uuid.uuid4().hex[:8]}"


async def test_a_job_goes_to_one_worker_and_is_gone_after_the_ack(ports: Ports) -> None:
    job = Job(
        job_id=new_id(),
        run_id="run",
        payload=EvaluateJob(
            recipe_json="{}", sources=(Model(reference="a", parameters=2**40),), split="search", threads=2
        ),
    )
    await ports.queue.publish(job)
    assert await ports.queue.depth("evaluate") == 1
    delivery = await ports.queue.fetch("evaluate", 2.0)
    assert delivery is not None
    assert delivery.job == job
    assert (delivery.attempt, delivery.is_last_attempt) == (1, False)
    assert await ports.queue.fetch("evaluate", 0.1) is None  # nobody else gets it
    assert await ports.queue.depth("evaluate") == 1  # in work counts
    await delivery.ack()
    assert await ports.queue.depth("evaluate") == 0


async def test_kinds_do_not_mix_and_order_is_first_in_first_out(ports: Ports) -> None:
    ids = [new_id() for _ in range(3)]
    await ports.queue.publish(Job(job_id=new_id(), run_id="run", payload=MergeJob(recipe_digest="d")))
    for job_id in ids:
        await ports.queue.publish(download_job(job_id))
    got = [await ports.queue.fetch(KIND, 2.0) for _ in ids]
    assert [d.job.job_id for d in got if d] == ids
    assert await ports.queue.fetch(KIND, 0.1) is None


async def test_an_empty_fetch_takes_its_timeout_and_no_more(ports: Ports) -> None:
    started = time.monotonic()
    assert await ports.queue.fetch(KIND, 0.3) is None
    assert 0.25 <= time.monotonic() - started < 1.5


async def test_a_waiting_fetch_gets_a_job_at_once(ports: Ports) -> None:
    waiting = asyncio.create_task(ports.queue.fetch(KIND, 5.0))
    await asyncio.sleep(0.1)
    started = time.monotonic()
    await ports.queue.publish(download_job(new_id()))
    assert await waiting is not None
    assert time.monotonic() - started < 1.0


async def test_the_same_id_is_queued_once(ports: Ports) -> None:
    job = download_job(new_id())
    await ports.queue.publish(job)
    await ports.queue.publish(job)
    assert await ports.queue.depth(KIND) == 1


async def test_a_silent_worker_loses_its_job_after_ack_wait(ports: Ports) -> None:
    await ports.queue.publish(download_job(new_id()))
    first = await ports.queue.fetch(KIND, 2.0)
    assert first is not None
    started = time.monotonic()
    second = await ports.queue.fetch(KIND, 5.0)
    assert second is not None
    assert second.job == first.job
    assert second.attempt == 2
    assert time.monotonic() - started > ports.queue.ack_wait * 0.8


async def test_a_heartbeat_keeps_the_job(ports: Ports) -> None:
    await ports.queue.publish(download_job(new_id()))
    mine = await ports.queue.fetch(KIND, 2.0)
    assert mine is not None
    end = time.monotonic() + 2.5 * ports.queue.ack_wait
    while time.monotonic() < end:
        await mine.heartbeat()
        assert await ports.queue.fetch(KIND, ports.queue.ack_wait / 4) is None
    await mine.ack()
    assert await ports.queue.depth(KIND) == 0


async def test_an_ack_after_redelivery_still_counts(ports: Ports) -> None:
    await ports.queue.publish(download_job(new_id()))
    first = await ports.queue.fetch(KIND, 2.0)
    second = await ports.queue.fetch(KIND, 5.0)
    assert first is not None
    assert second is not None
    await first.ack()
    assert await ports.queue.depth(KIND) == 0
    await second.ack()  # an ack is not ownership: no error


async def test_a_job_that_is_given_back_comes_again_after_the_delay(ports: Ports) -> None:
    await ports.queue.publish(download_job(new_id()))
    first = await ports.queue.fetch(KIND, 2.0)
    assert first is not None
    await first.retry(0.0)
    second = await ports.queue.fetch(KIND, 2.0)
    assert second is not None
    assert second.attempt == 2
    started = time.monotonic()
    await second.retry(0.4)
    third = await ports.queue.fetch(KIND, 3.0)
    assert third is not None
    assert time.monotonic() - started > 0.35
    assert third.is_last_attempt


async def test_a_dead_letter_is_off_the_queue_with_its_reason(ports: Ports) -> None:
    job = download_job(new_id())
    await ports.queue.publish(job)
    delivery = await ports.queue.fetch(KIND, 2.0)
    assert delivery is not None
    await delivery.dead_letter("no such\nmodel")
    assert await ports.queue.depth(KIND) == 0
    assert await ports.queue.fetch(KIND, 0.1) is None
    assert [(dead, reason.split()) for dead, reason in await dead_letters(ports)] == [(job, ["no", "such", "model"])]


async def test_a_full_queue_pushes_back_and_keeps_what_it_has(ports: Ports) -> None:
    for _ in range(20):
        await ports.queue.publish(download_job(new_id()))
    late = download_job(new_id())
    with pytest.raises(BackPressure, match=r"work queue .*; wait until workers"):
        await ports.queue.publish(late)
    assert await ports.queue.depth(KIND) == 20
    delivery = await ports.queue.fetch(KIND, 2.0)
    assert delivery is not None
    await delivery.ack()
    await ports.queue.publish(late)  # the refused id was not remembered
    assert await ports.queue.depth(KIND) == 20


async def test_unknown_kind(ports: Ports) -> None:
    with pytest.raises(InvalidInput, match="did you mean 'merge'"):
        await ports.queue.fetch("merg", 0.1)


async def dead_letters(ports: Ports) -> list[tuple[Job, str]]:
    """What the queue set aside, with the reasons."""
    if hasattr(ports.queue, "dead"):
        return list(ports.queue.dead)
    from evomerge_common.adapters import codec

    js = ports.queue.link.js  # type: ignore[attr-defined]
    found: list[tuple[Job, str]] = []

    async def arrived() -> bool:
        return bool((await js.stream_info("DLQ")).state.messages)

    await assert_eventually(arrived)
    state = (await js.stream_info("DLQ")).state
    for sequence in range(state.first_seq, state.last_seq + 1):
        message = await js.get_msg("DLQ", sequence)
        found.append((codec.decode(Job, message.data), message.headers["Evomerge-Reason"]))
    return found


async def test_what_a_trace_needs_travels_with_a_job(ports: Ports) -> None:
    await ports.queue.publish(download_job(new_id()))
    spans.record_to(lambda _: None)
    try:
        with spans.inside(spans.of_candidate("run", "d1gest")):
            await ports.queue.publish(download_job(new_id()))
        first, second = [await ports.queue.fetch(KIND, 2.0) for _ in range(2)]
        assert first is not None
        assert second is not None
        assert spans.received(first.headers) is None
        assert spans.received(second.headers) == spans.of_candidate("run", "d1gest")
    finally:
        spans.record_to(None)
    assert spans.received(second.headers) is None, "tracing is off"
    assert abs(time.time() - second.queued_at) < 5


async def test_what_operators_are_told_of_a_queue(ports: Ports) -> None:
    assert await ports.queue.state(KIND) == QueueState()
    for _ in range(3):
        await ports.queue.publish(download_job(new_id()))
    delivery = await ports.queue.fetch(KIND, 2.0)
    assert delivery is not None
    await assert_state(ports, waiting=2, in_work=1, redelivered=0, dead=0)
    await delivery.dead_letter("of no use")
    await asyncio.sleep(0.2)
    again = await ports.queue.fetch(KIND, 2.0)
    assert again is not None
    await again.retry(0.0)
    found = [await ports.queue.fetch(KIND, 2.0) for _ in range(2)]
    assert sorted(one.attempt for one in found if one) == [1, 2]
    await assert_state(ports, waiting=0, in_work=2, redelivered=1, dead=1)
    assert 0.2 < (await ports.queue.state(KIND)).oldest_age < 10
    assert (await ports.queue.state("merge")).dead == 0


async def assert_state(ports: Ports, **wanted: int) -> None:
    async def is_so() -> bool:
        found = await ports.queue.state(KIND)
        return {name: getattr(found, name) for name in wanted} == wanted

    await assert_eventually(is_so, 3)
