"""Texts of runs' items, read from the artifact store once."""

from __future__ import annotations

import asyncio
from typing import Any

from cachetools import LRUCache

from evomerge_common.domain.suite import Suite
from evomerge_common.errors import EvoMergeException
from evomerge_common.ports import ArtifactStore
from evomerge_report.rows import RunRow
from evomerge_report.views.candidate import items_view

SUITES = 8
"""Runs whose items stay in memory."""


class Suites:
    """Reads what `items_view` has of a run's suite."""

    def __init__(self, artifacts: ArtifactStore) -> None:
        self._artifacts = artifacts
        self._known: LRUCache[tuple[str, bool], dict[str, Any]] = LRUCache(SUITES)

    async def items(self, run: RunRow) -> dict[str, Any]:
        """Returns the texts of a run's items, held-out ones once it has ended; empty where the suite is gone."""
        key = (run.suite_uri, run.has_ended)
        if key not in self._known:
            try:
                self._known[key] = await asyncio.to_thread(self._read, *key)
            except (EvoMergeException, OSError):
                return {}  # scores are shown without
        return self._known[key]

    def _read(self, uri: str, ended: bool) -> dict[str, Any]:
        return items_view(Suite.from_json(self._artifacts.get(uri).decode()), ended=ended)
