"""The try-it box: one prompt to champion and sources over gRPC, where it is allowed, and within bounds."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import grpc

from evomerge.v1 import evaluator_pb2, evaluator_pb2_grpc
from evomerge_common.errors import ModelNotFound
from evomerge_common.runtime.grpc_server import GrpcServer
from evomerge_common.runtime.ports_factory import Ports, memory_ports
from evomerge_common.runtime.settings import Settings
from helpers import synthetic_log
from helpers.page_server import Growing
from integration.test_page_access import page


class Echo(evaluator_pb2_grpc.EvaluatorServiceServicer):
    """Answers on the wire as an evaluator does; the models themselves are in test_evaluator_service."""

    def __init__(self) -> None:
        self.asked: list[evaluator_pb2.GenerateRequest] = []

    async def Generate(  # noqa: N802 - the proto's name
        self, request: evaluator_pb2.GenerateRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> evaluator_pb2.GenerateResponse:
        self.asked.append(request)
        if request.model.uri.endswith("2"):
            raise ModelNotFound("it has been evicted")
        return evaluator_pb2.GenerateResponse(text=f"<b>{request.prompt}</b>", tokens=2, seconds=0.1)


def finished_run(folder: Path) -> Ports:
    """The ports of a reporter that finds one run's log."""
    ports, events = memory_ports(folder), [one.event for one in synthetic_log.events()]
    log = Growing(iter(events))
    log.tell(len(events))
    ports.log = log  # type: ignore[assignment]
    return ports


async def test_a_prompt_goes_to_champion_and_sources_and_nowhere_where_it_may_not(
    tmp_path: Path, unused_tcp_port: int
) -> None:
    echo = Echo()
    server = GrpcServer(Settings(state_dir=tmp_path / "evaluator"))
    port = await server.start()
    add = evaluator_pb2_grpc.add_EvaluatorServiceServicer_to_server
    await server.attach([("evomerge.v1.EvaluatorService", lambda made: add(echo, made))])
    address = f"127.0.0.1:{unused_tcp_port}"
    without = Settings(state_dir=tmp_path / "a", http_address=address)
    async with page(finished_run(tmp_path), without) as url, aiohttp.ClientSession(url) as browser:
        refused = await browser.post("/api/runs/run-1/try", json={"prompt": "hi"}, headers={"Origin": url})
        assert refused.status == 403, "no evaluator is named"
    settings = Settings(state_dir=tmp_path / "b", http_address=address, evaluator_address=f"127.0.0.1:{port}")
    async with page(finished_run(tmp_path), settings) as url, aiohttp.ClientSession(url) as browser:
        async with browser.post("/api/runs/run-1/try", json={"prompt": "hi"}) as answer:
            assert answer.status == 403, "no Origin"
        headers = {"Origin": url}
        for _ in range(500):
            async with browser.get("/api/runs/run-1") as answer:
                if answer.status == 200 and (found := await answer.json())["run"]["ended"]:
                    break
            await asyncio.sleep(0.02)
        assert found["live"]["try"] is True
        for body, status in (
            ({}, 400), ({"prompt": "x" * 4001}, 400), ({"prompt": "x", "tokens": 257}, 400), ({"prompt": 3}, 400),
            ([], 400),
        ):  # fmt: skip
            async with browser.post("/api/runs/run-1/try", json=body, headers=headers) as answer:
                assert answer.status == status, body
        assert echo.asked == []
        asked = {"prompt": "hi", "tokens": 5, "chat": True}
        async with browser.post("/api/runs/run-1/try", json=asked, headers=headers) as answer:
            assert answer.status == 200, await answer.text()
            found = (await answer.json())["answers"]
    assert [one["name"] for one in found] == ["champion", "expert-math", "expert-code", "expert-text"]
    assert found[0]["text"] == "<b>hi</b>"
    assert "evicted" in found[2]["error"]
    assert [(one.max_new_tokens, one.chat) for one in echo.asked] == [(5, True)] * 4
    await server.stop(0)
