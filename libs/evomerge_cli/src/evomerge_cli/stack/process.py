"""One supervised child process: started, watched, started again, stopped."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from evomerge_common.errors import WorkerCrashed
from evomerge_common.runtime.fork_server import ForkedProcess

QUICK = 15.0
"""A child that dies younger than this many seconds counts as a quick death."""
MAX_QUICK_DEATHS = 5
TAIL_LINES = 15


class SupervisedProcess:
    """A child that is started again when it dies, at once the first time, later with growing pauses.

    Args:
        log: where its output goes, appended; who writes it keeps it short.
        fork: asks a fork server for the process, with the file descriptor of its log; None, or where it returns None,
            the command starts it.

    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        log: Path,
        clock: Callable[[], float] = time.monotonic,
        fork: Callable[[int], ForkedProcess | None] | None = None,
    ) -> None:
        self.name = name
        self.log = log
        self.restarts = 0
        self._command = list(command)
        self._env = dict(env)
        self._clock = clock
        self._fork = fork
        self._process: subprocess.Popen[bytes] | _Forked | None = None
        self._started = 0.0
        self._quick_deaths = 0
        self._restart_at: float | None = None

    @property
    def pid(self) -> int:
        """Returns the process id; 0 while it is not running."""
        return (self._process.pid or 0) if self._process is not None and self._process.poll() is None else 0

    def start(self) -> None:
        """Starts it. It gets a session of its own, so that the terminal's Ctrl-C reaches the parent alone."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as output:
            forked = self._fork(output.fileno()) if self._fork is not None else None
            self._process = (
                _Forked(forked)
                if forked is not None
                else subprocess.Popen(
                    self._command,
                    env=self._env,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )
        self._started = self._clock()
        self._restart_at = None

    def supervise(self) -> bool:
        """Looks after it once; tells whether its pid changed.

        Raises:
            WorkerCrashed: it died so often and so young that starting it again is no use; with the log's tail.

        """
        if self._process is None:
            return False
        now = self._clock()
        if self._restart_at is None:
            code = self._process.poll()
            if code is None:
                return False
            self._quick_deaths = self._quick_deaths + 1 if now - self._started < QUICK else 0
            if self._quick_deaths >= MAX_QUICK_DEATHS:
                raise WorkerCrashed(
                    f"{self.name} died {self._quick_deaths} times in a row, the last time with "
                    f"{describe_exit(code)}; its log {self.log} ends:\n{tail(self.log)}"
                )
            self._restart_at = now + (0.0 if self._quick_deaths <= 1 else min(0.25 * 2**self._quick_deaths, 5.0))
        if now < self._restart_at:
            return False
        self.restarts += 1
        self.start()
        return True

    def terminate(self) -> None:
        """Asks it to stop."""
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()

    def wait(self, deadline: float) -> None:
        """Waits for its end until the clock says `deadline`, then kills it, its own children included."""
        if self._process is None:
            return
        try:
            self._process.wait(timeout=max(0.05, deadline - self._clock()))
        except subprocess.TimeoutExpired:
            # Its session's process group: what it started goes with it.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if (group := self._process.pid) is not None:
                    os.killpg(group, 9)
            self._process.kill()
            self._process.wait(timeout=5)
        self._process = None


class _Forked:
    """A fork server's process, of Popen what `SupervisedProcess` needs."""

    def __init__(self, process: ForkedProcess) -> None:
        self._process = process

    @property
    def pid(self) -> int | None:
        return self._process.pid

    def poll(self) -> int | None:
        return None if self._process.is_alive() else self._process.exitcode

    def terminate(self) -> None:
        if self._process.pid is not None:
            os.kill(self._process.pid, signal.SIGTERM)

    def kill(self) -> None:
        self._process.kill()

    def wait(self, timeout: float) -> int | None:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("a forked process", timeout)
        return self._process.exitcode


def describe_exit(code: int) -> str:
    """Says an exit code in words."""
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def tail(log: Path, lines: int = TAIL_LINES) -> str:
    """Reads the last lines of a log."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 16_384))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return "(no log)"
    return "\n".join("  " + line for line in text.splitlines()[-lines:]) or "  (empty)"
