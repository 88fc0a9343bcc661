"""What the page asks for, as JSON, and the stream that tells it when to ask again."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web

from evomerge_common.errors import InvalidInput
from evomerge_common.ports import JobQueue
from evomerge_report.queries import Queries
from evomerge_report.views.candidate import candidate_view
from evomerge_report.views.run import run_view
from evomerge_report.views.runs import runs_view
from evomerge_reporter.access import Access, is_loopback
from evomerge_reporter.control import Control
from evomerge_reporter.follower import Follower
from evomerge_reporter.suites import Suites
from evomerge_reporter.try_it import TryIt

QUEUES = ("download", "merge", "evaluate", "export")
_SILENCE = 15.0
"""Seconds after which a stream says that it is still there."""
_PAUSE = 0.5
"""Seconds between two events of a stream: at most two a second, however fast the log grows."""


class Api:
    """Reads views from the projection; asks the selector for what changes a run, where both are allowed."""

    def __init__(
        self,
        access: Access,
        queries: Queries,
        follower: Follower,
        queue: JobQueue,
        control: Control,
        suites: Suites,
        try_it: TryIt,
    ) -> None:
        self._access = access
        self._queries = queries
        self._follower = follower
        self._queue = queue
        self._control = control
        self._suites = suites
        self._try_it = try_it
        self.stop = asyncio.Event()
        """Ends the streams."""

    def routes(self) -> list[web.RouteDef]:
        """Returns what is under /api/."""
        return [
            web.get("/api/runs", self._runs),
            web.get("/api/runs/{run}", self._run),
            web.get("/api/runs/{run}/candidates/{digest}", self._candidate),
            web.post("/api/runs/{run}/try", self._try),
            web.post("/api/runs/{run}/{action}", self._act),
            web.get("/api/changes", self._changes),
        ]

    async def _runs(self, request: web.Request) -> web.StreamResponse:
        async def view() -> dict[str, Any]:
            return runs_view(self._queries)

        return await _json(request, str(self._queries.sequence()), view)

    async def _run(self, request: web.Request) -> web.StreamResponse:
        run_id, since = request.match_info["run"], _number(request.query, "since")

        async def view() -> dict[str, Any]:
            depths = {kind: await self._queue.depth(kind) for kind in QUEUES}
            allowed = self._control.is_there and self._access.may_control
            live = {"queues": depths, "control": allowed, "try": self._try_it.is_there and self._access.may_control}
            return {**run_view(self._queries, run_id, since=since), "live": live}

        return await _json(request, f"{self._queries.sequence(run_id)}-{since}", view)

    async def _candidate(self, request: web.Request) -> web.StreamResponse:
        run_id, digest = request.match_info["run"], request.match_info["digest"]

        async def view() -> dict[str, Any]:
            items = await self._suites.items(self._queries.run(run_id))
            return {**candidate_view(self._queries, run_id, digest), "items": items}

        return await _json(request, f"{self._queries.sequence(run_id)}-candidate", view)

    async def _act(self, request: web.Request) -> web.StreamResponse:
        if not (self._control.is_there and self._access.may_control):
            raise web.HTTPForbidden(
                text=json.dumps({"error": "this page only reads; EVOMERGE_SELECTOR_ADDRESS lets it control runs"}),
                content_type="application/json",
            )
        self._queries.sequence(request.match_info["run"])
        await self._control.ask(request.match_info["run"], request.match_info["action"])
        return web.json_response({"done": request.match_info["action"]})

    async def _try(self, request: web.Request) -> web.StreamResponse:
        if not (self._try_it.is_there and self._access.may_control):
            raise web.HTTPForbidden(
                text=json.dumps({"error": "this page puts no prompts; EVOMERGE_EVALUATOR_ADDRESS lets it"}),
                content_type="application/json",
            )
        try:
            asked = await request.json()
        except ValueError as error:
            raise InvalidInput(f"the body is no JSON: {error}") from error
        if not isinstance(asked, dict):
            raise InvalidInput("the body must be an object with a prompt")
        return web.json_response({"answers": await self._try_it.ask(request.match_info["run"], asked)})

    async def _changes(self, request: web.Request) -> web.StreamResponse:
        """Server-sent events: the sequence to which a run (or any) has moved, as id, once for each move."""
        run_id = request.query.get("run", "")
        sent = max(_number(request.query, "since"), _number(request.headers, "Last-Event-ID"))
        if sent > self._queries.sequence(run_id):
            sent = -1  # of another log
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        )
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while not self.stop.is_set():
                sequence = self._queries.sequence(run_id)
                if sequence != sent:
                    sent = sequence
                    data = json.dumps({"run": run_id, "sequence": sequence})
                    await response.write(f"id: {sequence}\nevent: change\ndata: {data}\n\n".encode())
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self.stop.wait(), _PAUSE)
                elif not await self._follower.changed(_SILENCE):
                    await response.write(b": still here\n\n")
        return response


async def _json(request: web.Request, tag: str, view: Callable[[], Awaitable[dict[str, Any]]]) -> web.StreamResponse:
    """The view as JSON; nothing, and nothing gathered, when the browser has it."""
    headers = {"ETag": f'"{tag}"', "Cache-Control": "no-cache, private"}
    if request.headers.get("If-None-Match", "").removeprefix("W/").strip('"') == tag:
        return web.Response(status=304, headers=headers)
    text = json.dumps(await view(), separators=(",", ":"), allow_nan=False)
    response = web.Response(text=text, content_type="application/json", headers=headers)
    if not is_loopback(request.url.host or ""):  # there, packing takes longer than sending
        response.enable_compression()
    return response


def _number(given: Mapping[str, str], name: str) -> int:
    text = given.get(name) or "0"
    if not text.isdecimal() or len(text) > 18:
        raise InvalidInput(f"{name}={text!r}: expected a number")
    return int(text)
