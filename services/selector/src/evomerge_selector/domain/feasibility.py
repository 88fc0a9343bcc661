"""Which candidates meet a run's constraints, by their scores on search items as they are."""

from __future__ import annotations

import math
from collections.abc import Sequence

from evomerge_common.domain.constraints import Constraint, shortfall
from evomerge_common.domain.spec import RunSpec
from evomerge_selector.domain.candidate import FAILED, Candidate

PENALTY = 4.0
"""What strategies are told is the fitness less so many times the violation: no other task's gain pays that back."""


def penalised(fitness: float, violation: float) -> float:
    """Returns the fitness as strategies are told it."""
    return fitness - PENALTY * violation if violation else fitness


def violation(candidate: Candidate, spec: RunSpec, tasks: Sequence[str], sources: Sequence[Candidate]) -> float:
    """Sums up how far a candidate's scores are below the bounds; infinite where it has no scores.

    Args:
        candidate: with a result.
        spec: of the run, with its constraints.
        tasks: the suite's, in the order of a candidate's scores.
        sources: with their results, in the order of `spec.sources`.

    """
    if candidate.fitness is None or candidate.fitness == FAILED or not candidate.scores:
        return math.inf
    below = 0.0
    for one in spec.constraints:
        if (bound := _bound(one, spec, tasks, sources)) is not None:
            below += shortfall(candidate.scores[tasks.index(one.task)], bound)
    return below


def lacking(spec: RunSpec, tasks: Sequence[str], sources: Sequence[Candidate]) -> str:
    """Says which constraint has no bound, since the source that it reads has no score; "" where all have one."""
    for one in spec.constraints:
        if _bound(one, spec, tasks, sources) is None:
            return f"constraint on {one.task!r} (not below {one.value}): that source could not be scored"
    return ""


def least_violating(candidates: Sequence[Candidate]) -> Sequence[Candidate]:
    """Picks who may be champion: those who meet all constraints; where there are none, those who violate least."""
    least = min((one.violation for one in candidates), default=0.0)
    return [one for one in candidates if one.violation == least]


def _bound(one: Constraint, spec: RunSpec, tasks: Sequence[str], sources: Sequence[Candidate]) -> float | None:
    place = tasks.index(one.task)
    scored = zip(spec.sources, sources, strict=True)
    return one.bound({name: source.scores[place] for name, source in scored if source.scores}, spec.base)
