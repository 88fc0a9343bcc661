"""Reports on demand, made in a child process so that matplotlib never enters the service."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

from evomerge_common.domain.suite import Suite
from evomerge_common.errors import NotFound
from evomerge_common.ports import ArtifactStore, EventLog, Recorded
from evomerge_common.runtime.child import ChildProcess
from evomerge_report.queries import Queries

_TIMEOUT = 300.0
_FILES = re.compile(r"(report/)?[a-z_]+\.(html|png|svg|json|jsonl)")


class Reports:
    """Builds results and report folders from the log; a finished run's folder is kept as an artifact."""

    def __init__(self, queries: Queries, log: EventLog, artifacts: ArtifactStore) -> None:
        self._queries = queries
        self._log = log
        self._artifacts = artifacts
        self._lock = asyncio.Lock()

    async def result(self, run_id: str) -> tuple[str, str]:
        """Returns result.json's text as far as the run has come, and the report's URI ("" while it is under way).

        Raises:
            NotFound: no such run, or its suite is gone.

        """
        run = self._queries.run(run_id)
        async with self._lock:  # one child at a time, whoever asks
            if run.has_ended:
                uri = await self._folder(run_id)
                path = self._artifacts.open(uri) / "result.json"
                return await asyncio.to_thread(path.read_text), uri
            events, suite = await self._inputs(run_id)
            return await _in_child(_result_text, events, suite), ""

    async def folder(self, run_id: str) -> Path:
        """Returns the folder of a run's report, drawn now if the log has moved on since it was.

        Raises:
            NotFound: no such run, or its suite is gone.

        """
        async with self._lock:
            return self._artifacts.open(await self._folder(run_id))

    async def file(self, run_id: str, name: str) -> Path:
        """Returns a file of that folder, such as report/index.html.

        Raises:
            NotFound: no such run, or no such file in a report.

        """
        if not _FILES.fullmatch(name):
            raise NotFound(f"a report has no file {name!r}")
        path = await self.folder(run_id) / name
        if not path.is_file():
            raise NotFound(f"a report has no file {name!r}")
        return path

    async def _folder(self, run_id: str) -> str:
        run = self._queries.run(run_id)
        if run.report_uri and run.report_sequence == run.sequence:
            return run.report_uri
        events, suite = await self._inputs(run_id)
        name = f"reports/{run_id}"
        staged = self._artifacts.stage(name)
        await _in_child(_write, events, suite, staged)
        uri = self._artifacts.commit(staged, name)
        self._queries.remember_report(run_id, uri, run.sequence)
        return uri

    async def _inputs(self, run_id: str) -> tuple[list[Recorded], str]:
        run = self._queries.run(run_id)
        events = [recorded async for recorded in self._log.read(run_id)]
        return events, (await asyncio.to_thread(self._artifacts.get, run.suite_uri)).decode()


async def _in_child(function: Any, *args: Any) -> Any:
    child = ChildProcess()
    try:
        return await child.call(function, *args, timeout=_TIMEOUT)
    finally:
        await asyncio.to_thread(child.close)  # an idle one would hold its memory for nothing


def _result_text(events: list[Recorded], suite: str) -> str:
    from evomerge_report.history import history_of
    from evomerge_report.result import result_of

    return json.dumps(result_of(history_of(events), Suite.from_json(suite)), ensure_ascii=False)


def _write(events: list[Recorded], suite: str, folder: Path) -> None:
    from evomerge_report.report import write_report

    write_report(events, Suite.from_json(suite), folder)
