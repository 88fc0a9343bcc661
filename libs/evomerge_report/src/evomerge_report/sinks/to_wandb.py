"""Weights & Biases: a run in a project; without an account here in its offline folder, for `wandb sync`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import wandb

from evomerge_report.records import CANDIDATE, END, RESULT, Record
from evomerge_report.sinks import Place

PROJECT = "evomerge"


class Sink:
    """A run, by the id of ours: another command goes on with it."""

    def __init__(self, place: Place) -> None:
        self._report = place.folder / "report"
        self._code = 0
        self._run: Any = wandb.init(
            project=place.name or os.environ.get("WANDB_PROJECT") or PROJECT,
            id=place.run.run_id,
            name=place.run.run_id,
            resume="allow",
            mode=None if os.environ.get("WANDB_MODE") else ("online" if _has_account() else "offline"),
            config=dict(place.run.words),
            settings=wandb.Settings(
                console="off", silent=True, save_code=False, disable_git=True, x_disable_stats=True,
                x_disable_machine_info=True, disable_code=True,
            ),
        )  # fmt: skip

    def write(self, records: Sequence[Record], seen: Sequence[Record]) -> None:
        """Writes a row of history for each candidate, the rest into the summary."""
        for record in records:
            if record.kind == CANDIDATE:
                words = {f"candidate/{name}": value for name, value in record.words.items()}
                self._run.log({**record.metrics, **words}, step=record.step)
            if record.kind == END:
                self._code = int(record.words["status"] != "finished")
                self._run.summary.update(record.words)
            if record.kind == RESULT:
                self._run.summary.update({**record.metrics, **record.words})
                self._give_report(record)

    def close(self) -> None:
        """Ends the run as it ended; sends what is left."""
        self._run.finish(exit_code=self._code)

    def _give_report(self, record: Record) -> None:
        if self._report.is_dir():
            report = wandb.Artifact(f"report-{record.run_id}", type="report")
            report.add_dir(str(self._report))
            self._run.log_artifact(report)


def _has_account() -> bool:
    """Whether there is a key here; without one, `init` would ask for it."""
    return bool(wandb.login(prompt=False))


connect = Sink
