"""What is kept of a run: counts, best, champion. Small enough to be kept of every run that ever was."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from evomerge_selector.domain.run import Phase, Run


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """A run's state for people. `message` says why it failed, or what a machine lacks."""

    run_id: str
    phase: Phase
    paused: bool = False
    proposed: int = 0
    evaluated: int = 0
    failed: int = 0
    budget: int = 0
    generation: int = 0
    best_fitness: float = 0.0
    mean_fitness: float = 0.0
    champion_digest: str = ""
    message: str = ""

    @classmethod
    def of(cls, run: Run) -> RunSummary:
        """Summarises a run."""
        scored, trouble = run.has_champion, run.error or run.lack
        return cls(
            run_id=run.run_id,
            phase=run.phase,
            paused=run.paused,
            proposed=len(run.candidates),
            evaluated=run.evaluated,
            failed=run.failed,
            budget=run.spec.search.evaluations if run.spec else 0,
            generation=run.generation,
            best_fitness=(run.champion.fitness or 0.0) if scored else 0.0,
            mean_fitness=run.mean_fitness,
            champion_digest=run.final_champion.proposed.recipe_digest if scored else "",
            message=f"{trouble.type}: {trouble.message}" if trouble else "",
        )

    def to_dict(self) -> dict[str, Any]:
        """Turns it into plain data."""
        return {**dataclasses.asdict(self), "phase": self.phase.value}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> RunSummary | None:
        """Reads what `to_dict` wrote; None for what another version wrote."""
        try:
            return cls(**{**data, "phase": Phase(data["phase"])})
        except (TypeError, KeyError, ValueError):
            return None


@dataclass(frozen=True)
class RunEntry:
    """A run in the bucket `runs`.

    Attributes:
        state: "active", or the phase that it ended in.
        summary: of a run that has ended.
        snapshot: URI of the newest snapshot of an active one.

    """

    state: str = "active"
    summary: RunSummary | None = None
    snapshot: str = ""

    def to_bytes(self) -> bytes:
        """Writes JSON."""
        data: dict[str, Any] = {"state": self.state}
        if self.summary is not None:
            data["summary"] = self.summary.to_dict()
        if self.snapshot:
            data["snapshot"] = self.snapshot
        return json.dumps(data, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> RunEntry:
        """Reads what `to_bytes` wrote; what is nothing of the kind is no active run, and stops no selector."""
        try:
            read = json.loads(data)
            summary = RunSummary.from_dict(read["summary"]) if "summary" in read else None
            return cls(read["state"], summary, read.get("snapshot", ""))
        except (ValueError, TypeError, KeyError):
            return cls("unreadable")
