"""`--log-to`: a run's records go to trackers (`evomerge_report.sinks`), by a process that the run never waits for."""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from evomerge_cli.console import Console
from evomerge_cli.run_folder import RunFolder
from evomerge_common.errors import SpecError, WorkFailed
from evomerge_common.ports import Recorded
from evomerge_report.records import Records
from evomerge_report.sinks import check_asked, without_secrets
from evomerge_report.sinks.order import Order

log = logging.getLogger(__name__)

KEY = "log_to"
"""Key of a spec file, for the command alone: where a run is watched does not change the run."""
PATIENCE_SECONDS = 60.0
"""How long the command waits at its end for a tracker that does not answer."""


def asked_for(flag: Sequence[str] | None, value: Any) -> tuple[str, ...]:
    """Reads which trackers are asked for, by the flag before the spec, and refuses what cannot be written to.

    Args:
        flag: each NAME or NAME=PLACE, perhaps several with commas.
        value: of the spec's key: such a text, or a list of names and of {name: place}.

    Raises:
        SpecError: the key holds something else.
        InvalidInput: see `check_asked`.

    """
    asked = [one.strip() for text in flag or () for one in text.split(",") if one.strip()]
    if not asked and value is not None:
        asked = list(_of_spec(value))
    check_asked(asked)
    return tuple(asked)


def _of_spec(value: Any) -> Iterator[str]:
    for index, one in enumerate(value if isinstance(value, list) else [value]):
        if isinstance(one, Mapping) and len(one) == 1 and all(isinstance(part, str) for part in (*one, *one.values())):
            yield "=".join(next(iter(one.items())))
        elif isinstance(one, str):
            yield one
        else:
            raise SpecError("must be a tracker, such as tensorboard, or {tensorboard: folder}", (KEY, index))


class Tracking:
    """Where a run is written to beside its folder: nowhere."""

    problems: Sequence[str] = ()
    """What trackers failed at, in words."""

    def take(self, recorded: Recorded) -> None:
        """Takes in one event; returns at once, and raises nothing."""

    def prove(self, result: Mapping[str, Any]) -> None:
        """Takes in what is proven: result.json."""


class Trackers(Tracking):
    """Trackers of one run, open. Events go in as they come, from the first one on, whatever was written before."""

    def __init__(self, asked: Sequence[str], folder: RunFolder, console: Console) -> None:
        """Starts the process that writes."""
        self.problems: list[str] = []
        self._console = console
        self._records = Records()
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "evomerge_report.sinks"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8",
            start_new_session=True,  # Ctrl-C is for the command, which then ends the input
        )  # fmt: skip
        order = Order(sinks=tuple(asked), folder=str(folder.out), notes=str(folder.hidden / "trackers.json"))
        self._lines.put(json.dumps(asdict(order)))
        self._threads = [
            threading.Thread(target=work, name="trackers", daemon=True)
            for work in (self._send, self._hear, self._keep_log)
        ]
        for thread in self._threads:
            thread.start()

    def take(self, recorded: Recorded) -> None:
        """Takes in one event; returns at once, and raises nothing."""
        try:
            for record in self._records.take(recorded):
                self._lines.put(record.to_json())
        except Exception as error:  # of a log of another version; the run has nothing to do with it
            self._tell(f"the log cannot be read for the trackers: {type(error).__name__}: {error}")

    def prove(self, result: Mapping[str, Any]) -> None:
        """Takes in what is proven: result.json."""
        if (record := self._records.result(result)) is not None:
            self._lines.put(record.to_json())

    def close(self, seconds: float = PATIENCE_SECONDS) -> None:
        """Waits until all is written, so many seconds at most."""
        self._lines.put(None)
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            self._tell("the trackers did not take everything in time")
        for thread in self._threads:
            thread.join(5.0)
        if self._process.returncode and not self.problems:
            self._tell(f"the process that writes to trackers ended with {self._process.returncode}")

    def _send(self) -> None:
        """Writes lines into the pipe, which a busy process may let wait."""
        pipe = self._process.stdin
        assert pipe is not None
        with contextlib.suppress(OSError):  # it has ended; what it said of that is read elsewhere
            while (line := self._lines.get()) is not None:
                pipe.write(line + "\n")
                if self._lines.empty():
                    pipe.flush()
        with contextlib.suppress(OSError):
            pipe.close()

    def _hear(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._tell(str(json.loads(line)))

    def _keep_log(self) -> None:
        """What the libraries print, into the command's log."""
        assert self._process.stderr is not None
        for line in self._process.stderr:
            log.info("%s", without_secrets(line.rstrip()))

    def _tell(self, problem: str) -> None:
        self.problems.append(problem)
        self._console.say(f"note: {problem.splitlines()[0][:300]}; nothing more is written there, the run goes on")


@contextlib.contextmanager
def trackers(asked: Sequence[str], folder: RunFolder, console: Console) -> Iterator[Tracking]:
    """Opens the trackers that are asked for. Whatever happens, they are closed."""
    if not asked:
        yield Tracking()
        return
    opened = Trackers(asked, folder, console)
    try:
        yield opened
    except BaseException:
        opened.close(10.0)
        raise
    opened.close()


def write_again(
    asked: Sequence[str], folder: RunFolder, events: Iterable[Recorded], result: Mapping[str, Any], console: Console
) -> None:
    """Writes a run's whole log, as far as the trackers lack it.

    Raises:
        WorkFailed: a tracker did not take it.

    """
    with trackers(asked, folder, console) as opened:
        for recorded in events:
            opened.take(recorded)
        opened.prove(result)
    if opened.problems:
        raise WorkFailed("; ".join(opened.problems))
