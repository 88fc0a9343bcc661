"""Partial credit: how likely a model finds the right answer of an item that it would have to say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from evomerge_common.domain.kinds import Choices, Continuation, Request
from evomerge_common.domain.task import Content
from evomerge_scoring.kinds.requests import Requests


class Credit(Requests):
    """Scores an item by the geometric mean of the probabilities of its right answer's tokens, teacher-forced.

    The answer's end is a part of it: the first stop string or the tokenizer's end of text, whichever is likelier. Of
    several right answers the likeliest counts. One forward pass over prompt and answers, which share the prompt; code,
    whose end is no part of it, is asked without one.
    """

    def requests(self, content: Content) -> Sequence[Request]:
        """Asks how likely each right answer is with each end."""
        first = next(iter(self.kind.requests(self.task, content)), None)
        answers = self._answers(content)
        if not isinstance(first, Continuation) or not answers:
            return []
        return [Choices(first.prompt, answers, first.chat, first.image)]

    def scores(self, answers: Sequence[Sequence[Any]]) -> list[float]:
        """Each item's credit, 0 to 1; 0 of an item without a right answer."""
        return [self._credit(content, found) for content, found in zip(self.contents, answers, strict=True)]

    def _credit(self, content: Content, found: Sequence[Any]) -> float:
        if not found:
            return 0.0
        lengths = [max(1, len(ids)) for ids in self._tokens(self._answers(content))]
        return max(math.exp(min(0.0, total / length)) for total, length in zip(found[0], lengths, strict=True))

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        ids: list[list[int]] = self.encoder.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return ids

    def _answers(self, content: Content) -> list[str]:
        ends = [end for end in (*self.task.stop[:1], self.encoder.tokenizer.eos_token) if end]
        if self.kind.runs_code or not ends:
            ends = [""]
        return [answer + end for answer in self.kind.right_answers(self.task, content) for end in ends]
