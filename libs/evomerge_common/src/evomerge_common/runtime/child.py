"""CPU work in a process of its own: the event loop never blocks, and the service itself never imports torch."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.util import Finalize
from typing import Any, TypeVar

import structlog

from evomerge_common.errors import DeadlineExceeded, EvoMergeException, WorkerCrashed
from evomerge_common.runtime import fork_server, spans
from evomerge_common.runtime.parent import end_with_parent

T = TypeVar("T")


class ChildProcess:
    """One process, started at the first call, that runs functions one at a time; calls queue up.

    Functions and arguments are picklable: functions of a module, not closures. State lives in the modules that the
    child imports (`initializer` sets it up) and is lost when the child dies.

    The child never outlives its parent and never keeps it from ending, whatever either of them is doing: the kernel
    kills it when the thread that runs the parent's event loop ends, and the parent kills it when it exits. Where the
    environment names a fork server (`fork_server`), that one forks the child, and kills it when the parent ends.
    """

    def __init__(self, *, initializer: Callable[..., None] | None = None, initargs: tuple[Any, ...] = ()) -> None:
        self._initializer = initializer
        self._initargs = initargs
        self._process: Any = None
        self._pipe: Connection | None = None
        self._kill: Callable[[], object] = _nothing
        self._lock = asyncio.Lock()
        self._closed = False

    @property
    def pid(self) -> int | None:
        """Returns the process id, when it runs."""
        return self._process.pid if self._runs else None

    @property
    def _runs(self) -> bool:
        return self._process is not None and bool(self._process.is_alive())

    def start(self) -> None:
        """Starts the process ahead of the first call, in the event loop's thread; its initialiser runs meanwhile."""
        if not self._runs:
            self._start()

    async def call(self, function: Callable[..., T], *args: Any, timeout: float | None = None) -> T:
        """Runs `function(*args)` in the child.

        A caller that is cancelled takes the child with it: nothing goes on computing for nobody.

        Raises:
            WorkerCrashed: the process died; the next call starts a new one.
            DeadlineExceeded: `timeout` seconds went by; the process was killed.
            Exception: what the function raised, with the child's traceback as a note.

        """
        async with self._lock:
            if self._closed:
                raise WorkerCrashed("the service stops: its worker process is closed")
            self.start()
            with spans.span(f"child {function.__name__}"):
                context = structlog.contextvars.get_contextvars(), spans.here()
                future = _in_thread(self._exchange, function, args, context)
                try:
                    ok, value = await asyncio.wait_for(asyncio.shield(future), timeout)
                except TimeoutError as error:
                    await self._abandon(future)
                    raise DeadlineExceeded(f"{function.__name__} took longer than {timeout:g} seconds") from error
                except asyncio.CancelledError:
                    await self._abandon(future)
                    raise
                if not ok:
                    raise value
        result: T = value
        return result

    async def _abandon(self, future: asyncio.Future[Any]) -> None:
        if (process := self._process) is not None:
            process.kill()
        await asyncio.wait({future})
        if not future.cancelled():
            future.exception()  # it is known that it failed

    def _exchange(
        self, function: Callable[..., Any], args: tuple[Any, ...], context: tuple[dict[str, Any], spans.Context | None]
    ) -> tuple[bool, Any]:
        process, pipe = self._process, self._pipe
        assert pipe is not None
        try:
            pipe.send((function, args, *context))
            ok, value, found = pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            process.join(5)
            code = process.exitcode
            how = f"killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
            hint = " (out of memory?)" if code == -signal.SIGKILL else ""
            self._process = None  # the next call starts another, even where this one takes its time to go
            raise WorkerCrashed(f"the worker process died in {function.__name__}: {how}{hint}") from error
        spans.pass_on(found)
        return ok, value

    def _start(self) -> None:
        from evomerge_common.runtime.logging import active_logging

        self._kill()  # of one that crashed, there is nothing left to do at the exit
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        args = (self._initializer, self._initargs, active_logging())
        process: Any = fork_server.fork(_child_main, theirs, args)
        if process is None:
            process = context.Process(target=_child_main, args=(theirs, *args, os.getpid()), daemon=True)
            process.start()
        theirs.close()
        self._process = process
        # Before multiprocessing's own way at the exit, which asks with a signal that the child ignores, and waits.
        self._kill = Finalize(self, _end, args=(process,), exitpriority=0)

    def close(self) -> None:
        """Ends the process. No call may follow."""
        self._closed = True
        self._kill()
        if self._pipe is not None:
            self._pipe.close()


def _nothing() -> None:
    """Ends no process: none has been started."""


def _end(process: Any) -> None:
    process.kill()
    process.join(5)


def _in_thread(function: Callable[..., T], *args: Any) -> asyncio.Future[T]:
    """Runs it in a daemon thread: one that waits for a child never keeps this process from ending."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(value: Any, error: BaseException | None) -> None:
        if not future.done():
            future.set_result(value) if error is None else future.set_exception(error)

    def run() -> None:
        value, failed = None, None
        try:
            value = function(*args)
        except BaseException as error:
            failed = error
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle, value, failed)

    threading.Thread(target=run, name="child-process", daemon=True).start()
    return future


def _child_main(
    pipe: Connection, initializer: Callable[..., None] | None, initargs: tuple[Any, ...], log: Any, parent: int
) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # both reach the whole process group; the parent decides
        signal.signal(number, signal.SIG_IGN)
    end_with_parent(parent, signal.SIGKILL)
    if log is not None:
        from evomerge_common.runtime.logging import setup_logging

        setup_logging(*log)
    failed: Exception | None = None
    try:
        if initializer is not None:
            initializer(*initargs)
    except Exception as error:
        failed = _with_note(error)
    while True:
        try:
            function, args, words, context = pipe.recv()
        except EOFError:
            return
        except Exception as error:
            pipe.send((False, _with_note(error), []))
            continue
        found: list[spans.Span] = []
        try:
            if failed is not None:
                raise failed
            # Its log lines say what the caller's say, and its spans are part of the caller's.
            with structlog.contextvars.bound_contextvars(**words), spans.collected(context, found):
                answer: tuple[bool, Any] = (True, function(*args))
        except Exception as error:
            answer = (False, _with_note(error))
        try:
            pipe.send((*answer, found))
        except (BrokenPipeError, ConnectionResetError):
            return
        except Exception as error:
            pipe.send((False, RuntimeError(f"{function.__name__}: cannot send {answer[1]!r} back: {error}"), found))


def _with_note(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    if not isinstance(error, EvoMergeException):
        error.add_note("in the worker process:\n" + "".join(traceback.format_exception(error)))
    return error
