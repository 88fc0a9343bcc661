"""The reporter over a log in memory: API, page, report on demand; and its size at rest."""

import asyncio
import dataclasses
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest

from evomerge.v1 import reporter_pb2, reporter_pb2_grpc
from evomerge_common.domain import messages as m
from evomerge_common.ports import Recorded
from evomerge_common.runtime.grpc_server import GrpcServer
from evomerge_common.runtime.ports_factory import Ports, memory_ports
from evomerge_common.runtime.settings import Settings
from evomerge_reporter.bootstrap import bootstrap
from helpers import synthetic_log


class Stage:
    """A running reporter."""

    def __init__(self, ports: Ports, channel: grpc.aio.Channel, url: str) -> None:
        self.ports, self.url = ports, url
        self.api = reporter_pb2_grpc.ReporterServiceStub(channel)
        self._last: dict[str, int] = {}

    async def tell(self, events: list[Recorded]) -> None:
        suite = synthetic_log.suite().to_json().encode()
        uri = self.ports.artifacts.put("suites/demo.json", suite)
        for recorded in events:
            event = recorded.event
            if isinstance(event.payload, m.RunStarted):
                event = dataclasses.replace(event, payload=dataclasses.replace(event.payload, suite_uri=uri))
            if event.is_result:
                await self.ports.log.append_result(event, message_id=f"{event.run_id} {recorded.sequence}")
            else:
                expected = self._last.get(event.run_id, 0)
                self._last[event.run_id] = await self.ports.log.append_decision(event, expected_last=expected)


@pytest.fixture
async def stage(tmp_path: Path, unused_tcp_port: int) -> AsyncIterator[Stage]:
    settings = Settings(state_dir=tmp_path / "state", http_address=f"127.0.0.1:{unused_tcp_port}")
    ports, stop = memory_ports(tmp_path), asyncio.Event()
    service, server = await bootstrap(settings, ports), GrpcServer(settings)
    port = await server.start()
    await server.attach(service.servicers)
    tasks = [asyncio.ensure_future(task(stop)) for task in service.background]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Stage(ports, channel, f"http://127.0.0.1:{unused_tcp_port}")
    stop.set()
    await asyncio.wait_for(asyncio.gather(*tasks), 10)
    await server.stop(0)
    for close in service.closers:
        await close()


async def eventually(check: Any, seconds: float = 10.0) -> Any:
    end = asyncio.get_running_loop().time() + seconds
    while True:
        try:
            return await check()
        except (AssertionError, grpc.aio.AioRpcError, aiohttp.ClientError):
            if asyncio.get_running_loop().time() > end:
                raise
            await asyncio.sleep(0.05)


async def test_api_of_a_finished_run(stage: Stage) -> None:
    await stage.tell(synthetic_log.events())

    async def ended() -> Any:
        found = await stage.api.GetReport(reporter_pb2.GetReportRequest(run_id="run-1"), timeout=60)
        assert found.uri
        return found

    report = await eventually(ended)
    result = json.loads(report.result_json)
    assert result["improvement"]["improved"]
    folder = stage.ports.artifacts.open(report.uri)
    assert (folder / "report" / "fitness_plot.png").is_file()
    board = await stage.api.GetLeaderboard(reporter_pb2.GetLeaderboardRequest(run_id="run-1", limit=3))
    assert [entry.rank for entry in board.entries] == [1, 2, 3]
    assert board.entries[0].recipe_digest == result["champion"]["recipe_digest"]
    assert {score.task for score in board.entries[0].scores} == set(synthetic_log.TASKS)
    lineage = await stage.api.GetLineage(reporter_pb2.GetLineageRequest(run_id="run-1"))
    assert lineage.nodes[0].recipe_digest == result["champion"]["recipe_digest"]
    assert list(lineage.nodes[0].parents) == result["champion"]["parents"]


async def test_api_errors_are_typed(stage: Stage) -> None:
    for call, request in (
        (stage.api.GetReport, reporter_pb2.GetReportRequest(run_id="*")),
        (stage.api.GetLeaderboard, reporter_pb2.GetLeaderboardRequest(run_id="none")),
        (stage.api.GetLineage, reporter_pb2.GetLineageRequest(run_id="")),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(request, timeout=10)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_page_follows_a_run(stage: Stage) -> None:
    log = synthetic_log.events()
    await stage.tell(log[:60])
    async with aiohttp.ClientSession(stage.url) as browser:

        async def page(path: str, *words: str) -> str:
            async with browser.get(path) as answer:
                assert answer.status == 200
                policy = answer.headers["Content-Security-Policy"]
                # A report carries its scripts: it runs apart from the page, without its cookies and its API.
                assert ("; sandbox allow-scripts" if "/files/" in path else "script-src 'self';") in policy
                assert ("allow-same-origin" in policy, "default-src 'none'" in policy) == (False, True)
                text = await answer.text()
            assert all(word in text for word in words)
            return text

        async def view(path: str, status: str) -> Any:
            async with browser.get(path) as answer:
                assert answer.status == 200
                found = await answer.json()
            assert (found["runs"][0] if "runs" in found else found["run"])["status"] == status
            return found

        await eventually(lambda: view("/api/runs", "running"))
        before = await view("/api/runs/run-1", "running")
        for path in ("/", "/runs/run-1", "/compare"):
            assert "run-1" not in await page(path, "page.js"), "a shell: what it shows is fetched"
        async with browser.get(f"/api/changes?run=run-1&since={before['sequence']}") as changes:
            reading = asyncio.ensure_future(changes.content.readline())
            await asyncio.sleep(0)
            await eventually(lambda: page("/healthz"))
            await stage.tell(log[60:])
            line = await asyncio.wait_for(reading, 10)
            assert line.startswith(b"id: ")
            assert int(line[4:]) > before["sequence"]
        after = await eventually(lambda: view("/api/runs/run-1", "finished"))
        assert "<arithmetic>" in after["failures"][0]["message"]
        later = await view(f"/api/runs/run-1?since={before['sequence']}", "finished")
        known = {row[0]: row for row in before["candidates"]["rows"]}
        assert [*(known | {row[0]: row for row in later["candidates"]["rows"]}).values()] == after["candidates"]["rows"]
        assert len(later["candidates"]["rows"]) < len(after["candidates"]["rows"])
        async with browser.get(
            "/api/runs/run-1?since=0", headers={"If-None-Match": f'"{after["sequence"]}-0"'}
        ) as same:
            assert (same.status, await same.read()) == (304, b"")
        report = await page("/runs/run-1/files/report/index.html", "The champion improved")
        assert "fitness_plot.png" in report
        for path, status in (
            ("/runs/none", 404),
            ("/api/runs/none", 404),
            ("/api/runs/run-1?since=-1", 400),
            ("/static/..%2f..%2freport.py", 404),
            ("/runs/run-1/files/report/none.png", 404),
            ("/runs/run-1/files/..%2f..%2fstate%2freporter.db", 404),
        ):
            async with browser.get(path) as answer:
                assert answer.status == status, path
        async with browser.get("/", headers={"Host": "rebound.example"}) as answer:
            assert answer.status == 403
        for host, status in (("127.0.0.1:99999", 400), ("127.0.0.1:port", 400), ("a b", 400), ("<b>", 400)):
            async with browser.get("/", headers={"Host": host}) as answer:
                assert (answer.status, host in await answer.text()) == (status, False)
        for origin, status in ((None, 403), ("null", 403), ("http://rebound.example", 403), (stage.url, 405)):
            async with browser.post("/", headers={"Origin": origin} if origin else {}) as answer:
                assert answer.status == status


_MEASURE = """
import asyncio, re, sys, pathlib, tempfile
import evomerge_{name}.__main__
from evomerge_{name}.bootstrap import bootstrap
from evomerge_common.runtime.grpc_server import GrpcServer
from evomerge_common.runtime.ports_factory import memory_ports
from evomerge_common.runtime.settings import Settings
import nats, evomerge_common.adapters.nats
async def main():
    folder = pathlib.Path(tempfile.mkdtemp())
    settings = Settings(state_dir=folder, http_address="127.0.0.1:0", model_store=folder / "models")
    service, server, stop = await bootstrap(settings, memory_ports(folder)), GrpcServer(settings), asyncio.Event()
    await server.start()
    await server.attach(service.servicers)
    tasks = [asyncio.ensure_future(task(stop)) for task in service.background]
    await asyncio.sleep(0.5)
    rss = int(re.search(r"VmRSS:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) / 1000
    print(rss, *[name for name in ("torch", "matplotlib", "numpy", "huggingface_hub") if name in sys.modules])
    stop.set()
    await asyncio.gather(*tasks)
    await server.stop(0)
asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("name", ["reporter", "downloader"])
def test_small_at_rest(name: str) -> None:
    code = _MEASURE.replace("{name}", name)
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    megabytes, *heavy = done.stdout.splitlines()[-1].split()
    assert heavy == []
    assert float(megabytes) <= 120
