"""Real selector processes on a real broker: of two one is fenced off, and kills change no proposal."""

from __future__ import annotations

import asyncio
import json
import socket
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import grpc
import pytest

from evomerge.v1 import selector_pb2, selector_pb2_grpc
from evomerge_cli.stack.broker import Broker
from evomerge_common.domain.messages import TERMINAL, CandidateProposed, Event, RunFinished
from evomerge_common.ports import EventLog, Recorded
from evomerge_common.runtime.grpc_server import client_channel
from evomerge_common.runtime.ports_factory import Ports, connect_ports
from evomerge_common.runtime.settings import Settings
from evomerge_selector.fake_workers import workers
from helpers.simulation import SUITE, answer
from helpers.support import assert_eventually, python_process

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

SPEC = {"models": ["org/a", "org/b", "org/c"], "base": "org/base", "suite": SUITE, "seed": 5}


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

    async def start_run(self, name: str, search: dict[str, Any], request_id: str) -> str:
        """Through the API of the selector of that name."""
        file = self.folder / name / "selector.port"
        await assert_eventually(lambda: file.exists() and file.read_text().endswith("\n"), 90)
        request = selector_pb2.StartRunRequest(request_id=request_id, spec=json.dumps({**SPEC, "search": search}))
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
        async with workers(ports, answer, each=2):
            # The same run through both: each of them drives it from its first event on.
            search = {"evaluations": 150}
            started = (bench.start_run(name, search, f"two-{tmp_path}") for name in ("first", "second"))
            ids = await asyncio.gather(*started)
            assert ids[0] == ids[1]
            events = await to_the_end(ports, ids[0])
            said = "another selector decides this run; standing by"
            fenced = [one.output.read_text().count(said) for one in (first, second)]
    await ports.close()
    assert isinstance(events[-1].event.payload, RunFinished)
    assert sum(fenced) >= 1
    assert [index for index, _, _ in proposals(events)] == list(range(150))
    assert Counter(repr(one.event.payload) for one in events).most_common(1)[0][1] == 1


class Disorder:
    """A log to which results come late, in another order, and one in three of them again at some later time."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._rng = Random(1)
        self._told: list[Event] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    async def append_result(self, event: Event, *, message_id: str) -> int:
        await asyncio.sleep(self._rng.uniform(0.0, 0.05))
        sequence = await self._log.append_result(event, message_id=message_id)
        self._told.append(event)
        if self._rng.random() < 0.3:  # as a worker does that never heard of its result's arrival
            again = self._rng.choice(self._told)
            await self._log.append_result(again, message_id=f"again-{len(self._told)}-{again.run_id}")
        return sequence


@pytest.mark.parametrize("strategy", ["tournament", "cmaes"])  # cmaes: asked all its questions again after a kill
async def test_workers_and_kills_change_no_proposal(nats_server: Broker, tmp_path: Path, strategy: str) -> None:
    """One, two and eight workers of a kind, results late and doubled; the selector is killed in the midst, twice."""
    bench, found = Bench(nats_server, tmp_path), {}
    ports = await connect_ports(bench.settings)
    search = {"strategy": strategy, "evaluations": 60}
    for each, wild, kills in ((1, False, 0), (2, False, 0), (8, True, 0), (2, True, 2)):
        name = f"{strategy}-{each}-{kills}"
        heard = replace(ports, log=Disorder(ports.log)) if wild else ports
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(workers(heard, answer, each=each))
            process = stack.enter_context(bench.selector(name))
            run_id = await bench.start_run(name, search, f"{name}-{tmp_path}")
            ending = asyncio.create_task(to_the_end(ports, run_id))
            for kill in range(kills):

                async def under_way(run: str = run_id, goal: int = 25 + 15 * kill) -> bool:
                    return len(proposals([one async for one in ports.log.read(run)])) >= goal

                await assert_eventually(under_way, 120)
                process.kill()
                process.wait(10)
                process = stack.enter_context(bench.selector(name))
            events = await ending
            found[name] = (proposals(events), events[-1].event.payload)
            results = Counter(repr(one.event.payload) for one in events if one.event.is_result)
            assert (results.most_common(1)[0][1] > 1) == wild
    await ports.close()
    calm = found[f"{strategy}-1-0"]
    assert all(one == calm for one in found.values())
    assert len(calm[0]) == 60
    assert isinstance(calm[1], RunFinished)
