"""From a bootstrap function to a process: start, wait, stop in the right order."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar
from wsgiref.simple_server import WSGIServer

import grpc
import structlog

from evomerge_common import __version__
from evomerge_common.errors import EvoMergeException
from evomerge_common.runtime.grpc_server import GrpcServer
from evomerge_common.runtime.logging import setup_logging
from evomerge_common.runtime.ports_factory import Ports, connect_ports, store_folders
from evomerge_common.runtime.settings import Settings
from evomerge_common.runtime.tracing import start_tracing
from evomerge_common.runtime.worker import Worker

T = TypeVar("T")

CANCEL_SECONDS = 1.0
"""What is under way has this long to take a cancellation; then it is left behind."""
CLOSE_SECONDS = 10.0
"""What a service may take to stop beside draining its workers (`drain_timeout`) and its calls (`shutdown_grace`)."""
EXIT_SECONDS = 2.0
"""What the interpreter may take to end after the service has stopped."""


@dataclass
class Service:
    """What a bootstrap function puts together.

    Attributes:
        servicers: full service name ("evomerge.v1.MergerService") and what adds it to a server:
            `lambda server: add_MergerServiceServicer_to_server(api, server)`.
        background: run until their event is set; one that raises ends the service with exit code 1.
        closers: awaited at the very end, before the ports close (`child.close` wrapped in a coroutine, …).

    """

    name: str
    servicers: list[tuple[str, Callable[[grpc.aio.Server], None]]] = field(default_factory=list)
    workers: list[Worker] = field(default_factory=list)
    background: list[Callable[[asyncio.Event], Awaitable[None]]] = field(default_factory=list)
    closers: list[Callable[[], Awaitable[None]]] = field(default_factory=list)


Bootstrap = Callable[[Settings, Ports], Awaitable[Service]]


def run_service(
    name: str, bootstrap: Callable[..., Awaitable[Service]], *, early: Callable[[Settings], object] | None = None
) -> int:
    """Runs a service until SIGTERM or SIGINT; returns the exit code. A second signal ends it at once.

    A signal ends it within seconds at any moment of its life: what waits for something gives up, and what does not
    let go is left behind.

    `early` begins what takes long while the broker is waited for; what it returns is `bootstrap`'s third argument.
    """
    try:
        settings = Settings.from_env(service=name)
    except EvoMergeException as error:
        sys.stderr.write(f"evomerge-{name}: {error}\n")
        return 2
    setup_logging(name, settings)
    try:
        end_tracing = start_tracing(name, settings)
    except EvoMergeException as error:
        sys.stderr.write(f"evomerge-{name}: {error}\n")
        return 2
    log = structlog.get_logger("evomerge.service")
    begun = () if early is None else (early(settings),)

    async def life() -> int:
        code = 1
        try:
            code = await serve(name, settings, lambda settings, ports: bootstrap(settings, ports, *begun))
        finally:
            end_tracing()
            _end_within(EXIT_SECONDS, code)
        return code

    try:
        return asyncio.run(life())
    except EvoMergeException as error:
        log.error("cannot run", error=str(error), type=type(error).__name__)
        return 1


async def serve(
    name: str, settings: Settings, bootstrap: Bootstrap, *, connect: Callable[..., Awaitable[Ports]] = connect_ports
) -> int:
    """Lives the service's life in a running loop; see `run_service`."""
    log = structlog.get_logger("evomerge.service")
    asked = asyncio.Event()
    _on_signals(asked, log, settings.drain_timeout + settings.shutdown_grace + CLOSE_SECONDS)
    metrics = _start_metrics(name, settings)
    server = GrpcServer(settings)
    port = await server.start()
    _write_port(settings, name, port)
    log.info("listening", grpc_port=port, version=__version__, pid=os.getpid())
    stop = asyncio.Event()
    ports: Ports | None = None
    service = Service(name)
    tasks: list[asyncio.Task[None]] = []
    failed = False
    try:
        ports = await _until(asked, connect(settings, stop=stop, name=name))
        made = None if ports is None else await _until(asked, bootstrap(settings, ports))
        if made is not None:
            service = made
            await server.attach(service.servicers)
            tasks = [asyncio.create_task(w.run(stop), name=f"worker {w.kind}") for w in service.workers]
            tasks += [
                asyncio.create_task(_run(b, stop), name=getattr(b, "__name__", "task")) for b in service.background
            ]
            log.info("serving", services=[n for n, _ in service.servicers], workers=[w.kind for w in service.workers])
            failed = await _watch(asked, tasks, log)
    finally:
        # Order matters (an open stream would burn the whole grace, a worker would fetch what it cannot do):
        await server.not_serving()
        stop.set()
        await _finish(tasks, settings.drain_timeout + 5.0, log)
        await server.stop(settings.shutdown_grace)
        for close in service.closers:
            with contextlib.suppress(Exception):
                await close()
        if ports is not None:
            await ports.close()
        if metrics is not None:
            await asyncio.to_thread(metrics.shutdown)
        log.info("stopped")
    return 1 if failed else 0


async def _run(task: Callable[[asyncio.Event], Awaitable[None]], stop: asyncio.Event) -> None:
    await task(stop)


def _on_signals(asked: asyncio.Event, log: structlog.stdlib.BoundLogger, seconds: float) -> None:
    loop = asyncio.get_running_loop()

    def on_signal(number: signal.Signals) -> None:
        if asked.is_set():
            os._exit(128 + number)
        log.info("stopping", signal=number.name)
        asked.set()
        loop.call_later(seconds, give_up)

    def give_up() -> None:
        log.error("could not stop in time, so it ends as it is", seconds=seconds)
        os._exit(1)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)


def _end_within(seconds: float, code: int) -> None:
    """Ends the process, if it has not ended by then: a thread that waits for a name server holds an interpreter up."""
    timer = threading.Timer(seconds, os._exit, (code,))
    timer.daemon = True
    timer.start()


async def _until(asked: asyncio.Event, work: Awaitable[T]) -> T | None:
    """The result of `work`, or None when the service was asked to stop first."""
    task = asyncio.ensure_future(work)
    waiting = asyncio.create_task(asked.wait())
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=CANCEL_SECONDS)
        if task.done() and not task.cancelled():
            task.exception()  # it is known that it failed
        return None
    return task.result()


async def _watch(asked: asyncio.Event, tasks: list[asyncio.Task[None]], log: structlog.stdlib.BoundLogger) -> bool:
    """Waits for the signal; tells whether a task failed before it."""
    waiting = asyncio.create_task(asked.wait())
    left: set[asyncio.Task[object]] = {waiting, *tasks}
    while not asked.is_set():
        done, left = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
        for task in done - {waiting}:
            if (error := task.exception()) is not None:
                log.error("a part of the service failed, so it ends", task=task.get_name(), exc_info=error)
                waiting.cancel()
                return True
    return False


async def _finish(tasks: list[asyncio.Task[None]], seconds: float, log: structlog.stdlib.BoundLogger) -> None:
    if not tasks:
        return
    _, slow = await asyncio.wait(tasks, timeout=seconds)
    for task in slow:
        log.warning("had to be cut", task=task.get_name())
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _start_metrics(name: str, settings: Settings) -> WSGIServer | None:
    if not settings.metrics_address:
        return None
    from evomerge_common.runtime.metrics import start_metrics_server, watch_disks

    watch_disks(store_folders(settings))
    _, server = start_metrics_server(name, __version__, settings.metrics_address)
    return server


def _write_port(settings: Settings, name: str, port: int) -> None:
    """`<state_dir>/<name>.port` tells whoever started a service on port 0 where it listens."""
    if settings.grpc_address.endswith(":0"):
        folder = Path(settings.state_dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.port").write_text(f"{port}\n")
