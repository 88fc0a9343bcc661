"""Real selector processes on a real broker: of two one is fenced off, and kills change no proposal."""

from __future__ import annotations

import asyncio
import json
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from unit.selector.simulation import SUITE, answer

from evomerge.v1 import selector_pb2, selector_pb2_grpc
from evomerge_cli.stack.broker import Broker
from evomerge_common.domain.messages import JOB_KINDS, TERMINAL, CandidateProposed, Event, RunFinished
from evomerge_common.errors import Unavailable
from evomerge_common.ports import Recorded
from evomerge_common.runtime.grpc_server import client_channel
from evomerge_common.runtime.ports_factory import Ports, connect_ports
from evomerge_common.runtime.settings import Settings
from support import assert_eventually, python_process

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

SPEC = {"models": ["org/a", "org/b", "org/c"], "base": "org/base", "suite": SUITE, "seed": 5}


@asynccontextmanager
async def workers(ports: Ports, each: int) -> AsyncIterator[None]:
    over = asyncio.Event()

    async def work(kind: str) -> None:
        # Python 3.11's wait_for may swallow a cancellation that meets its answer, so the loop has an end of its own.
        while not over.is_set():
            try:
                delivery = await ports.queue.fetch(kind, 2.0)
                if delivery:
                    event = Event(run_id=delivery.job.run_id, payload=answer(delivery.job))
                    await ports.log.append_result(event, message_id=delivery.job.job_id)
                    await delivery.ack()
            except Unavailable:
                continue

    tasks = [asyncio.create_task(work(kind)) for kind in JOB_KINDS.values() for _ in range(each)]
    try:
        yield
    finally:
        over.set()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Bench:
    """A broker's ports, and selectors that come and go."""

    def __init__(self, broker: Broker, folder: Path) -> None:
        self.folder = folder
        self.settings = Settings(nats_url=broker.url, artifact_store=str(folder / "artifacts"))

    def selector(self, name: str) -> Any:
        cwd = self.folder / name
        cwd.mkdir(exist_ok=True)
        state = {"EVOMERGE_STATE_DIR": str(cwd), "EVOMERGE_GRPC_ADDRESS": "127.0.0.1:0"}
        state["EVOMERGE_METRICS_ADDRESS"] = f"127.0.0.1:{free_port()}"
        return python_process("evomerge_selector", self.settings, cwd=cwd, **state)

    async def start_run(self, name: str, evaluations: int, request_id: str) -> str:
        """Through the API of the selector of that name."""
        file = self.folder / name / "selector.port"
        await assert_eventually(lambda: file.exists() and file.read_text().endswith("\n"), 90)
        request = selector_pb2.StartRunRequest(
            request_id=request_id, spec=json.dumps({**SPEC, "search": {"evaluations": evaluations}})
        )
        async with client_channel(f"127.0.0.1:{int(file.read_text())}", self.settings) as channel:
            stub = selector_pb2_grpc.SelectorServiceStub(channel)
            found: list[str] = []

            async def started() -> bool:
                try:
                    found.append((await stub.StartRun(request, timeout=20)).run_id)
                except grpc.aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.UNAVAILABLE:
                        raise
                return bool(found)

            await assert_eventually(started, 120)
            return found[0]


async def to_the_end(ports: Ports, run_id: str) -> list[Recorded]:
    events = []
    async for recorded in ports.log.follow(run_id):
        events.append(recorded)
        if isinstance(recorded.event.payload, TERMINAL):
            break
    return events


def proposals(events: list[Recorded]) -> list[tuple[int, str, str]]:
    found = [e.event.payload for e in events]
    return [(p.index, p.recipe_digest, p.operator) for p in found if isinstance(p, CandidateProposed)]


async def test_of_two_selector_processes_one_is_fenced_off_and_no_event_is_doubled(
    nats_server: Broker, tmp_path: Path
) -> None:
    bench = Bench(nats_server, tmp_path)
    ports = await connect_ports(bench.settings)
    with bench.selector("first") as first, bench.selector("second") as second:
        async with workers(ports, each=2):
            # The same run through both: each of them drives it from its first event on.
            ids = await asyncio.gather(*(bench.start_run(name, 150, f"two-{tmp_path}") for name in ("first", "second")))
            assert ids[0] == ids[1]
            events = await to_the_end(ports, ids[0])
            said = "another selector decides this run; standing by"
            fenced = [one.output.read_text().count(said) for one in (first, second)]
    await ports.close()
    assert isinstance(events[-1].event.payload, RunFinished)
    assert sum(fenced) >= 1
    assert [index for index, _, _ in proposals(events)] == list(range(150))
    decisions = Counter(repr(one.event.payload) for one in events if not one.event.is_result)
    assert decisions.most_common(1)[0][1] == 1


async def test_workers_and_kills_change_no_proposal(nats_server: Broker, tmp_path: Path) -> None:
    """One, two and eight workers of a kind; the selector is killed in the midst, twice."""
    bench, found = Bench(nats_server, tmp_path), {}
    ports = await connect_ports(bench.settings)
    for each, kills in ((1, 0), (2, 0), (8, 0), (2, 2)):
        name = f"selector-{each}-{kills}"
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(workers(ports, each=each))
            process = stack.enter_context(bench.selector(name))
            run_id = await bench.start_run(name, 60, f"{name}-{tmp_path}")
            ending = asyncio.create_task(to_the_end(ports, run_id))
            for kill in range(kills):

                async def under_way(run: str = run_id, goal: int = 25 + 15 * kill) -> bool:
                    return len(proposals([one async for one in ports.log.read(run)])) >= goal

                await assert_eventually(under_way, 120)
                process.kill()
                process.wait(10)
                process = stack.enter_context(bench.selector(name))
            found[name] = proposals(await ending)
    await ports.close()
    assert all(one == found["selector-1-0"] for one in found.values())
    assert len(found["selector-1-0"]) == 60
