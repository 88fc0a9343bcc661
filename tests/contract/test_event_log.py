"""EventLog: the same on memory and on NATS."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest

from evomerge_common.domain.messages import (
    CandidateProposed,
    Event,
    Model,
    ModelReady,
    RunPaused,
    RunStarted,
)
from evomerge_common.errors import Fenced, InvalidInput
from evomerge_common.ports import Recorded
from evomerge_common.runtime.ports_factory import Ports


@pytest.fixture
def run_id() -> str:
    return f"run-{uuid.uuid4().hex[:8]}"


def ready(run_id: str, job_id: str) -> Event:
    return Event(run_id=run_id, payload=ModelReady(job_id=job_id, model=Model(reference=job_id)), time=12.5)


def proposed(run_id: str, index: int) -> Event:
    return Event(run_id=run_id, payload=CandidateProposed(index=index, parents=("a", "b")), time=1.0)


async def collect(events: AsyncIterator[Recorded]) -> list[Recorded]:
    return [recorded async for recorded in events]


async def take(events: Any, count: int) -> list[Recorded]:
    async with asyncio.timeout(10), aclosing(events):
        got: list[Recorded] = []
        async for recorded in events:
            got.append(recorded)
            if len(got) == count:
                return got
    return got


async def test_reads_back_in_order_with_rising_sequences(ports: Ports, run_id: str) -> None:
    start = await ports.log.last_sequence()
    events = [ready(run_id, f"{run_id}-{i}") for i in range(5)]
    numbers = [await ports.log.append_result(e, message_id=e.payload.job_id) for e in events]  # type: ignore[union-attr]
    assert numbers == list(range(start + 1, start + 6))
    assert await ports.log.last_sequence() == start + 5
    got = await collect(ports.log.read(run_id))
    assert [r.event for r in got] == events
    assert [r.sequence for r in got] == numbers


async def test_from_sequence_is_inclusive(ports: Ports, run_id: str) -> None:
    numbers = [
        await ports.log.append_result(ready(run_id, f"{run_id}{i}"), message_id=f"{run_id}{i}") for i in range(4)
    ]
    assert [r.sequence for r in await collect(ports.log.read(run_id, from_sequence=numbers[2]))] == numbers[2:]
    assert await collect(ports.log.read(run_id, from_sequence=numbers[-1] + 1)) == []


async def test_runs_are_apart_and_a_star_reads_all(ports: Ports, run_id: str) -> None:
    start = await ports.log.last_sequence()
    await ports.log.append_result(ready(run_id, run_id + "a"), message_id=run_id + "a")
    await ports.log.append_result(ready(run_id + "x", run_id + "b"), message_id=run_id + "b")
    assert len(await collect(ports.log.read(run_id))) == 1
    assert [r.event.run_id for r in await collect(ports.log.read("*", from_sequence=start + 1))] == [
        run_id,
        run_id + "x",
    ]


async def test_a_run_that_nobody_started_reads_empty(ports: Ports, run_id: str) -> None:
    assert await collect(ports.log.read(run_id)) == []


async def test_the_same_message_id_is_stored_once(ports: Ports, run_id: str) -> None:
    event = ready(run_id, run_id)
    first = await ports.log.append_result(event, message_id=run_id)
    assert await ports.log.append_result(event, message_id=run_id) == first
    assert len(await collect(ports.log.read(run_id))) == 1


async def test_follow_gives_the_past_then_what_comes(ports: Ports, run_id: str) -> None:
    await ports.log.append_result(ready(run_id, run_id + "0"), message_id=run_id + "0")
    following = asyncio.create_task(take(ports.log.follow(run_id), 4))
    for i in range(1, 4):
        await asyncio.sleep(0.05)
        await ports.log.append_result(ready(run_id, f"{run_id}{i}"), message_id=f"{run_id}{i}")
    got = await following
    assert [r.event.payload.job_id for r in got] == [f"{run_id}{i}" for i in range(4)]  # type: ignore[union-attr]
    assert [r.sequence for r in got] == sorted(r.sequence for r in got)


async def test_follow_from_a_sequence_in_the_future(ports: Ports, run_id: str) -> None:
    last = await ports.log.append_result(ready(run_id, run_id + "0"), message_id=run_id + "0")
    following = asyncio.create_task(take(ports.log.follow(run_id, from_sequence=last + 1), 1))
    await asyncio.sleep(0.05)
    number = await ports.log.append_result(ready(run_id, run_id + "1"), message_id=run_id + "1")
    assert [r.sequence for r in await following] == [number]


async def test_two_followers_both_get_everything(ports: Ports, run_id: str) -> None:
    both = [asyncio.create_task(take(ports.log.follow(run_id), 2)) for _ in range(2)]
    await asyncio.sleep(0.05)
    for i in range(2):
        await ports.log.append_result(ready(run_id, f"{run_id}{i}"), message_id=f"{run_id}{i}")
    first, second = await asyncio.gather(*both)
    assert first == second


async def test_decisions_chain_on_each_other_alone(ports: Ports, run_id: str) -> None:
    started = Event(run_id=run_id, payload=RunStarted(spec_json="{}"), time=1.0)
    first = await ports.log.append_decision(started, expected_last=0)
    await ports.log.append_result(ready(run_id, run_id), message_id=run_id)  # results do not count
    second = await ports.log.append_decision(proposed(run_id, 0), expected_last=first)
    other = await ports.log.append_decision(
        Event(run_id=run_id + "x", payload=RunStarted(spec_json="{}")), expected_last=0
    )
    third = await ports.log.append_decision(proposed(run_id, 1), expected_last=second)
    assert first < second < other < third


async def test_a_second_writer_is_fenced(ports: Ports, run_id: str) -> None:
    first = await ports.log.append_decision(Event(run_id=run_id, payload=RunStarted(spec_json="{}")), expected_last=0)
    await ports.log.append_decision(proposed(run_id, 0), expected_last=first)
    with pytest.raises(Fenced, match=f"run {run_id}: another selector"):
        await ports.log.append_decision(Event(run_id=run_id, payload=RunPaused(reason="stale")), expected_last=first)
    with pytest.raises(Fenced):
        await ports.log.append_decision(Event(run_id=run_id, payload=RunStarted(spec_json="{ }")), expected_last=0)
    assert [r.event.type for r in await collect(ports.log.read(run_id))] == ["RunStarted", "CandidateProposed"]


async def test_two_writers_at_once_one_wins(ports: Ports, run_id: str) -> None:
    first = await ports.log.append_decision(Event(run_id=run_id, payload=RunStarted(spec_json="{}")), expected_last=0)
    answers = await asyncio.gather(
        *(ports.log.append_decision(proposed(run_id, i), expected_last=first) for i in range(5)), return_exceptions=True
    )
    assert sum(isinstance(a, int) for a in answers) == 1
    assert sum(isinstance(a, Fenced) for a in answers) == 4
    assert len(await collect(ports.log.read(run_id))) == 2


async def test_results_and_decisions_are_not_mixed_up(ports: Ports, run_id: str) -> None:
    with pytest.raises(ValueError, match="decision"):
        await ports.log.append_result(proposed(run_id, 0), message_id="x")
    with pytest.raises(ValueError, match="result"):
        await ports.log.append_decision(ready(run_id, "x"), expected_last=0)


@pytest.mark.parametrize("bad", ["", "a.b", "a b", ">", "a*", "ü"])
async def test_a_run_id_that_is_no_token_is_refused(ports: Ports, bad: str) -> None:
    with pytest.raises(InvalidInput, match="run id"):
        await ports.log.append_result(ready(bad, "x"), message_id="x")
    with pytest.raises(InvalidInput, match="run id"):
        await collect(ports.log.read(bad))
