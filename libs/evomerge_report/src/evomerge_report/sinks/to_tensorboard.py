"""TensorBoard's event files, in a folder of the run: `tensorboard --logdir OUT/tensorboard`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.plugins.text.summary_v2 import text_pb as text_summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from evomerge_report.records import CANDIDATE, Record
from evomerge_report.sinks import Place


class Sink:
    """A file of events. One that begins midway says so: TensorBoard drops what older files have from there on."""

    def __init__(self, place: Place) -> None:
        root = Path(place.name).expanduser() if place.name else place.folder / "tensorboard"
        self._writer = EventFileWriter(str(root / place.run.run_id))
        if place.step:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._writer.add_event(event_pb2.Event(step=place.step, wall_time=place.run.time, session_log=start))

    def write(self, records: Sequence[Record], seen: Sequence[Record]) -> None:
        """Writes numbers as scalars, words as texts."""
        for record in records:
            values = [summary_pb2.Summary.Value(tag=name, simple_value=value) for name, value in record.metrics.items()]
            if values:
                self._add(record, summary_pb2.Summary(value=values))
            if record.words:
                self._add(record, text_summary(record.kind, _table(record)))
        self._writer.flush()

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()

    def _add(self, record: Record, summary: Any) -> None:
        self._writer.add_event(event_pb2.Event(step=record.step, wall_time=record.time, summary=summary))


def _table(record: Record) -> str:
    """Words as Markdown, which TensorBoard shows as a table; of a candidate in one line."""
    if record.kind == CANDIDATE:
        return ", ".join(f"{name} `{_cell(value)}`" for name, value in record.words.items() if value)
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {_cell(value)} |" for name, value in record.words.items())])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("`", "'").replace("\n", " ")


connect = Sink
