"""The list of runs."""

from __future__ import annotations

from typing import Any

from evomerge_common.domain.history import mean_name
from evomerge_report.history import short_name
from evomerge_report.queries import Queries
from evomerge_report.rows import RunRow
from evomerge_report.views.numbers import rounded


def runs_view(queries: Queries) -> dict[str, Any]:
    """Gathers the latest runs, newest first.

    Returns:
        `{"runs": [run, …]}`, each as `run_summary` has it.

    """
    return {"runs": [run_summary(run) for run in queries.runs()]}


def run_summary(run: RunRow) -> dict[str, Any]:
    """Says how a run stands.

    Returns:
        `run_id`, `name` (what the spec calls it; else the id), `models` (short names), `status`, `reason`, `ended`,
        `seed`, `budget` (evaluations), `population`, `generation`, `champion` (digest), `started_at`, `last_at`,
        `seconds`, `sequence`, `version`, `best`, `mean`, `mean_name`, and counts of candidates: `proposed`, `merged`
        (waiting for scores), `evaluated`, `stopped`, `failed`, `done`.

    """
    models = run.spec.get("models")
    return {
        "run_id": run.run_id,
        "name": run.name,
        "models": [short_name(str(one)) for one in models] if isinstance(models, list) else [],
        "status": run.status,
        "reason": run.reason,
        "ended": run.has_ended,
        "seed": run.seed,
        "budget": run.budget,
        "population": run.population,
        "generation": run.generation,
        "champion": run.champion,
        "started_at": run.started_at,
        "last_at": run.last_at,
        "seconds": rounded(max(0.0, run.last_at - run.started_at)),
        "sequence": run.sequence,
        "version": run.version,
        "best": rounded(run.best),
        "mean": rounded(run.mean),
        "mean_name": mean_name(run.population),
        "proposed": run.proposed,
        "merged": run.states.get("merged", 0),
        "evaluated": run.evaluated,
        "stopped": run.stopped,
        "failed": run.failed,
        "done": run.evaluated + run.stopped + run.failed,
    }
