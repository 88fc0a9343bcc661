"""Runs and candidates as the projection's tables have them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from evomerge_common.domain.messages import TaskScore
from evomerge_report.history import short_name

ENDED = ("finished", "cancelled", "failed")
"""Words of a run that nothing more is decided in."""


@dataclass(frozen=True)
class RunRow:
    """A run at a glance. `best` and `mean` (of the last `population`) are fitness on search items; None without any."""

    run_id: str
    status: str
    reason: str
    seed: int
    budget: int
    population: int
    generation: int
    champion: str
    started_at: float
    last_at: float
    sequence: int
    version: str
    suite_uri: str
    spec_json: str
    tasks_json: str
    report_uri: str
    report_sequence: int
    best: float | None
    mean: float | None
    states: dict[str, int]

    @property
    def spec(self) -> dict[str, Any]:
        """Reads the run's spec; empty where it cannot be read."""
        try:
            found = json.loads(self.spec_json)
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def name(self) -> str:
        """Returns what the spec calls the run; else its id."""
        return str(self.spec.get("name") or self.run_id)

    @property
    def has_ended(self) -> bool:
        """Tells whether nothing more will be decided."""
        return self.status in ENDED

    @property
    def evaluated(self) -> int:
        """Counts the candidates with a score."""
        return self.states.get("evaluated", 0)

    @property
    def stopped(self) -> int:
        """Counts the candidates that a race has stopped."""
        return self.states.get("stopped", 0)

    @property
    def failed(self) -> int:
        """Counts the candidates that never got one."""
        return self.states.get("failed", 0)

    @property
    def proposed(self) -> int:
        """Counts all candidates."""
        return sum(self.states.values())


@dataclass(frozen=True)
class CandidateRow:
    """A candidate with its scores on search items. One that was stopped has an estimate, and no fitness."""

    digest: str
    index: int
    operator: str
    method: str
    source: str
    parents: tuple[str, ...]
    generation: int
    fitness: float | None
    holdout: float | None
    scores: tuple[TaskScore, ...] = ()
    state: str = ""
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    items: int | None = None

    @property
    def name(self) -> str:
        """Returns a short name for tables."""
        return short_name(self.source) if self.source else f"#{self.index} {self.method}".strip()
