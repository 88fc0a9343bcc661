"""Scoring by requests: a kind says what to ask about each item, and what the answers are worth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from evomerge_common.domain.kinds import Request, kind_of
from evomerge_common.domain.messages import Answer, TaskScore
from evomerge_common.domain.scores import task_score
from evomerge_common.domain.task import Content, Item, Task
from evomerge_common.errors import SuiteError
from evomerge_scoring.asking import EncodedRequests
from evomerge_scoring.encode import Encoder
from evomerge_scoring.kinds import guarded
from evomerge_scoring.model import ScoringModel

TOLERANCE = 1e-6
"""How far beyond 0 and 1 a score may be, from rounding."""
ANSWERS, ANSWER_LENGTH = 3, 400
"""Of a task that generates so many answers are told with the scores, each cut to so many characters: enough to look at,
and of thousands of candidates no more than their item scores."""


class Requests:
    """A task's items with their requests encoded; see `kinds.Prepared`."""

    def __init__(self, task: Task, items: Sequence[Item], encoder: Encoder) -> None:
        self.task, self.items, self.kind, self.encoder = task, items, kind_of(task.kind), encoder
        self.contents = guarded(task.name, self.kind.contents, task, items)
        requests = [tuple(guarded(task.name, self.requests, content)) for content in self.contents]
        self._counts = [len(some) for some in requests]
        self.encoded = EncodedRequests([one for some in requests for one in some], encoder, name=task.name)

    def requests(self, content: Content) -> Sequence[Request]:
        """Asks about an item as its kind does."""
        return self.kind.requests(self.task, content)

    @property
    def truncated(self) -> int:
        """See `kinds.Prepared`."""
        return self.encoded.truncated

    def score(self, model: ScoringModel, size: int, advance: Callable[[int], None]) -> TaskScore:
        """See `kinds.Prepared`."""
        one_each = all(count == 1 for count in self._counts)
        answers = iter(self.encoded.answers(model, size, advance if one_each else _nothing))
        found = [list(islice(answers, count)) for count in self._counts]
        scores = self.scores(found)
        for score in scores:
            if isinstance(score, bool) or not isinstance(score, int | float):
                raise SuiteError(f"task {self.task.name!r}: a score must be a number from 0 to 1, not {score!r}")
            if not -TOLERANCE <= score <= 1 + TOLERANCE:
                raise SuiteError(f"task {self.task.name!r}: a score must be a number from 0 to 1, not {score!r}")
        return replace(task_score(self.task, self.items, scores), answers=_written(found))

    def scores(self, answers: Sequence[Sequence[Any]]) -> list[float]:
        """Each item's score from the answers to its requests."""
        pairs = zip(self.contents, answers, strict=True)
        return [guarded(self.task.name, self.kind.score, self.task, content, found) for content, found in pairs]


def _written(answers: Sequence[Sequence[Any]]) -> tuple[Answer, ...]:
    """What the model wrote to the first items, where it was asked to write."""
    texts = [(place, some[0]) for place, some in enumerate(answers[:ANSWERS]) if some and isinstance(some[0], str)]
    return tuple(Answer(position=place, text=_short(text)) for place, text in texts)


def _short(text: str) -> str:
    """The beginning of a text; a lone surrogate, which no message can carry, becomes a question mark."""
    some = text if len(text) <= ANSWER_LENGTH else text[: ANSWER_LENGTH - 1] + "…"
    return some.encode("utf-8", "replace").decode("utf-8")


def _nothing(_: int) -> None:
    pass
