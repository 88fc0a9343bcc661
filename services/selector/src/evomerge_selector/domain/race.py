"""The race of a run: who has answered which items, who is the rival, who is stopped.

A candidate's rival is picked among the candidates whose results its own proposal was allowed to read. All of them have
their results by then, so whether it is stopped depends on no order of arrival, and nobody waits to be told.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from evomerge_common.domain.messages import CandidateRaced, TaskItems, TaskScore, TaskShape
from evomerge_common.domain.racing import Answers, Order, Step, compare, estimate, item_order, source_spread, steps
from evomerge_common.domain.spec import RacingSpec

KEPT = 64
"""Answers that are kept before those are dropped that can be no rival's any more."""


@dataclass
class Runner:
    """A candidate under way: its weights, the step whose result is due, its answers so far."""

    uri: str
    step: int = 0
    known: dict[str, dict[int, float]] = field(default_factory=dict)

    @property
    def items(self) -> int:
        """Answers so far."""
        return sum(map(len, self.known.values()))


class Race:
    """Opens when the sources have their scores, since the order of the items follows from theirs."""

    def __init__(self, spec: RacingSpec, tasks: Sequence[TaskShape], *, seed: int) -> None:
        self.waiting: dict[str, str] = {}  # recipe digest → weights, until the race opens
        self.runners: dict[str, Runner] = {}
        self.is_open = False
        self._spec = spec
        self._tasks = tuple(tasks)
        self._weights = {one.task: one.weight for one in tasks}
        self._seed = seed
        self._answers: dict[int, Answers] = {}
        self._sources: list[Answers] = []
        self._order: Order = {}
        self._spread: dict[str, float] = {}
        self.steps: list[Step] = []
        self._leaders: list[tuple[tuple[float, int], ...]] = [()]
        """After how many candidates were counted → the best `rank` (−fitness, index) of those with all items."""

    def open(self) -> bool:
        """Fixes the order of the items by the sources' answers; False: they do not tell enough for a race."""
        self._sources = [self._answers[index] for index in sorted(self._answers)]
        if not self._sources:
            return False
        self._order = item_order(self._sources, seed=self._seed)
        self._spread = source_spread(self._sources)
        self.steps = steps(self._order, self._spec.rungs, most=self._spec.unit)
        self.is_open = True
        return True

    def whole(self, index: int, scores: Sequence[TaskScore]) -> None:
        """A candidate that answered all items at once; ignored when it does not say item by item."""
        answers = {one.task: one.item_scores for one in scores}
        if all(one.items and len(answers.get(one.task, ())) == one.items for one in self._tasks):
            self._answers[index] = answers

    def items(self, step: int) -> tuple[TaskItems, ...]:
        """What the job of a step scores."""
        wanted = self.steps[step].items
        return tuple(TaskItems(task=task, positions=places) for task, places in wanted.items() if places)

    def count(self, index: int, fitness: float | None, needed: int) -> None:
        """Notes the next candidate in order of proposal; `fitness` only if it has all items.

        `needed`: how many candidates the next one to be judged may look at, at least.
        """
        leaders = self._leaders[-1]
        if fitness is not None and index in self._answers:
            leaders = tuple(sorted([*leaders, (-fitness, index)])[: self._spec.rank])
        self._leaders.append(leaders)
        if self.is_open and len(self._answers) > KEPT + len(self._sources):
            rivals = {place for later in set(self._leaders[needed:]) for _, place in later}
            self._answers = {i: a for i, a in self._answers.items() if i > index or i in rivals}

    def advance(self, digest: str, rung: int, scores: Sequence[TaskScore]) -> Runner | None:
        """Takes in the result of a step; None when that step is not due (a result may come twice)."""
        runner = self.runners.get(digest)
        if runner is None or rung != runner.step:
            return None
        for one in scores:
            runner.known.setdefault(one.task, {}).update(zip(one.positions, one.item_scores, strict=True))
        return runner

    def judge(self, digest: str, index: int, reads: int, name: Callable[[int], str]) -> CandidateRaced | None:
        """What has become of a candidate after its step; None: it goes on.

        Args:
            reads: of how many candidates, in order of proposal, the rival may be one.
            name: recipe digest by index.

        """
        runner = self.runners[digest]
        if runner.step == len(self.steps) - 1:
            return self._finished(digest, index, runner)
        leaders = self._leaders[min(reads, len(self._leaders) - 1)]
        if not self.steps[runner.step].asks or len(leaders) < self._spec.rank:
            return None
        negative, rival = leaders[-1]
        found = compare(
            runner.known,
            self._answers[rival],
            weights=self._weights,
            order=self._order,
            spread=self._spread,
            margin=self._spec.margin,
        )
        if found.chance >= 1.0 - self._spec.confidence:
            return None
        guess = estimate(runner.known, self._sources, weights=self._weights)
        ceiling = min(guess.fitness, -negative - 1e-9)  # it lost: no estimate may rank it above its rival
        return CandidateRaced(
            recipe_digest=digest,
            index=index,
            stopped=True,
            rung=runner.step,
            items=runner.items,
            fitness=ceiling,
            low=guess.low,
            high=guess.high,
            scores=tuple(TaskScore(task=one.task, score=guess.scores[one.task]) for one in self._tasks),
            against=name(rival),
            chance=found.chance,
        )

    def _finished(self, digest: str, index: int, runner: Runner) -> CandidateRaced:
        answers = {one.task: tuple(runner.known[one.task][place] for place in range(one.items)) for one in self._tasks}
        self._answers[index] = answers
        scores = {task: sum(values) / len(values) for task, values in answers.items()}
        fitness = sum(one.weight * scores[one.task] for one in self._tasks) / sum(one.weight for one in self._tasks)
        return CandidateRaced(
            recipe_digest=digest,
            index=index,
            rung=runner.step,
            items=runner.items,
            fitness=fitness,
            low=fitness,
            high=fitness,
            scores=tuple(TaskScore(task=one.task, score=scores[one.task]) for one in self._tasks),
        )
