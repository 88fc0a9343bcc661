"""Partial credit: what a search sees of a skill before its score moves.

An answer that a model must say is right or wrong, so a skill that dies in every merge looks the same in all of them.
How likely a candidate finds the right answers (its partial credit, see `evomerge_scoring.kinds.credit`) still tells
which is nearer. It steers the search alone: strategies are told score + SHARE × credit, while leaderboard, champion and
proof go by the task's own score.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from evomerge_common.domain.messages import TaskGraded, TaskScore, TaskShape
from evomerge_common.domain.pareto import Point
from evomerge_common.domain.task import AUTO, GRADED
from evomerge_selector.domain.candidate import FAILED, Candidate

SHARE = 0.25
"""What the credit of an item counts, where a right answer counts 1: so one item that becomes right outweighs whatever
four others lose in credit, and no credit is worth an answer."""
FEWEST = 3
"""Merges that must agree before a skill is said to die in all of them."""
DOUBT = 0.05
"""So unlikely must chance make a difference before it counts as one."""


@dataclass(frozen=True)
class Grading:
    """Of which tasks partial credit is asked for, and which it steers.

    Attributes:
        tasks: the suite's, in the order of a candidate's scores.
        after: so many results, in order of proposal, decide on the tasks that say auto.
        graded: the tasks that partial credit steers.
        decided: whether the tasks that say auto have been decided on.

    """

    tasks: tuple[TaskShape, ...] = ()
    after: int = 0
    graded: tuple[str, ...] = ()
    decided: bool = True

    @classmethod
    def of(cls, tasks: Sequence[TaskShape], after: int) -> Grading:
        """Begins with what the suite says."""
        graded = tuple(one.task for one in tasks if one.fitness == GRADED)
        return cls(tuple(tasks), after, graded, not any(one.fitness == AUTO for one in tasks))

    @property
    def waits_for(self) -> int:
        """Counts the results before which no strategy is told any: the first of them would lack their credit."""
        return self.after if any(one.fitness == AUTO for one in self.tasks) else 0

    def asked(self, reads: int) -> tuple[str, ...]:
        """Names the tasks whose credit is asked of a candidate, by how many results its proposal may read."""
        open_ones = [one.task for one in self.tasks if one.fitness == AUTO and reads < self.after]
        return tuple(dict.fromkeys([*self.graded, *open_ones]))

    def decide(self, candidates: Sequence[Candidate]) -> tuple[Grading, list[TaskGraded]]:
        """Decides on the tasks that say auto: graded is one that no merge moves and a source is better at.

        No merge moves a task where all score the same, or where the best of them is no better than chance makes the
        best among so many and a source is: it has twice as much at least, and more than chance explains.

        Args:
            candidates: the first `after`, in order of proposal.

        """
        scored = [one for one in candidates if one.is_whole and len(one.scores) == len(self.tasks)]
        sources = [one for one in scored if one.proposed.operator == "source"]
        merges = [one for one in scored if one.proposed.operator != "source"]
        decisions = []
        for place, task in enumerate(self.tasks):
            found = [one.scores[place] for one in merges]
            best = max((one.scores[place] for one in sources), default=0.0)
            if task.fitness == AUTO and len(found) >= FEWEST and _is_dead(found, best, task.items):
                low, high = (f"{level:.3f}" for level in (min(found), max(found)))
                scores = f"each of the first {len(found)} merges scores {low if low == high else f'{low} to {high}'}"
                decisions.append(TaskGraded(task=task.task, reason=f"{scores}, the best source {best:.3f}"))
        graded = (*self.graded, *(one.task for one in decisions))
        return Grading(self.tasks, self.after, graded, decided=True), decisions

    def steered(self, candidate: Candidate) -> tuple[float, Point]:
        """Returns fitness and task scores as strategies are told them."""
        fitness = FAILED if candidate.fitness is None else candidate.fitness
        if not self.graded or not candidate.credits or fitness == FAILED:
            return fitness, candidate.scores
        extra = [
            SHARE * total / items if items and task.task in self.graded else 0.0
            for task, (total, items) in zip(self.tasks, candidate.credits, strict=True)
        ]
        weight = sum(task.weight for task in self.tasks)
        gain = sum(task.weight * more for task, more in zip(self.tasks, extra, strict=True)) / weight
        return fitness + gain, tuple(score + more for score, more in zip(candidate.scores, extra, strict=True))

    def credited(self, candidate: Candidate, scores: Sequence[TaskScore]) -> tuple[tuple[float, int], ...]:
        """Adds the credit of a result, all items or a rung of a race, to a candidate's: (sum, items) of each task."""
        if not self.tasks:
            return ()
        known = candidate.credits or ((0.0, 0),) * len(self.tasks)
        fresh = {one.task: (one.credit * len(one.item_scores), len(one.item_scores)) for one in scores}
        return tuple(
            (total + fresh.get(task.task, (0.0, 0))[0], items + fresh.get(task.task, (0.0, 0))[1])
            for task, (total, items) in zip(self.tasks, known, strict=True)
        )


def _is_dead(merges: Sequence[float], source: float, items: int) -> bool:
    """Tells whether no merge moves a task's score, though a source has more."""
    best = max(merges)
    if min(merges) == best:
        return source > best
    right, most = round(sum(merges) * items), round(best * items)
    luck = len(merges) * at_least(most, drawn=items, right=right, of=len(merges) * items)
    better = at_least(round(source * items), drawn=items, right=round((source + best) * items), of=2 * items)
    return luck > DOUBT >= better and source >= 2 * best


def at_least(count: int, *, drawn: int, right: int, of: int) -> float:
    """Returns the chance that of `of` answers, `right` of them right, `drawn` have `count` right ones or more.

    That is Fisher's exact test, one-sided (The Logic of Inductive Inference, 1935).
    """
    low, high = max(count, drawn - (of - right)), min(right, drawn)
    chances = (_log_ways(right, k) + _log_ways(of - right, drawn - k) for k in range(low, high + 1))
    return sum(math.exp(chance - _log_ways(of, drawn)) for chance in chances)


def _log_ways(of: int, drawn: int) -> float:
    """The logarithm of the binomial coefficient: the number itself has thousands of digits."""
    return math.lgamma(of + 1) - math.lgamma(drawn + 1) - math.lgamma(of - drawn + 1)
