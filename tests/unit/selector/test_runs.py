"""The shell on memory ports: real queue, log and store semantics, workers that answer as the simulation does."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from evomerge_common.adapters import codec
from evomerge_common.adapters.memory import MemoryClock
from evomerge_common.domain.messages import (
    JOB_KINDS,
    CandidateMerged,
    CandidateProposed,
    Event,
    Job,
    JobPostponed,
    Result,
    RunCancelled,
    RunContinued,
    SearchEnded,
)
from evomerge_common.errors import DiskFull, InvalidInput, NotFound
from evomerge_common.ports import Recorded
from evomerge_common.runtime.metrics import WorkerMetrics
from evomerge_common.runtime.ports_factory import Ports, memory_ports
from evomerge_common.runtime.settings import Settings
from evomerge_common.runtime.worker import Worker
from evomerge_selector.domain.run import Phase
from evomerge_selector.domain.summary import RunEntry
from evomerge_selector.fake_workers import workers
from evomerge_selector.runs import Runs
from helpers.simulation import answer, make_request
from helpers.support import assert_eventually


@pytest.fixture
def ports(tmp_path: Path) -> Ports:
    return memory_ports(tmp_path)


@asynccontextmanager
async def selector(ports: Ports) -> AsyncIterator[Runs]:
    stop, runs = asyncio.Event(), Runs(ports)
    task = asyncio.create_task(runs.adopt(stop))
    try:
        yield runs
    finally:
        stop.set()
        await task


async def until(runs: Runs, run_id: str, *phases: Phase) -> None:
    async with asyncio.timeout(30):
        while (await runs.find(run_id)).phase not in phases:
            await asyncio.sleep(0.02)


async def proposals(ports: Ports, run_id: str) -> list[str]:
    events = [one.event.payload async for one in ports.log.read(run_id)]
    return [e.recipe_digest for e in events if isinstance(e, CandidateProposed)]


async def test_a_run_goes_from_start_to_champion(ports: Ports) -> None:
    async with workers(ports, answer), selector(ports) as runs:
        run_id = await runs.start(make_request(evaluations=24), "one")
        await until(runs, run_id, Phase.FINISHED)
        assert len(await proposals(ports, run_id)) == 24
        assert await ports.queue.depth("evaluate") == 0


async def test_a_request_id_means_one_run_and_another_spec_under_it_is_refused(ports: Ports) -> None:
    async with workers(ports, answer), selector(ports) as runs:
        first = await runs.start(make_request(evaluations=12), "same")
        assert await runs.start(make_request(evaluations=12), "same") == first
        with pytest.raises(InvalidInput, match="another spec"):
            await runs.start(make_request(evaluations=13), "same")
        assert [t.run_id for t in await runs.all()] == [first]


async def test_a_larger_budget_goes_on_after_the_end_and_before_it(ports: Ports, tmp_path: Path) -> None:
    calm_ports = memory_ports(tmp_path / "calm")
    async with workers(calm_ports, answer), selector(calm_ports) as runs:
        whole = await runs.start(make_request(evaluations=40), "one")
        await until(runs, whole, Phase.FINISHED)
        best = (await runs.find(whole)).champion_digest
    async with workers(ports, answer), selector(ports) as runs:
        run_id = await runs.start(make_request(evaluations=20), "one")
        await runs.go_on(run_id, make_request(evaluations=24))
        await until(runs, run_id, Phase.FINISHED)
        assert len(await proposals(ports, run_id)) == 24
        await runs.go_on(run_id, make_request(evaluations=40))
        await runs.go_on(run_id, make_request(evaluations=40))  # again: nothing new
        await until(runs, run_id, Phase.FINISHED)
        found = await runs.find(run_id)
        assert (found.champion_digest, found.budget) == (best, 40)
        assert await runs.start(make_request(evaluations=40), "one") == run_id
        for other, why in (
            (make_request(evaluations=80, population=8), "more than that"),
            (make_request(evaluations=39), "give it more"),
        ):
            with pytest.raises(InvalidInput, match=why):
                await runs.go_on(run_id, other)
    assert await proposals(ports, run_id) == await proposals(calm_ports, whole)
    log = [one.event.payload async for one in ports.log.read(run_id)]
    assert sum(isinstance(one, RunContinued) for one in log) == 2


async def test_a_cancelled_run_does_not_go_on(ports: Ports) -> None:
    async with selector(ports) as runs:
        run_id = await runs.start(make_request(evaluations=20), "one")
        await runs.cancel(run_id, finish=False, reason="enough")
        with pytest.raises(InvalidInput, match="only a finished run"):
            await runs.go_on(run_id, make_request(evaluations=24))
        with pytest.raises(NotFound):
            await runs.go_on("run-0", make_request(evaluations=24))


async def test_a_selector_that_starts_again_goes_on_with_the_same_sequence(ports: Ports, tmp_path: Path) -> None:
    calm_ports = memory_ports(tmp_path / "calm")
    async with workers(calm_ports, answer), selector(calm_ports) as runs:
        run_id = await runs.start(make_request(evaluations=40), "one")
        await until(runs, run_id, Phase.FINISHED)
    async with workers(ports, answer):
        for _ in range(6):
            async with selector(ports) as runs:
                assert await runs.start(make_request(evaluations=40), "one") == run_id
                await asyncio.sleep(0.05)
        async with selector(ports) as runs:
            await until(runs, run_id, Phase.FINISHED)
    assert await proposals(ports, run_id) == await proposals(calm_ports, run_id)


async def test_of_two_selectors_one_is_fenced_off_and_nothing_is_doubled(ports: Ports) -> None:
    async with workers(ports, answer), selector(ports) as one:
        run_id = await one.start(make_request(evaluations=60), "one")
        async with selector(ports):
            await until(one, run_id, Phase.FINISHED)
    found = await proposals(ports, run_id)
    assert len(found) == len(set(found)) == 60


def gone(ports: Ports, uri: str) -> bool:
    try:
        ports.artifacts.get(uri)
    except NotFound:
        return True
    return False


async def test_a_snapshot_spares_the_log_and_changes_nothing(ports: Ports, tmp_path: Path, monkeypatch: Any) -> None:
    """A selector that starts in the midst reads what came after the snapshot, and goes on with the same sequence."""
    monkeypatch.setattr("evomerge_selector.run_actor.SNAPSHOT_EVENTS", 40)
    calm_ports = memory_ports(tmp_path / "calm")
    async with workers(calm_ports, answer), selector(calm_ports) as runs:
        run_id = await runs.start(make_request(evaluations=250), "one")
        await until(runs, run_id, Phase.FINISHED)
    async with workers(ports, answer):
        async with selector(ports) as runs:
            await runs.start(make_request(evaluations=250), "one")
            async with asyncio.timeout(30):
                while len(await proposals(ports, run_id)) < 60:
                    await asyncio.sleep(0.01)
        entry = await ports.kv.get("runs", run_id)
        assert entry is not None
        uri = RunEntry.from_bytes(entry[0]).snapshot
        assert ports.artifacts.get(uri)
        seen: list[int] = []
        read = ports.log.read

        def watched(run: str, *, from_sequence: int = 0) -> AsyncIterator[Recorded]:
            seen.append(from_sequence)
            return read(run, from_sequence=from_sequence)

        monkeypatch.setattr(ports.log, "read", watched)
        async with selector(ports) as runs:
            await until(runs, run_id, Phase.FINISHED)
            await assert_eventually(lambda: gone(ports, uri), 10)  # with the run's end
        assert max(seen) > 20
    assert await proposals(ports, run_id) == await proposals(calm_ports, run_id)


@pytest.mark.parametrize("damage", [b"", b"not a snapshot", zlib.compress(b'{"format": 0, "version": "0.0"}')])
async def test_a_snapshot_of_another_version_or_a_damaged_one_is_ignored(
    ports: Ports, tmp_path: Path, monkeypatch: Any, damage: bytes
) -> None:
    monkeypatch.setattr("evomerge_selector.run_actor.SNAPSHOT_EVENTS", 40)
    async with workers(ports, answer):
        async with selector(ports) as runs:
            run_id = await runs.start(make_request(evaluations=60), "one")
            async with asyncio.timeout(30):
                while len(await proposals(ports, run_id)) < 40:
                    await asyncio.sleep(0.01)
        entry = await ports.kv.get("runs", run_id)
        assert entry is not None
        assert RunEntry.from_bytes(entry[0]).snapshot == ports.artifacts.put(f"snapshots/{run_id}", damage)
        async with selector(ports) as runs:
            await until(runs, run_id, Phase.FINISHED)
    found = await proposals(ports, run_id)
    assert len(found) == len(set(found)) == 60


async def test_runs_that_have_ended_are_told_without_their_logs_and_leave_memory(
    ports: Ports, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with workers(ports, answer), selector(ports) as runs:
        first = await runs.start(make_request(evaluations=12), "one")
        second = await runs.start(make_request(evaluations=12, seed=3), "two")
        await until(runs, first, Phase.FINISHED)
        await until(runs, second, Phase.FINISHED)
        async with asyncio.timeout(5):
            while runs._actors:
                await asyncio.sleep(0.01)

        def forbidden(*_: object, **__: object) -> None:
            raise AssertionError("the log of a run that has ended was read")

        monkeypatch.setattr(ports.log, "read", forbidden)
        found = await runs.all()
        assert {(one.run_id, one.phase, one.evaluated) for one in found} == {
            (first, Phase.FINISHED, 12),
            (second, Phase.FINISHED, 12),
        }
        assert all(one.champion_digest for one in found)


async def test_a_run_that_ended_under_an_older_version_is_folded_once(ports: Ports) -> None:
    async with workers(ports, answer), selector(ports) as runs:
        run_id = await runs.start(make_request(evaluations=12), "one")
        await until(runs, run_id, Phase.FINISHED)
    entry = await ports.kv.get("runs", run_id)
    assert entry is not None
    assert await ports.kv.update("runs", run_id, b'{"state":"finished"}', revision=entry[1])
    assert (await Runs(ports).find(run_id)).evaluated == 12
    entry = await ports.kv.get("runs", run_id)
    assert entry is not None
    assert RunEntry.from_bytes(entry[0]).summary is not None


async def test_pause_resume_and_finish_now(ports: Ports) -> None:
    async with workers(ports, answer), selector(ports) as runs:
        run_id = await runs.start(make_request(evaluations=2000, population=12), "one")
        await asyncio.sleep(0.2)
        assert (await runs.pause(run_id)).paused
        await asyncio.sleep(0.2)
        count = len(await proposals(ports, run_id))
        await asyncio.sleep(0.2)
        assert len(await proposals(ports, run_id)) == count
        await runs.resume(run_id)
        async with asyncio.timeout(10):
            while len(await proposals(ports, run_id)) <= count:
                await asyncio.sleep(0.02)
        await runs.cancel(run_id, finish=True, reason="")
        await until(runs, run_id, Phase.FINISHED)
        assert (await runs.find(run_id)).champion_digest
        with pytest.raises(InvalidInput, match="has ended"):
            await runs.pause(run_id)


class SmallDisk:
    """A disk that holds so many merged models; deleting one makes room. The workers' other jobs need none of it."""

    def __init__(self, ports: Ports, room: int) -> None:
        self.room = room
        self.held: set[str] = set()
        delete = ports.artifacts.delete

        def deleted(uri: str) -> None:
            self.held.discard(uri)
            delete(uri)

        ports.artifacts.delete = deleted  # type: ignore[method-assign]

    async def work(self, job: Job) -> Result:
        result = answer(job)
        if isinstance(result, CandidateMerged):
            if len(self.held) >= self.room:
                raise DiskFull("the model needs 9 bytes, and /x has 5 left: free some")
            self.held.add(result.uri)
        return result


@asynccontextmanager
async def real_workers(ports: Ports, work: Callable[[Job], Any]) -> AsyncIterator[None]:
    stop, settings = asyncio.Event(), Settings()
    metrics = WorkerMetrics(CollectorRegistry())
    made = [
        Worker(kind=kind, handler=work, ports=ports, settings=settings, metrics=metrics, retry_delays=(0.0,))
        for kind in JOB_KINDS.values()
    ]
    tasks = [asyncio.create_task(worker.run(stop)) for worker in made]
    try:
        yield
    finally:
        stop.set()
        await asyncio.gather(*tasks)


@pytest.mark.parametrize("how", ["by itself", "resume", "the same command"])
async def test_a_full_disk_pauses_the_run_until_there_is_room(
    ports: Ports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """It says what is full, fails no candidate, and ends as a run does that never met a full disk."""
    request = make_request(evaluations=30, population=8)
    calm_ports = memory_ports(tmp_path / "calm")
    async with workers(calm_ports, answer), selector(calm_ports) as runs:
        run_id = await runs.start(request, "one")
        await until(runs, run_id, Phase.FINISHED)
        calm = await runs.find(run_id)
    if how == "by itself":
        monkeypatch.setattr("evomerge_selector.run_actor.RETRY", 0.5)
    disk = SmallDisk(ports, room=0)
    async with real_workers(ports, disk.work), selector(ports) as runs:
        await runs.start(request, "one")
        async with asyncio.timeout(20):
            while not (found := await runs.find(run_id)).paused:
                await asyncio.sleep(0.02)
        assert (found.phase, found.failed) == (Phase.RUNNING, 0)
        assert found.message == "DiskFull: the model needs 9 bytes, and /x has 5 left: free some"
        disk.room = 100
        if how == "resume":
            await runs.resume(run_id)
        elif how == "the same command":
            assert await runs.start(request, "one") == run_id
        else:
            await assert_eventually(lambda: ports.clock.advance(1.0) is None and bool(disk.held), 10)  # type: ignore[attr-defined]
        await until(runs, run_id, Phase.FINISHED)
        assert await runs.find(run_id) == calm
    assert await proposals(ports, run_id) == await proposals(calm_ports, run_id)
    postponed = {
        one.event.payload.job_id async for one in ports.log.read(run_id) if isinstance(one.event.payload, JobPostponed)
    }
    assert postponed
    for job_id in postponed:
        stored, _ = await ports.kv.get("results", job_id) or (b"", 0)
        assert isinstance(codec.decode(Event, stored).payload, CandidateMerged), "no lack is the result of a job"


async def test_when_its_hours_are_over_a_run_ends_with_the_best_so_far(ports: Ports) -> None:
    async with workers(ports, answer), selector(ports) as runs:
        run_id = await runs.start(make_request(evaluations=100_000, hours=1.5), "one")
        async with asyncio.timeout(30):
            while len(await proposals(ports, run_id)) < 20:
                await asyncio.sleep(0.02)
        assert (await runs.find(run_id)).phase is Phase.RUNNING
        assert isinstance(ports.clock, MemoryClock)
        ports.clock.advance(1.5 * 3600 + 1)
        await until(runs, run_id, Phase.FINISHED)
        ends = [one.event.payload async for one in ports.log.read(run_id)]
        assert [end.reason for end in ends if isinstance(end, SearchEnded)] == ["hours"]
        assert (await runs.find(run_id)).champion_digest


async def test_cancel_ends_at_once_and_is_in_the_log(ports: Ports) -> None:
    async with workers(ports, answer), selector(ports) as runs:
        run_id = await runs.start(make_request(evaluations=2000), "one")
        await runs.cancel(run_id, finish=False, reason="enough")
        await until(runs, run_id, Phase.CANCELLED)
        events = [one.event.payload async for one in ports.log.read(run_id)]
        assert RunCancelled(reason="enough") in events
        with pytest.raises(NotFound):
            await runs.find("run-unknown")
