"""Streams that must end before they are done."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

from evomerge_common.runtime.streams import until


class Endless:
    """Three items, then silence; tells whether it was closed."""

    closed = False

    async def items(self) -> AsyncIterator[int]:
        try:
            for item in range(3):
                yield item
            await asyncio.Event().wait()
        finally:
            self.closed = True


async def test_a_silent_stream_ends_and_is_closed_when_the_signal_comes() -> None:
    source, stop = Endless(), asyncio.Event()
    ended = asyncio.ensure_future(stop.wait())
    asyncio.get_running_loop().call_later(0.05, stop.set)
    async with asyncio.timeout(5):
        assert [item async for item in until(source.items(), ended)] == [0, 1, 2]
    assert source.closed


async def test_leaving_early_closes_the_stream() -> None:
    source, ended = Endless(), asyncio.get_running_loop().create_future()
    async with aclosing(until(source.items(), ended)) as stream:
        assert await anext(stream) == 0
    assert source.closed


async def test_a_reader_that_is_cancelled_closes_the_stream() -> None:
    source, ended = Endless(), asyncio.get_running_loop().create_future()

    async def read() -> None:
        async with aclosing(until(source.items(), ended)) as stream:
            async for _ in stream:
                pass

    reading = asyncio.create_task(read())
    await asyncio.sleep(0.05)  # it waits in the stream's silence
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    assert reading.cancelled()
    assert source.closed
