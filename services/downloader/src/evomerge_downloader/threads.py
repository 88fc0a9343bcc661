"""Blocking work beside the event loop, in threads that never hold up the end of the process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def in_daemon_thread(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Runs it in a thread of its own; when the caller is cancelled the thread goes on, and its result is dropped.

    `asyncio.to_thread` would do but for the end: its threads are joined when the interpreter exits, so a download of
    many minutes would outlive SIGTERM.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def deliver(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result)  # type: ignore[arg-type]  # T may be None itself
        else:
            future.set_exception(error)

    def work() -> None:
        result: T | None = None
        problem: BaseException | None = None
        try:
            result = function(*args, **kwargs)
        except Exception as error:
            problem = error
        if not loop.is_closed():
            loop.call_soon_threadsafe(deliver, result, problem)

    threading.Thread(target=work, name=getattr(function, "__name__", "work"), daemon=True).start()
    return await future
