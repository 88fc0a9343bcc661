"""What a search may begin with: results of earlier runs, taken from their logs.

Two things are kept apart. A score counts where it is the one that the new run would give: the same suite, hence the
same split, the same dtype, and a recipe of the same digest, hence of the same sources. Elsewhere a genome is taken
alone, to be scored anew; but none that was found on items which the new run holds out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from evomerge_common.domain.history import Scored, change_of
from evomerge_common.domain.messages import (
    CandidateEvaluated,
    CandidateProposed,
    EarlierCandidate,
    Event,
    RunStarted,
)
from evomerge_common.domain.spec import AUTO, RunSpec
from evomerge_common.domain.suite import Suite
from evomerge_common.errors import InvalidInput

MOST = 64
"""Candidates that a run takes from earlier ones with their scores."""
ALONE = 4
"""Genomes that it takes alone."""
RUNS = 8
"""Earlier runs that `search.warm_start: auto` takes up at most."""


@dataclass(frozen=True)
class EarlierRun:
    """An earlier run.

    Attributes:
        name: as the user calls it.
        events: its log, from its first event on.
        suite: that it was scored on; None where that is out of reach.

    """

    name: str
    events: Sequence[Event]
    suite: Suite | None = None


def earlier_candidates(runs: Iterable[EarlierRun], spec: RunSpec, suite: Suite) -> list[EarlierCandidate]:
    """Takes from earlier runs what a new one may begin with.

    Args:
        runs: best known first where their scores are of different dtypes: the first one's dtype holds.
        spec: of the new run.
        suite: of the new run.

    Returns:
        At most MOST candidates with their scores, best first, then at most ALONE genomes without (`scores` is empty),
        the best of each run in turn. Sources and what was not scored on all items are left out.

    Raises:
        InvalidInput: of one of the runs nothing can be taken; it says of which and why.

    """
    found: list[EarlierCandidate] = []
    dtype = "" if spec.scoring_dtype == AUTO else spec.scoring_dtype
    for run in runs:
        log = _Log.of(run.events)
        if reason := _refusal(log, run, spec, suite):
            raise InvalidInput(f"the search cannot begin with the results of {run.name}, {reason}")
        dtype = dtype or log.dtype
        if log.started.suite_digest == suite.digest and log.dtype in ("", dtype):
            found += log.candidates()
        else:
            found += [_alone(one) for one in log.candidates()[:ALONE]]
    return joined(found)


def joined(candidates: Sequence[EarlierCandidate]) -> list[EarlierCandidate]:
    """Makes one list of what several runs give (see `earlier_candidates`); of several dtypes the first holds."""
    dtype = next((one.dtype for one in candidates if one.scores), "")
    scored = _best(one for one in candidates if one.scores and one.dtype in ("", dtype))
    known, turns = {one.recipe_digest for one in scored}, dict[str, int]()
    alone = []
    for one in candidates:
        turns[one.run_id] = turns.get(one.run_id, 0) + 1
        if not one.scores and one.recipe_digest not in known:
            alone.append((turns[one.run_id], one))
    in_turn = [one for _, one in sorted(alone, key=lambda pair: pair[0])]
    return [*scored, *_once(in_turn)[:ALONE]]


def earlier_in_words(candidates: Sequence[EarlierCandidate]) -> str:
    """Says what a search begins with."""
    scored = [one for one in candidates if one.scores]
    alone = [one for one in candidates if not one.scores]
    parts = [
        f"the {len(found)} best {what} of {', '.join(dict.fromkeys(one.run_id for one in found))}"
        for found, what in ((scored, "results"), (alone, "genomes, without their scores,"))
        if found
    ]
    return f"the search begins with {' and '.join(parts) or 'nothing: no merge has a score there'}"


def can_begin(started: RunStarted, spec: RunSpec, suite: Suite) -> bool:
    """Tells from an earlier run's first event whether its scores are of the new run's models and suite."""
    return started.suite_digest == suite.digest and spec.scores_as(RunSpec.from_json(started.spec_json))


@dataclass
class _Log:
    """What a log says of the candidates that were scored on all search items."""

    run_id: str = ""
    started: RunStarted = field(default_factory=RunStarted)
    dtype: str = ""
    proposals: dict[str, CandidateProposed] = field(default_factory=dict)
    scored: dict[str, Scored] = field(default_factory=dict)
    credits: dict[str, dict[str, tuple[float, int]]] = field(default_factory=dict)

    @classmethod
    def of(cls, events: Iterable[Event]) -> _Log:
        log = cls()
        for event in events:
            log.add(event)
        return log

    def add(self, event: Event) -> None:
        change = change_of(event.payload)
        if change.started is not None:
            self.run_id, self.started = event.run_id, change.started
        if change.proposed is not None:
            self.proposals[change.proposed.recipe_digest] = change.proposed
        if change.evaluation is not None:
            self.dtype = self.dtype or change.evaluation.dtype
            if change.evaluation.dtype not in ("", self.dtype):
                return  # of no account: it was scored once again, in the run's dtype
            self._add_credit(change.evaluation)
        if change.scored is not None and change.scored.split == "search":
            self.scored.setdefault(change.scored.digest, change.scored)

    def _add_credit(self, event: CandidateEvaluated) -> None:
        """Of a result that comes twice the credit counts twice, and the mean stays what it is."""
        known = self.credits.setdefault(event.recipe_digest, {}) if event.split == "search" else {}
        for one in event.scores:
            total, items = known.get(one.task, (0.0, 0))
            known[one.task] = (total + one.credit * len(one.item_scores), items + len(one.item_scores))

    def candidates(self) -> list[EarlierCandidate]:
        """Returns them best first."""
        found = []
        for digest, one in self.scored.items():
            proposed = self.proposals.get(digest)
            if proposed is None or proposed.operator == "source" or not one.scores:
                continue
            sums = [self.credits.get(digest, {}).get(score.task, (0.0, 0)) for score in one.scores]
            found.append(
                EarlierCandidate(
                    run_id=self.run_id,
                    recipe_digest=digest,
                    genome_json=proposed.genome_json,
                    fitness=one.fitness,
                    scores=tuple(score.score for score in one.scores),
                    credits=tuple(total / items if items else 0.0 for total, items in sums),
                    dtype=self.dtype,
                )
            )
        return _best(found)


def _refusal(log: _Log, run: EarlierRun, spec: RunSpec, suite: Suite) -> str:
    """Says why nothing may be taken of a run; "" where something may."""
    if not log.started.spec_json:
        return "whose log has no beginning"
    if not spec.scores_as(RunSpec.from_json(log.started.spec_json)):
        return "which has other models, or whose candidates are computed otherwise"
    if log.started.suite_digest == suite.digest:
        return ""
    if run.suite is None or run.suite.digest != log.started.suite_digest:
        return "which was scored on another suite, and that suite is out of reach"
    if run.suite.searches_with(suite.held_out()):
        return "which was scored on items that this run holds out: they would prove nothing any more"
    return ""


def _alone(one: EarlierCandidate) -> EarlierCandidate:
    return EarlierCandidate(run_id=one.run_id, recipe_digest=one.recipe_digest, genome_json=one.genome_json)


def _best(candidates: Iterable[EarlierCandidate]) -> list[EarlierCandidate]:
    """Returns the best MOST, each recipe once, best first; of equals by digest."""
    return _once(sorted(candidates, key=lambda one: (-one.fitness, one.recipe_digest)))[:MOST]


def _once(candidates: Iterable[EarlierCandidate]) -> list[EarlierCandidate]:
    found: dict[str, EarlierCandidate] = {}
    for one in candidates:
        found.setdefault(one.recipe_digest, one)
    return list(found.values())
