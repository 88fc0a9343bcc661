"""The process that writes to trackers: `python -m evomerge_report.sinks`, started by the command.

On standard input: a first line that says where to (`Order`), then a record a line. On standard output: a note a line,
as JSON. It ends when its input does, whatever happens to the command; what each tracker has is noted in the run's
folder, so that the next command goes on there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from evomerge_common.runtime.files import write_atomically
from evomerge_report.records import RESULT, RUN, Record
from evomerge_report.sinks import Place, Sink, connect, without_secrets
from evomerge_report.sinks.order import Order

SHARE = 0.01
"""Of a processor that writing may take: the next batch waits accordingly, between so many seconds."""
PAUSE_SECONDS = (1.0, 10.0)
NICENESS = 10
"""Below the scorers, who share the processors."""


class Written:
    """What each tracker has of a run: how many of the records of its log, and which result. Kept in a file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        try:
            self._known = dict(json.loads(file.read_text("utf-8")))
        except (OSError, ValueError):
            self._known = {}

    def of(self, sink: str, run_id: str) -> tuple[int, str]:
        """Returns the number of records, and the digest of the result."""
        entry = self._known.get(sink, {})
        return (entry["records"], entry["result"]) if entry.get("run_id") == run_id else (0, "")

    def note(self, sink: str, run_id: str, records: int, result: str) -> None:
        """Writes it down."""
        self._known[sink] = {"run_id": run_id, "records": records, "result": result}
        write_atomically(self._file, json.dumps(self._known, indent=2) + "\n")


class Writer:
    """One tracker: gives it what it does not have yet, until it fails."""

    def __init__(self, asked: str, folder: Path, written: Written, say: Callable[[str], None]) -> None:
        self.name, _, self._place = asked.partition("=")
        self._asked, self._folder, self._written, self._say = asked, folder, written, say
        self._sink: Sink | None = None
        self._failed = False

    def write(self, seen: Sequence[Record]) -> None:
        """Writes what of these it lacks; they are all of the run so far, the one of the run first."""
        run_id = seen[0].run_id
        count, result = self._written.of(self._asked, run_id)
        log = [one for one in seen if one.kind != RESULT]
        ends = [one for one in seen[-1:] if one.kind == RESULT and digest_of(one) != result]
        fresh = [*log[count:], *ends]
        if self._failed or not fresh:
            return
        try:
            if self._sink is None:
                place = Place(name=self._place, folder=self._folder, run=seen[0], step=fresh[0].step)
                self._sink = connect(self.name, place)
            self._sink.write(fresh, seen)
            self._written.note(self._asked, run_id, max(count, len(log)), digest_of(ends[0]) if ends else result)
        except Exception as error:  # whatever a library raises, the run goes on
            self._fail(error)

    def close(self) -> None:
        """Closes the tracker."""
        try:
            if self._sink is not None:
                self._sink.close()
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        if not self._failed:
            self._failed = True
            self._say(without_secrets(f"{self.name}: {type(error).__name__}: {error}"))


def digest_of(record: Record) -> str:
    """Returns the digest of a record, by which one that was written is known."""
    return hashlib.sha256(record.to_json().encode()).hexdigest()


def follow(lines: queue.SimpleQueue[str | None], writers: Sequence[Writer]) -> None:
    """Writes records until None comes, in batches."""
    seen: list[Record] = []
    least, most = PAUSE_SECONDS
    pause, line = least, lines.get()
    while line is not None:
        until = time.monotonic() + pause
        with contextlib.suppress(queue.Empty):
            while line is not None:
                seen.append(Record.from_json(line))
                line = lines.get(timeout=max(0.0, until - time.monotonic()))
        began = time.process_time()
        if seen[0].kind == RUN:
            for writer in writers:
                writer.write(seen)
        pause = min(most, max(least, (time.process_time() - began) / SHARE))
        line = line and lines.get()
    for writer in writers:
        writer.close()


def main() -> None:
    """Reads records from standard input and writes them to the trackers that the first line names."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command is interrupted, and then ends the input
    with contextlib.suppress(OSError):
        os.nice(NICENESS)
    notes = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no note
    # The library's own answer to "may usage be reported?": not from a process that the user does not see.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    source = sys.stdin
    order = Order(**json.loads(source.readline()))

    def read() -> None:
        for line in source:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, name="records", daemon=True).start()
    written = Written(Path(order.notes))

    def say(text: str) -> None:
        notes.write(json.dumps(text) + "\n")

    follow(lines, [Writer(one, Path(order.folder), written, say) for one in order.sinks])


if __name__ == "__main__":
    main()
