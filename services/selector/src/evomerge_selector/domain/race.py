"""The race of a run: who has answered which items, who is the rival, who is stopped.

What a race looks at, rival and jury, is picked among the candidates whose results the candidate's own proposal was
allowed to read. All of them have their results by then, so whether it is stopped depends on no order of arrival, and
nobody waits to be told.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from evomerge_common.domain.messages import CandidateRaced, RungEstimate, TaskItems, TaskScore, TaskShape
from evomerge_common.domain.racing import Answers, ItemModel, Step, item_order, shuffled, steps
from evomerge_common.domain.spec import RacingSpec

BEST = 8
"""Candidates with all items, the best, by whose answers, beside the sources', a candidate's are explained."""
MODELS = 16
"""Juries whose model of the items is remembered; each is asked several times."""


@dataclass
class Runner:
    """A candidate under way: its weights, its jobs, the step whose result is due, its answers so far.

    `jury`: by whose answers its own are explained, as indices; the last is the rival, whom it must be able to beat,
    where `has_rival`, with at least this `chance`.
    """

    uri: str
    jury: tuple[int, ...]
    has_rival: bool
    chance: float
    steps: list[Step]
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
        self.size = sum(one.items for one in tasks)
        self._spec = spec
        self._tasks = tuple(tasks)
        self._weights = {one.task: one.weight for one in tasks}
        self._places = shuffled({one.task: one.items for one in tasks}, seed=seed)
        self._answers: dict[int, Answers] = {}
        self._sources: tuple[int, ...] = ()
        self._leaders: dict[int, tuple[tuple[float, int], ...]] = {0: ()}
        """After how many candidates were counted → the best (−fitness, index) of those with all items."""
        self._spent: dict[int, float] = {0: 0.0}
        """After how many candidates were counted → evaluations spent: no share of a budget, which may grow."""

    def open(self) -> bool:
        """Begins; returns False where the sources, or the items, are too few for a race."""
        self._sources = tuple(sorted(self._answers))
        first = steps(item_order(self._places, list(self._answers.values())), self._spec.rungs, most=self.size)
        self.is_open = bool(self._answers) and len(first) > 1
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
        leaders = [index for _, index in self._leaders[reads]]
        has_rival = len(leaders) >= self._spec.rank
        jury = [index for index in (*self._sources, *leaders[:BEST]) if index in self._answers]
        if has_rival:
            jury.append(leaders[self._spec.rank - 1])
        jury = [index for place, index in enumerate(jury) if index not in jury[place + 1 :]]
        order = item_order(self._places, [self._answers[index] for index in jury])
        jobs = steps(order, self._spec.rungs, most=self._spec.unit)
        is_early = self._spent[reads] < self._spec.early
        chance = 1.0 - (self._spec.early_confidence if is_early else self._spec.confidence)
        runner = self.runners[digest] = Runner(uri, tuple(jury), has_rival, chance, jobs)
        return self.items(runner)

    def _model(self, jury: Sequence[int]) -> ItemModel:
        """Returns the model of the items that is calibrated to a jury."""
        answers = (self._answers[index] for index in jury)
        return _calibrated(
            tuple(tuple((task, tuple(values)) for task, values in one.items()) for one in answers),
            tuple(self._weights.items()),
        )

    @staticmethod
    def items(runner: Runner) -> tuple[TaskItems, ...]:
        """Returns the items that the job of its step scores."""
        wanted = runner.steps[runner.step].items
        return tuple(TaskItems(task=task, positions=places) for task, places in wanted.items() if places)

    def count(self, index: int, fitness: float | None, needed: int, spent: float) -> None:
        """Notes the next candidate in order of proposal; `fitness` only if it has all items.

        `needed`: how many candidates the next one to be counted may look at, at least. `spent`: evaluations.
        """
        counted = max(self._leaders)
        leaders = list(self._leaders[counted])
        if fitness is not None and index in self._answers:
            insort(leaders, (-fitness, index))
        self._leaders[counted + 1] = tuple(leaders[: max(BEST, self._spec.rank)])
        self._spent[counted + 1] = spent
        # Who is looked at by none of those to come is forgotten.
        for past in [past for past in self._leaders if past < min(needed, counted + 1)]:
            del self._leaders[past], self._spent[past]
        if not self.is_open:
            return  # of the sources some have answered that are not counted yet
        wanted = {*self._sources, *(place for later in self._leaders.values() for _, place in later)}
        for place in [place for place in self._answers if place < needed and place not in wanted]:
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
        if not runner.steps[runner.step].asks or not runner.has_rival:
            return None
        rival = runner.jury[-1]
        beaten = self._fitness(self._answers[rival])
        guess = self._model(runner.jury).estimate(runner.known)
        runner.estimates.append(RungEstimate(fitness=guess.fitness, low=guess.low, high=guess.high))
        chance = guess.chance(beaten, margin=self._spec.margin)
        if chance >= runner.chance:
            return None
        return CandidateRaced(
            recipe_digest=digest,
            index=index,
            stopped=True,
            rung=runner.step,
            items=runner.items,
            fitness=min(guess.fitness, beaten - 1e-9),  # it lost: no estimate may rank it above its rival
            low=guess.low,
            high=guess.high,
            scores=tuple(TaskScore(task=one.task, score=guess.scores[one.task]) for one in self._tasks),
            against=name(rival),
            chance=chance,
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


@lru_cache(maxsize=MODELS)
def _calibrated(
    jury: tuple[tuple[tuple[str, tuple[float, ...]], ...], ...], weights: tuple[tuple[str, float], ...]
) -> ItemModel:
    """Calibrates once: a jury judges several candidates, and a fold of the log asks the same again."""
    return ItemModel([dict(one) for one in jury], weights=dict(weights))
