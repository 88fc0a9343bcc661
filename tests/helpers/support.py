"""What tests of every part use. Import as `from support import assert_eventually`."""

from __future__ import annotations

import asyncio
import inspect
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from evomerge_common.domain.messages import DownloadJob, Job
from evomerge_common.runtime.settings import Settings

Predicate = Callable[[], bool] | Callable[[], Awaitable[bool]]


async def assert_eventually(predicate: Predicate, timeout: float = 10.0, *, every: float = 0.02) -> None:
    """Waits until the predicate (a plain or an async function) holds; one that raises AssertionError does not yet."""
    end = time.monotonic() + timeout
    while True:
        problem: object = "it stayed false"
        try:
            held = predicate()
            if inspect.isawaitable(held):
                held = await held
            if held:
                return
        except AssertionError as error:
            problem = error
        if time.monotonic() > end:
            raise AssertionError(f"not within {timeout:g} s: {problem}: {inspect.getsource(predicate).strip()}")
        await asyncio.sleep(every)


def assert_eventually_sync(predicate: Callable[[], bool], timeout: float = 10.0) -> None:
    """The same in a test without an event loop."""
    asyncio.run(assert_eventually(predicate, timeout))


def download_job(job_id: str = "job-1", run_id: str = "run-1", reference: str = "org/model") -> Job:
    """The smallest job."""
    return Job(job_id=job_id, run_id=run_id, payload=DownloadJob(reference=reference))


@contextmanager
def python_process(code_or_module: str, settings: Settings | None = None, *, cwd: Path, **env: str) -> Iterator[Any]:
    """A Python child process with the settings in its environment; killed at the end. Has `.output` (a file)."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("EVOMERGE_")}
    variables: Mapping[str, str] = {**clean, **(settings.to_env() if settings else {}), **env}
    output = cwd / "process.log"
    command = ["-m", code_or_module] if code_or_module.isidentifier() else ["-c", code_or_module]
    with output.open("ab") as log:
        process: Any = subprocess.Popen(
            [sys.executable, *command], env=variables, cwd=cwd, stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
    process.output = output
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(10)
