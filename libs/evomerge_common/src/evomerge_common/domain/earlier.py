"""What a search may begin with: results of an earlier run, taken from its log."""

from __future__ import annotations

from collections.abc import Iterable

from evomerge_common.domain.history import change_of
from evomerge_common.domain.messages import CandidateProposed, EarlierCandidate, Event, RunStarted
from evomerge_common.domain.spec import RunSpec
from evomerge_common.errors import InvalidInput

MOST = 64
"""Candidates that a run takes from earlier ones."""


def earlier_candidates(events: Iterable[Event], spec: RunSpec, suite_digest: str) -> list[EarlierCandidate]:
    """Returns the candidates of a run that were scored on all items, sources left out, best first.

    Args:
        events: of the earlier run, from its first on.
        spec: of the run that begins with them.
        suite_digest: of its suite.

    Raises:
        InvalidInput: the scores are not those that the new run would give: another suite, or a spec that differs in
            more than seed and search settings.

    """
    run_id, started = "", RunStarted()
    proposals: dict[str, CandidateProposed] = {}
    found: dict[str, EarlierCandidate] = {}
    for event in events:
        change = change_of(event.payload)
        if change.started is not None:
            run_id, started = event.run_id, change.started
            _check(run_id, started, spec, suite_digest)
        if change.proposed is not None and change.proposed.operator != "source":
            proposals[change.proposed.recipe_digest] = change.proposed
        if (scored := change.scored) is None or scored.split != "search" or scored.digest in found:
            continue
        if (proposed := proposals.get(scored.digest)) is not None:
            found[scored.digest] = EarlierCandidate(
                run_id=run_id,
                recipe_digest=scored.digest,
                genome_json=proposed.genome_json,
                fitness=scored.fitness,
                scores=tuple(one.score for one in scored.scores),
            )
    return best_of(found.values())


def best_of(candidates: Iterable[EarlierCandidate]) -> list[EarlierCandidate]:
    """Returns the best `MOST`, each recipe once, best first; of equals by digest."""
    ranked = sorted(candidates, key=lambda one: (-one.fitness, one.recipe_digest))
    return list({one.recipe_digest: one for one in reversed(ranked)}.values())[::-1][:MOST]


def _check(run_id: str, started: RunStarted, spec: RunSpec, suite_digest: str) -> None:
    if started.suite_digest != suite_digest:
        problem = "was scored on another suite"
    elif not spec.scores_as(RunSpec.from_json(started.spec_json)):
        problem = "differs in more than its seed and its search"
    else:
        return
    raise InvalidInput(f"the search cannot begin with the results of {run_id}, which {problem}")
