"""The connection to NATS that the adapters share: it outlives restarts of the broker, and says what goes wrong."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import nats
import nats.errors
import nats.js.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext

from evomerge_common.errors import BackPressure, EvoMergeException, Fenced, InvalidInput, Unavailable
from evomerge_common.runtime.metrics import NATS_CONNECTED
from evomerge_common.runtime.settings import Settings

T = TypeVar("T")

TRY_SECONDS = 2.0
"""How long one request may take."""
PATIENCE = 20.0
"""How long requests are tried again before they are Unavailable: longer than a restart of the broker takes."""
CONNECT_PATIENCE = 120.0

_FENCED = {10071, 10164}  # wrong last sequence
_FULL = {10077}  # maximum messages exceeded
_PASSING = {10008, 10009, 10023, 10074}  # JetStream or its leader is not there yet; resources short for now
_LOST = (TimeoutError, nats.errors.TimeoutError, nats.errors.NoRespondersError, nats.errors.OutboundBufferLimitError)


class Link:
    """A connection, requests with retries, and loud errors."""

    def __init__(self, settings: Settings, name: str) -> None:
        self.settings = settings
        self.name = name
        self.client = Client()
        self.log = structlog.get_logger("evomerge.nats")
        self.on_reconnect: set[Callable[[], None]] = set()
        """Called when the connection is back: what was asked for before is forgotten on the other side."""
        self._last_error = ""
        self._error_times: dict[str, float] = {}

    @property
    def js(self) -> JetStreamContext:
        """Returns JetStream with short timeouts; call it through `retry`."""
        return self.client.jetstream(timeout=TRY_SECONDS)

    async def connect(self) -> None:
        """Connects; waits for the broker to come up.

        Raises:
            Unavailable: it does not answer, or refuses us.

        """
        settings, started, last_warning = self.settings, time.monotonic(), -3.0
        options: dict[str, Any] = {}
        if settings.nats_user:
            options |= {"user": settings.nats_user, "password": settings.nats_password}
        elif settings.nats_password:
            options |= {"token": settings.nats_password}
        if settings.nats_tls_ca:
            options["tls"] = ssl.create_default_context(cafile=settings.nats_tls_ca)
        connecting = asyncio.create_task(
            self.client.connect(
                servers=[url.strip() for url in settings.nats_url.split(",")],
                name=self.name,
                inbox_prefix=f"_INBOX.{self.name}",
                error_cb=self._on_error,
                disconnected_cb=self._on_disconnect,
                reconnected_cb=self._on_reconnect,
                max_reconnect_attempts=-1,
                reconnect_time_wait=0.2,
                connect_timeout=2,
                ping_interval=10,
                max_outstanding_pings=2,
                **options,
            )
        )
        try:
            while not connecting.done():
                await asyncio.wait({connecting}, timeout=0.25)
                waited = time.monotonic() - started
                if not connecting.done() and waited > last_warning + 5.0:
                    last_warning = waited
                    self.log.warning("waiting for NATS", url=settings.nats_url, seconds=round(waited))
                refused = "authorization" in self._last_error.lower()
                if not connecting.done() and (waited > CONNECT_PATIENCE or refused):
                    raise Unavailable(
                        f"NATS at {settings.nats_url} {'refuses us' if refused else 'does not answer'}: "
                        f"{self._last_error or 'no answer'}; is it running, and are EVOMERGE_NATS_* right?"
                    )
            await connecting
            NATS_CONNECTED.set(1)
        except (OSError, nats.errors.Error) as error:
            raise Unavailable(f"cannot connect to NATS at {settings.nats_url}: {error}") from error
        finally:
            failed = not connecting.done() or connecting.cancelled() or connecting.exception() is not None
            while not connecting.done():  # a cancellation that meets a refused connection is swallowed
                connecting.cancel()
                await asyncio.wait({connecting}, timeout=0.1)
            if failed:
                with contextlib.suppress(Exception):
                    await self.client.close()

    async def close(self) -> None:
        """Sends what is buffered, and leaves."""
        if self.client.is_connected:
            with contextlib.suppress(nats.errors.Error, TimeoutError):
                await self.client.flush(timeout=1)
        with contextlib.suppress(nats.errors.Error, OSError):
            await self.client.close()

    async def retry(self, what: str, action: Callable[[], Awaitable[T]], *, patience: float = PATIENCE) -> T:
        """Does it until it succeeds; `action` must be safe to repeat.

        Raises:
            Unavailable: no answer within `patience` seconds.
            Fenced, BackPressure, InvalidInput, nats' NotFoundError: the answer.

        """
        end, pause = time.monotonic() + patience, 0.05
        while True:
            try:
                return await action()
            except nats.js.errors.NotFoundError:
                raise
            except nats.js.errors.APIError as error:
                passing = error.err_code in _PASSING or (error.code == 503 and error.err_code not in _FULL)
                if not passing:
                    raise _from_api(what, error) from error
                problem: Exception = error
            except (*_LOST, nats.js.errors.NoStreamResponseError) as error:
                problem = error
            except nats.errors.MaxPayloadError as error:
                raise InvalidInput(f"{what}: the message is too large for NATS; put it into an artifact") from error
            except nats.errors.Error as error:
                raise Unavailable(f"{what}: {error or type(error).__name__}") from error
            if time.monotonic() + pause > end or self.client.is_closed:
                hint = "" if self.client.is_connected else " (not connected)"
                raise Unavailable(f"{what}: NATS does not answer{hint}: {problem or type(problem).__name__}")
            await asyncio.sleep(pause)
            pause = min(pause * 2, 1.0)

    async def publish(self, what: str, subject: str, data: bytes, headers: dict[str, str]) -> int:
        """Publishes to a stream, with a message id among the headers so that trying again is safe; its sequence."""

        async def once() -> int:
            ack = await self.js.publish(subject, data, timeout=TRY_SECONDS, headers=dict(headers))
            return int(ack.seq)

        return await self.retry(what, once)

    async def request(self, what: str, subject: str, data: bytes = b"", *, patience: float = PATIENCE) -> Msg:
        """Sends one request and waits for its answer."""
        return await self.retry(
            what, lambda: self.client.request(subject, data, timeout=TRY_SECONDS), patience=patience
        )

    async def api(self, what: str, subject: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Calls the JetStream API."""

        async def once() -> dict[str, Any]:
            data = json.dumps(body).encode() if body else b""
            answer: dict[str, Any] = json.loads(
                (await self.client.request(f"$JS.API.{subject}", data, timeout=TRY_SECONDS)).data
            )
            if "error" in answer:
                nats.js.errors.APIError.from_error(answer["error"])
            return answer

        return await self.retry(what, once)

    async def _on_error(self, error: Exception) -> None:
        self._last_error = str(error) or type(error).__name__
        if time.monotonic() - self._error_times.get(self._last_error, -60.0) > 5.0:
            self._error_times = {self._last_error: time.monotonic()}
            self.log.error("NATS error", error=self._last_error, type=type(error).__name__)

    async def _on_disconnect(self) -> None:
        NATS_CONNECTED.set(0)
        if not self.client.is_closed:
            self.log.warning("connection to NATS lost, reconnecting")

    async def _on_reconnect(self) -> None:
        NATS_CONNECTED.set(1)
        self.log.info("connected to NATS again")
        for call in list(self.on_reconnect):
            call()


def _from_api(what: str, error: nats.js.errors.APIError) -> EvoMergeException:
    if error.err_code in _FENCED:
        return Fenced(f"{what}: {error.description}")
    if error.err_code in _FULL:
        return BackPressure(f"{what}: the work queue is full; wait until workers have done some")
    return Unavailable(f"{what}: {error.description} (JetStream {error.code}, {error.err_code})")
