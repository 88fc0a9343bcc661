"""Who may read the page, and change runs by it: token, cookie, Origin; and the selector behind it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from evomerge_common.domain import messages as m
from evomerge_common.runtime.grpc_server import GrpcServer
from evomerge_common.runtime.ports_factory import Ports, memory_ports
from evomerge_common.runtime.settings import Settings
from evomerge_reporter.access import COOKIE, Access
from evomerge_reporter.bootstrap import bootstrap
from evomerge_selector.bootstrap import bootstrap as bootstrap_selector

TOKEN = "a-secret-token"


@contextlib.asynccontextmanager
async def page(ports: Ports, settings: Settings) -> AsyncIterator[str]:
    """A running reporter; yields its address."""
    service, stop = await bootstrap(settings, ports), asyncio.Event()
    tasks = [asyncio.ensure_future(task(stop)) for task in service.background]
    url = f"http://{settings.http_address}"
    async with aiohttp.ClientSession() as browser:
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                async with browser.get(f"{url}/healthz") as answer:
                    assert answer.status == 200
                    break
            await asyncio.sleep(0.02)
    try:
        yield url
    finally:
        stop.set()
        await asyncio.gather(*tasks)
        for close in service.closers:
            await close()


async def test_a_token_is_asked_for_and_a_cookie_is_enough(tmp_path: Path, unused_tcp_port: int) -> None:
    settings = Settings(state_dir=tmp_path, http_address=f"127.0.0.1:{unused_tcp_port}", token=TOKEN)
    async with page(memory_ports(tmp_path), settings) as url, aiohttp.ClientSession(url) as browser:
        async with browser.get("/", allow_redirects=False) as answer:
            assert (answer.status, answer.headers["Location"]) == (303, "/login")
        for path in ("/api/runs", "/api/changes"):
            async with browser.get(path) as answer:
                assert answer.status == 401
        for header, status in ((f"Bearer {TOKEN}", 200), ("Bearer wrong", 401), (TOKEN, 401), ("Bearer \xff", 401)):
            async with browser.get("/api/runs", headers={"Authorization": header}) as answer:
                assert answer.status == status, header
        for given, origin, status in (("wrong", url, 403), (TOKEN, "http://elsewhere.example", 403), (TOKEN, url, 303)):
            form, headers = {"token": given}, {"Origin": origin}
            async with browser.post("/login", data=form, headers=headers, allow_redirects=False) as answer:
                assert answer.status == status
                cookie = answer.headers.get("Set-Cookie", "")
                assert bool(cookie) == (status == 303)
        assert all(word in cookie for word in ("HttpOnly", "SameSite=Strict", "Path=/"))
        assert TOKEN not in cookie
        value = cookie.partition("=")[2].partition(";")[0]
        expired = f"1.{value.partition('.')[2]}"
        for sent, status in ((value, 200), (value[:-1] + "x", 401), (expired, 401), ("", 401), ("x.y", 401)):
            async with (
                aiohttp.ClientSession(url, cookies={COOKIE: sent}) as other,
                other.get("/api/runs") as answer,
            ):
                assert answer.status == status, sent


def test_an_open_network_without_a_token_may_look_and_no_more() -> None:
    assert Access("127.0.0.1", "").may_control
    assert Access("0.0.0.0", TOKEN).may_control
    assert not Access("0.0.0.0", "").may_control


async def test_the_page_only_reads_unless_it_knows_a_selector(tmp_path: Path, unused_tcp_port: int) -> None:
    settings = Settings(state_dir=tmp_path, http_address=f"127.0.0.1:{unused_tcp_port}")
    async with (
        page(memory_ports(tmp_path), settings) as url,
        aiohttp.ClientSession(url) as browser,
        browser.post("/api/runs/r/pause", headers={"Origin": url}) as answer,
    ):
        assert answer.status == 403
        assert "EVOMERGE_SELECTOR_ADDRESS" in (await answer.json())["error"]


async def test_a_stream_that_begins_at_no_number_is_refused(tmp_path: Path, unused_tcp_port: int) -> None:
    settings = Settings(state_dir=tmp_path, http_address=f"127.0.0.1:{unused_tcp_port}")
    async with page(memory_ports(tmp_path), settings) as url, aiohttp.ClientSession(url) as browser:
        for query, headers in (("?since=x", {}), ("", {"Last-Event-ID": "x"}), ("", {"Last-Event-ID": "-1"})):
            async with browser.get(f"/api/changes{query}", headers=headers) as answer:
                assert answer.status == 400
                assert "expected a number" in (await answer.json())["error"]


async def test_a_run_is_paused_resumed_and_cancelled_from_the_page(tmp_path: Path, unused_tcp_port: int) -> None:
    """Through the real selector."""
    ports, stop = memory_ports(tmp_path), asyncio.Event()
    server_settings = Settings(state_dir=tmp_path / "selector", token=TOKEN)
    server, selector = GrpcServer(server_settings), await bootstrap_selector(server_settings, ports)
    port = await server.start()
    await server.attach(selector.servicers)
    tasks = [asyncio.ensure_future(task(stop)) for task in selector.background]
    settings = Settings(
        state_dir=tmp_path / "reporter", http_address=f"127.0.0.1:{unused_tcp_port}", token=TOKEN,
        selector_address=f"127.0.0.1:{port}",
    )  # fmt: skip
    suite = {
        "tasks": [{"name": "t", "kind": "exact_match", "items": [{"prompt": f"q{i}", "answer": "a"} for i in range(9)]}]
    }
    spec = {"models": ["org/a", "org/b"], "suite": suite, "search": {"evaluations": 10}}
    async with page(ports, settings) as url:
        headers = {"Origin": url, "Authorization": f"Bearer {TOKEN}"}
        async with aiohttp.ClientSession(url, headers=headers) as browser:
            run = await _started(f"127.0.0.1:{port}", settings, spec)

            async def status(wanted: str) -> dict[str, Any]:
                for _ in range(500):
                    async with browser.get(f"/api/runs/{run}") as answer:
                        found = await answer.json()
                    if answer.status == 200 and found["run"]["status"] == wanted:
                        return dict(found)
                    await asyncio.sleep(0.02)
                raise AssertionError(f"never {wanted}: {found}")

            assert (await status("preparing"))["live"]["control"]
            for action, wanted in (("pause", "paused"), ("resume", "running"), ("cancel", "cancelled")):
                async with browser.post(f"/api/runs/{run}/{action}") as answer:
                    assert answer.status == 200, await answer.text()
                await status(wanted)
            for path, code in ((f"/api/runs/{run}/explode", 400), ("/api/runs/none/pause", 404)):
                async with browser.post(path) as answer:
                    assert answer.status == code, await answer.text()
            async with browser.post(f"/api/runs/{run}/pause", headers={"Origin": "http://elsewhere.example"}) as answer:
                assert answer.status == 403
    reasons = [
        one.event.payload.reason async for one in ports.log.read(run) if isinstance(one.event.payload, m.RunCancelled)
    ]
    assert reasons == ["asked on the page"]
    stop.set()
    ports.stop.set()
    await asyncio.gather(*tasks)
    await server.stop(0)
    for close in selector.closers:
        await close()


async def _started(address: str, settings: Settings, spec: dict[str, Any]) -> str:
    from evomerge.v1 import selector_pb2, selector_pb2_grpc
    from evomerge_common.runtime.grpc_server import client_channel

    async with client_channel(address, settings) as channel:
        stub = selector_pb2_grpc.SelectorServiceStub(channel)
        run = await stub.StartRun(selector_pb2.StartRunRequest(request_id="q", spec=json.dumps(spec)))
    return str(run.run_id)


@pytest.mark.parametrize("host", ["[::1]:80", "localhost", "127.0.0.1:1", "LOCALHOST:8080"])
async def test_names_of_this_machine_are_answered(tmp_path: Path, unused_tcp_port: int, host: str) -> None:
    settings = Settings(state_dir=tmp_path, http_address=f"127.0.0.1:{unused_tcp_port}")
    async with (
        page(memory_ports(tmp_path), settings) as url,
        aiohttp.ClientSession(url) as browser,
        browser.get("/api/runs", headers={"Host": host}) as answer,
    ):
        assert answer.status == 200
