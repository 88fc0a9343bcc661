"""Streams that must end before they are done."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, TypeVar

T = TypeVar("T")


async def until(stream: AsyncIterator[T], ended: asyncio.Future[Any]) -> AsyncGenerator[T, None]:
    """Yields the stream's items until it is over or `ended` is done; then closes it, whatever it was waiting for.

    Close this iterator itself (`contextlib.aclosing`) when leaving it early.
    """
    step: asyncio.Future[T] | None = None
    try:
        while not ended.done():
            step = asyncio.ensure_future(anext(stream))
            await asyncio.wait({step, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not step.done():
                return
            try:
                item = step.result()
            except StopAsyncIteration:
                return
            yield item
    finally:
        if step is not None and not step.done():  # also when whoever reads this is cancelled
            step.cancel()
            with contextlib.suppress(asyncio.CancelledError, StopAsyncIteration):
                await step
        close = getattr(stream, "aclose", None)
        if close is not None:
            await close()
