"""The live page: rendered here, brought up to date in the browser by server-sent events. Read-only."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog
from aiohttp import web

from evomerge_common.errors import EvoMergeException, NotFound
from evomerge_report.report import STYLE, environment
from evomerge_reporter.curve import curve_svg
from evomerge_reporter.follower import Follower
from evomerge_reporter.queries import Queries
from evomerge_reporter.reports import Reports

log = structlog.get_logger(__name__)
_HERE = Path(__file__).parent
_REPORT_FILES = re.compile(r"(report/)?[a-z_]+\.(html|png|svg|json|jsonl)")
_POLICY = (
    "default-src 'none'; img-src 'self'; connect-src 'self'; script-src 'self'; style-src 'self'{extra}; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Page:
    """Runs, one run, its report.

    On a loopback address only requests for a loopback name are answered, so that no foreign web page reads along by
    giving its own name that address (DNS rebinding). On another address whoever reaches it may read it.
    """

    def __init__(self, address: str, queries: Queries, reports: Reports, follower: Follower) -> None:
        host, _, port = address.rpartition(":")
        self._host, self._port = host.strip("[]"), int(port)
        self._queries = queries
        self._reports = reports
        self._follower = follower
        self._templates = environment(_HERE / "templates")
        self._templates.globals |= {"moment": _moment}
        self._stop = asyncio.Event()
        self.port = 0
        """Where it listens, once it does."""

    async def serve(self, stop: asyncio.Event) -> None:
        """Serves the page until `stop`."""
        self._stop = stop
        runner = web.AppRunner(self.application(), access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        try:
            site = web.TCPSite(runner, self._host, self._port)
            await site.start()
            self.port = runner.addresses[0][1]
            log.info("page", url=f"http://{self._host}:{self.port}/")
            await stop.wait()
        finally:
            await runner.cleanup()

    def application(self) -> web.Application:
        """Returns the routes."""
        application = web.Application(middlewares=[self._guard], client_max_size=1024)
        application.add_routes(
            [
                web.get("/", self._runs),
                web.get("/healthz", self._health),
                web.get("/changes", self._changes),
                web.get("/runs/{run}", self._run),
                web.get("/runs/{run}/files/{file:.+}", self._report),
                web.get("/static/style.css", self._style),
                web.static("/static", _HERE / "static"),
            ]
        )
        return application

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if _is_loopback(self._host) and not _is_loopback(request.url.host or ""):
            raise web.HTTPForbidden(text="This page answers on a loopback name only.\n")
        try:
            response = await handler(request)
        except NotFound as error:
            response = web.Response(status=404, text=f"{error}\n")
        except EvoMergeException as error:
            log.warning("page", path=request.path, error=str(error))
            response = web.Response(status=503, text=f"{error}\n")
        if not response.prepared:
            inline = " 'unsafe-inline'" if "/files/" in request.path else ""  # a report carries its style with it
            response.headers["Content-Security-Policy"] = _POLICY.format(extra=inline)
            response.headers["X-Content-Type-Options"] = "nosniff"
            response.headers["Referrer-Policy"] = "no-referrer"
            response.headers["Cache-Control"] = "no-cache" if request.path.startswith("/static/") else "no-store"
        return response

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _style(self, _: web.Request) -> web.FileResponse:
        return web.FileResponse(STYLE)

    async def _runs(self, request: web.Request) -> web.Response:
        return self._html(request, "runs", runs=self._queries.runs(), title="runs")

    async def _run(self, request: web.Request) -> web.Response:
        run = self._queries.run(request.match_info["run"])
        models = self._queries.models(run.run_id)
        curve = curve_svg(
            self._queries.curve(run.run_id), self._queries.estimates(run.run_id), population=run.population
        )
        return self._html(
            request, "run", title=run.run_id, run=run, curve=curve,
            leaderboard=self._queries.leaderboard(run.run_id), sources=self._queries.sources(run.run_id), models=models,
            stopped=self._queries.stopped(run.run_id),
            champion=self._queries.candidate(run.run_id, run.champion), failures=self._queries.failures(run.run_id),
            recipe=self._queries.recipe(run.run_id, run.champion),
        )  # fmt: skip

    def _html(self, request: web.Request, name: str, **values: Any) -> web.Response:
        """The whole page, or with ?part only what changes."""
        part = self._templates.get_template(f"{name}.html").render(**values)
        if "part" not in request.query:
            part = self._templates.get_template("base.html").render(title=values["title"], main=part)
        return web.Response(text=part, content_type="text/html")

    async def _changes(self, request: web.Request) -> web.StreamResponse:
        """Server-sent events: one whenever the log has moved, twice a second at most."""
        response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream",
                "Cache-Control": "no-store",
                "X-Content-Type-Options": "nosniff",
            }
        )
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while not self._stop.is_set():
                moved = await self._follower.changed(15.0)
                await response.write(b"data: changed\n\n" if moved else b": still here\n\n")
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stop.wait(), 0.5)
        return response

    async def _report(self, request: web.Request) -> web.StreamResponse:
        run, file = request.match_info["run"], request.match_info["file"]
        if not _REPORT_FILES.fullmatch(file):
            raise NotFound(f"a report has no file {file!r}")
        path = await self._reports.folder(run) / file
        if not path.is_file():
            raise NotFound(f"a report has no file {file!r}")
        return web.FileResponse(path)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC") if seconds else ""
