"""MLflow: an experiment `evomerge`, a run of the same name for each run, found again by its tag."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Sequence

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

from evomerge_report.records import CANDIDATE, END, RESULT, Record
from evomerge_report.sinks import Place

EXPERIMENT = "evomerge"
TAG = "evomerge.run_id"
STATUSES = {"finished": "FINISHED", "failed": "FAILED", "cancelled": "KILLED"}
LARGEST = {"metrics": 1000, "params": 100}
"""What one request may hold."""


class Sink:
    """A run of a tracking server, or of a database here."""

    def __init__(self, place: Place) -> None:
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        self._report = place.folder / "report"
        self._client = MlflowClient(tracking_uri=place.name or mlflow.get_tracking_uri())
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        run = place.run
        known = self._client.search_runs([experiment], f"tags.`{TAG}` = '{run.run_id}'", max_results=1)
        if known:
            self._id = known[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            return
        started = int(run.time * 1000)
        made = self._client.create_run(experiment, start_time=started, tags={TAG: run.run_id}, run_name=run.run_id)
        self._id = made.info.run_id
        params = [Param(_name(name), value) for name, value in run.words.items()]
        for start in range(0, len(params), LARGEST["params"]):
            self._client.log_batch(self._id, params=params[start : start + LARGEST["params"]])

    def write(self, records: Sequence[Record], seen: Sequence[Record]) -> None:
        """Writes numbers as metrics. The database knows one by name, step and time, and has it once."""
        metrics = [
            Metric(_name(name), value, int(record.time * 1000), record.step)
            for record in records
            for name, value in record.metrics.items()
        ]
        for start in range(0, len(metrics), LARGEST["metrics"]):
            self._client.log_batch(self._id, metrics=metrics[start : start + LARGEST["metrics"]])
        for record in records:
            if record.kind == END:
                ended = STATUSES.get(record.words["status"], "FINISHED")
                self._client.set_terminated(self._id, ended, end_time=int(record.time * 1000))
            if record.kind == RESULT:
                self._client.log_batch(self._id, tags=[RunTag(name, value) for name, value in record.words.items()])
                self._give_files(seen)

    def close(self) -> None:
        """Does nothing: each request is done when it returns."""

    def _give_files(self, seen: Sequence[Record]) -> None:
        """The report, and the words of all candidates, for which there are no metrics."""
        rows = [{"step": one.step, **one.words} for one in seen if one.kind == CANDIDATE]
        self._client.log_text(self._id, json.dumps(rows, indent=1), "candidates.json")
        if self._report.is_dir():
            self._client.log_artifacts(self._id, str(self._report), "report")


def _name(text: str) -> str:
    """A name as MLflow takes it."""
    return re.sub(r"[^\w./: -]", "_", text)


connect = Sink
