"""A reporter in a process of its own, over a long log that it makes as it goes: what the browser tests look at.

Writes `port N` and waits for lines: `tell N` takes in the next N events (and answers when they are there), `memory`
answers with the megabytes in use.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from evomerge_common.domain import messages as m
from evomerge_common.ports import Recorded
from evomerge_common.runtime.ports_factory import memory_ports
from evomerge_common.runtime.settings import Settings
from evomerge_reporter.bootstrap import bootstrap
from helpers import long_log


class Growing:
    """A log that holds no event: it makes them, as far as it was told."""

    def __init__(self, events: Iterator[m.Event]) -> None:
        self._events = events
        self._last = 0
        self._taken = 0
        self._more = asyncio.Event()

    def tell(self, count: int) -> None:
        self._last += count
        self._more.set()

    async def arrived(self) -> None:
        while self._taken < self._last:
            await asyncio.sleep(0.01)

    async def read(self, run_id: str, *, from_sequence: int = 0) -> AsyncIterator[Recorded]:
        for _ in ():
            yield _

    async def follow(self, run_id: str, *, from_sequence: int = 0) -> AsyncIterator[Recorded]:
        while True:
            for event in itertools.islice(self._events, self._last - self._taken):
                self._taken += 1
                yield Recorded(self._taken, event)
            self._taken = self._last  # the log may end before
            self._more.clear()
            await self._more.wait()

    async def last_sequence(self) -> int:
        return self._last


async def serve(folder: Path, asked: dict[str, Any]) -> None:
    settings = Settings(
        state_dir=folder / "state", http_address="127.0.0.1:0", token=asked.get("token", ""),
        selector_address=asked.get("selector", ""),
    )  # fmt: skip
    ports, stop = memory_ports(folder), asyncio.Event()
    runs = [long_log.events(**one) for one in asked["runs"]]
    log = Growing(itertools.chain(*runs))
    ports.log = log  # type: ignore[assignment]
    service = await bootstrap(settings, ports)
    tasks = [asyncio.ensure_future(task(stop)) for task in service.background]
    page = next(task.__self__ for task in service.background if task.__qualname__ == "Page.serve")  # type: ignore[attr-defined]
    while not page.port:
        await asyncio.sleep(0.01)
    print("port", page.port, flush=True)
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := (await reader.readline()).decode().split():
        if line[0] == "tell":
            log.tell(int(line[1]))
            await log.arrived()
            print("told", flush=True)
        else:
            found = re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())
            print("memory", int(found[1]) / 1000 if found else 0, flush=True)
    stop.set()
    await asyncio.gather(*tasks)
    for close in service.closers:
        await close()


class PageServer:
    """The process; use as a context manager."""

    def __init__(self, folder: Path, *runs: dict[str, Any], **more: str) -> None:
        command = [sys.executable, "-m", "helpers.page_server", str(folder), json.dumps({"runs": runs, **more})]
        self._log = (folder / "server.log").open("w")
        self._process = subprocess.Popen(
            command, cwd=Path(__file__).parents[1], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
            text=True,
        )  # fmt: skip
        self.url = f"http://127.0.0.1:{self._answer('port')}"

    def tell(self, count: int) -> None:
        self._ask(f"tell {count}")
        self._answer("told")

    def memory(self) -> float:
        self._ask("memory")
        return float(self._answer("memory"))

    def _ask(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def _answer(self, word: str) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(word):
                return line.removeprefix(word).strip()
        raise AssertionError(f"the server ended: {Path(self._log.name).read_text()[-2000:]}")

    def __enter__(self) -> PageServer:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        self._process.stdout.close()
        self._log.close()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), json.loads(sys.argv[2])))
