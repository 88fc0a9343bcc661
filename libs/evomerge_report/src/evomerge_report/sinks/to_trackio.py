"""Trackio: a project in its own database here, or at the server or Space that its variables name."""

from __future__ import annotations

from collections.abc import Sequence

import trackio

from evomerge_report.records import CANDIDATE, RESULT, Record
from evomerge_report.sinks import Place

PROJECT = "evomerge"


class Sink:
    """A run by the name of ours, which another command goes on with."""

    def __init__(self, place: Place) -> None:
        self._run = trackio.init(
            project=place.name or PROJECT,
            name=place.run.run_id,
            config=dict(place.run.words),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def write(self, records: Sequence[Record], seen: Sequence[Record]) -> None:
        """Writes a row for each candidate, and one of what is proven."""
        for record in records:
            if record.kind in {CANDIDATE, RESULT}:
                words = {f"{record.kind}/{name}": value for name, value in record.words.items()}
                self._run.log({**record.metrics, **words}, step=record.step)

    def close(self) -> None:
        """Waits until all is written."""
        self._run.finish()


connect = Sink
