"""The race of a run: who has answered which items, who is the rival, who is stopped.

What a race looks at, rival and jury, is picked among the candidates whose results the candidate's own proposal was
allowed to read. All of them have their results by then, so whether it is stopped depends on no order of arrival, and
nobody waits to be told.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from evomerge_common.domain.messages import CandidateRaced, RungEstimate, TaskItems, TaskScore, TaskShape
from evomerge_common.domain.racing import (
    Answers,
    Step,
    Stratum,
    compare,
    estimate,
    item_order,
    shuffled,
    steps,
    strata,
)
from evomerge_common.domain.spec import RacingSpec

JURY = 8
"""Candidates with all items, the latest, by whose answers the items are ordered and weighed; and the rival."""


@dataclass
class Runner:
    """A candidate under way: its weights, its jobs, the step whose result is due, its answers so far.

    `rival` is the place of whom it must be able to beat, −1 where there is none; `reads` as of `Race.start`.
    """

    uri: str
    reads: int
    rival: int
    steps: list[Step]
    strata: list[Stratum]
    step: int = 0
    known: dict[str, dict[int, float]] = field(default_factory=dict)
    estimates: list[RungEstimate] = field(default_factory=list)

    @property
    def items(self) -> int:
        """Answers so far."""
        return sum(map(len, self.known.values()))


class Race:
    """Opens when the sources have their scores: they are the first jury."""

    def __init__(self, spec: RacingSpec, tasks: Sequence[TaskShape], *, seed: int) -> None:
        self.waiting: dict[str, str] = {}  # recipe digest → weights, until the race opens
        self.runners: dict[str, Runner] = {}
        self.is_open = False
        self._spec = spec
        self._tasks = tuple(tasks)
        self._weights = {one.task: one.weight for one in tasks}
        self._places = shuffled({one.task: one.items for one in tasks}, seed=seed)
        self._answers: dict[int, Answers] = {}
        self._leaders: list[tuple[tuple[float, int], ...]] = [()]
        """After how many candidates were counted → the best `rank` (−fitness, index) of those with all items."""

    def open(self) -> bool:
        """Begins; returns False where the sources do not tell enough for a race."""
        self.is_open = bool(self._answers)
        return self.is_open

    def whole(self, index: int, scores: Sequence[TaskScore]) -> None:
        """Takes in a candidate that answered all items at once; ignored when it does not say item by item."""
        answers = {one.task: one.item_scores for one in scores}
        if all(one.items and len(answers.get(one.task, ())) == one.items for one in self._tasks):
            self._answers[index] = answers

    def start(self, digest: str, uri: str, reads: int) -> tuple[TaskItems, ...]:
        """Sends a candidate into the race; what its first job scores.

        Args:
            reads: of how many candidates, in order of proposal, rival and jury may be some.

        """
        leaders = self._leaders[min(reads, len(self._leaders) - 1)]
        rival = leaders[-1][1] if len(leaders) == self._spec.rank else -1
        jury = self._jury(reads, rival)
        order = item_order(self._places, jury)
        parts = [] if rival < 0 else strata(order, jury, self._answers[rival], weights=self._weights)
        jobs = steps(order, self._spec.rungs, most=self._spec.unit)
        runner = self.runners[digest] = Runner(uri, reads, rival, jobs, parts)
        return self.items(runner)

    def _jury(self, reads: int, rival: int) -> list[Answers]:
        latest = sorted(index for index in self._answers if index < reads)[-JURY:]
        return [self._answers[index] for index in latest if index != rival] + (
            [self._answers[rival]] if rival >= 0 else []
        )

    @staticmethod
    def items(runner: Runner) -> tuple[TaskItems, ...]:
        """Returns the items that the job of its step scores."""
        wanted = runner.steps[runner.step].items
        return tuple(TaskItems(task=task, positions=places) for task, places in wanted.items() if places)

    def count(self, index: int, fitness: float | None, needed: int) -> None:
        """Notes the next candidate in order of proposal; `fitness` only if it has all items.

        `needed`: how many candidates the next one to be counted may look at, at least.
        """
        leaders = list(self._leaders[-1])
        if fitness is not None and index in self._answers:
            insort(leaders, (-fitness, index))
        self._leaders.append(tuple(leaders[: self._spec.rank]))
        # Who is looked at by none of those to come is forgotten.
        rivals = {place for later in set(self._leaders[needed:]) for _, place in later}
        past = sorted(place for place in self._answers if place < needed)
        for place in past[:-JURY]:
            if place not in rivals:
                del self._answers[place]

    def advance(self, digest: str, rung: int, scores: Sequence[TaskScore]) -> Runner | None:
        """Takes in the result of a step; None when that step is not due (a result may come twice)."""
        runner = self.runners.get(digest)
        if runner is None or rung != runner.step:
            return None
        for one in scores:
            runner.known.setdefault(one.task, {}).update(zip(one.positions, one.item_scores, strict=True))
        return runner

    def judge(self, digest: str, index: int, name: Callable[[int], str]) -> CandidateRaced | None:
        """Decides what becomes of a candidate after its step; None: it goes on. `name`: recipe digest by index."""
        runner = self.runners[digest]
        if runner.step == len(runner.steps) - 1:
            return self._finished(digest, index, runner)
        if not runner.steps[runner.step].asks or runner.rival < 0:
            return None
        rival = self._answers[runner.rival]
        guess = estimate(runner.known, self._jury(runner.reads, runner.rival), weights=self._weights)
        runner.estimates.append(RungEstimate(fitness=guess.fitness, low=guess.low, high=guess.high))
        found = compare(runner.known, rival, runner.strata, margin=self._spec.margin)
        if found.chance >= 1.0 - self._spec.confidence:
            return None
        ceiling = min(guess.fitness, self._fitness(rival) - 1e-9)  # it lost: no estimate may rank it above its rival
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
            against=name(runner.rival),
            chance=found.chance,
            estimates=tuple(runner.estimates),
        )

    def _finished(self, digest: str, index: int, runner: Runner) -> CandidateRaced:
        answers = {one.task: tuple(runner.known[one.task][place] for place in range(one.items)) for one in self._tasks}
        self._answers[index] = answers
        fitness = self._fitness(answers)
        return CandidateRaced(
            recipe_digest=digest,
            index=index,
            rung=runner.step,
            items=runner.items,
            fitness=fitness,
            low=fitness,
            high=fitness,
            scores=tuple(TaskScore(task=task, score=sum(values) / len(values)) for task, values in answers.items()),
            estimates=tuple(runner.estimates),
        )

    def _fitness(self, answers: Answers) -> float:
        means = {task: sum(values) / len(values) for task, values in answers.items()}
        return sum(self._weights[task] * mean for task, mean in means.items()) / sum(self._weights.values())
