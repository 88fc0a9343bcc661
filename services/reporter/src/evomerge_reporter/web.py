"""The live page: one shell for all of its addresses; scripts fetch what it shows and keep it up to date."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog
from aiohttp import web

from evomerge_common.errors import EvoMergeException, InvalidInput, NotFound
from evomerge_report.page import SCRIPTS, STYLES, asset
from evomerge_report.queries import Queries
from evomerge_report.report import environment
from evomerge_reporter.access import COOKIE, Access
from evomerge_reporter.api import Api
from evomerge_reporter.reports import Reports

log = structlog.get_logger(__name__)
_HERE = Path(__file__).parent
_POLICY = (
    "default-src 'none'; img-src 'self'; connect-src 'self'; script-src 'self'; style-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_REPORT_POLICY = (
    "default-src 'none'; img-src 'self' data:; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; sandbox allow-scripts allow-downloads"
)
"""Of a report, which carries styles and scripts with it: it runs apart from the page and reaches nothing of it."""
_WRONG_SECONDS = 0.5
_MOST_BYTES = 256 * 1024
"""Of a request: a log-in, or a prompt."""
OPEN = ("/healthz", "/login")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Page:
    """Serves the shell, its files, log-in, reports and the API. See `access` for who may see them."""

    def __init__(self, address: str, access: Access, queries: Queries, reports: Reports, api: Api) -> None:
        host, _, port = address.rpartition(":")
        self._host, self._port = host.strip("[]"), int(port)
        self._access = access
        self._queries = queries
        self._reports = reports
        self._api = api
        self._templates = environment(_HERE / "templates")
        self.port = 0
        """Where it listens, once it does."""

    async def serve(self, stop: asyncio.Event) -> None:
        """Serves the page until `stop`."""
        self._api.stop = stop
        runner = web.AppRunner(self.application(), access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        try:
            site = web.TCPSite(runner, self._host, self._port)
            await site.start()
            self.port = runner.addresses[0][1]
            log.info("page", url=f"http://{self._host}:{self.port}/")
            if not self._access.may_control:
                log.warning("whoever reaches this port reads all runs: it listens beyond loopback without a token",
                            what_to_do="set EVOMERGE_TOKEN_FILE, or keep the network private")  # fmt: skip
            await stop.wait()
        finally:
            await runner.cleanup()

    def application(self) -> web.Application:
        """Returns the routes."""
        application = web.Application(middlewares=[self._guard], client_max_size=_MOST_BYTES)
        application.add_routes(
            [
                web.get("/healthz", self._health),
                web.get("/login", self._login_form),
                web.post("/login", self._log_in),
                web.post("/logout", self._log_out),
                web.get("/favicon.ico", self._icon),
                web.get("/static/{name}", self._static),
                web.get("/", self._shell),
                web.get("/compare", self._shell),
                web.get("/runs/{run}", self._run),
                web.get("/runs/{run}/candidates/{digest}", self._run),
                web.get("/runs/{run}/files/{file:.+}", self._report),
                *self._api.routes(),
            ]
        )
        return application

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            response = await self._admitted(request, handler)
        except web.HTTPException as error:
            response = error
        except NotFound as error:
            response = self._refused(request, 404, error)
        except InvalidInput as error:
            response = self._refused(request, 400, error)
        except EvoMergeException as error:
            log.warning("page", path=request.path, error=str(error))
            response = self._refused(request, 503, error)
        if not response.prepared:
            response.headers.setdefault("Content-Security-Policy", _POLICY)
            response.headers["X-Content-Type-Options"] = "nosniff"
            response.headers["Referrer-Policy"] = "same-origin"
            response.headers.setdefault("Cache-Control", "no-store")
        if isinstance(response, web.HTTPException):
            raise response
        return response

    async def _admitted(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self._access.check_origin(request)
        if request.path in OPEN or request.path.startswith("/static/") or self._access.knows(request):
            return await handler(request)
        if request.path.startswith("/api/"):
            return web.json_response({"error": "log in first: this page asks for a token"}, status=401)
        raise web.HTTPSeeOther("/login")

    def _refused(self, request: web.Request, status: int, error: Exception) -> web.StreamResponse:
        if request.path.startswith("/api/"):
            return web.json_response({"error": str(error)}, status=status)
        return self._html(
            "message.html", status=status, title="not found" if status == 404 else "sorry", text=str(error)
        )

    def _html(self, name: str, *, status: int = 200, **values: object) -> web.Response:
        text = self._templates.get_template(name).render(
            scripts=SCRIPTS, styles=STYLES, asks=self._access.asks, **values
        )
        return web.Response(text=text, content_type="text/html", status=status)

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _shell(self, _: web.Request) -> web.Response:
        return self._html("page.html")

    async def _run(self, request: web.Request) -> web.Response:
        self._queries.sequence(request.match_info["run"])  # that there is one
        return self._html("page.html")

    async def _icon(self, _: web.Request) -> web.FileResponse:
        return web.FileResponse(asset("icon.svg"))

    async def _static(self, request: web.Request) -> web.FileResponse:
        return web.FileResponse(asset(request.match_info["name"]), headers={"Cache-Control": "no-cache"})

    async def _login_form(self, _: web.Request) -> web.Response:
        if not self._access.asks:
            raise web.HTTPSeeOther("/")
        return self._html("login.html", wrong=False)

    async def _log_in(self, request: web.Request) -> web.StreamResponse:
        if not self._access.asks:
            raise web.HTTPSeeOther("/")
        given = (await request.post()).get("token", "")
        response = web.HTTPSeeOther("/")
        if isinstance(given, str) and self._access.log_in(given, response, secure=request.secure):
            raise response
        await asyncio.sleep(_WRONG_SECONDS)
        return self._html("login.html", status=403, wrong=True)

    async def _log_out(self, _: web.Request) -> web.StreamResponse:
        response = web.HTTPSeeOther("/login")
        response.del_cookie(COOKIE, path="/")
        raise response

    async def _report(self, request: web.Request) -> web.StreamResponse:
        file = await self._reports.file(request.match_info["run"], request.match_info["file"])
        return web.FileResponse(file, headers={"Content-Security-Policy": _REPORT_POLICY})
