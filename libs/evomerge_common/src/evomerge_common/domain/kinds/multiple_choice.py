"""multiple_choice: the likeliest of several answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from evomerge_common.domain.kinds.kind import IMAGE, Choices, Kind, Words
from evomerge_common.domain.task import Content, Task
from evomerge_common.errors import Path, SuiteError


class MultipleChoice(Kind):
    """Basic: an item is a prompt, its choices, and the place of the right one."""

    name = "multiple_choice"
    summary = "log-likelihood of each choice after the prompt; acc or acc_norm (per byte)"
    fields: ClassVar[Words] = ("prompt", "choices", "answer")
    optional: ClassVar[Words] = (IMAGE,)
    texts: ClassVar[Words] = ("prompt",)
    metrics: ClassVar[Words] = ("acc", "acc_norm")

    def check_item(self, content: Content, path: Path) -> None:
        """Refuses fewer than two choices, and an answer that is none of their places."""
        choices, answer = content["choices"], content["answer"]
        if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c for c in choices):
            raise SuiteError("`choices` must be two or more texts, none empty", (*path, "choices"))
        if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
            raise SuiteError(f"`answer` must be the index of a choice, 0 to {len(choices) - 1}", (*path, "answer"))

    def requests(self, task: Task, content: Content) -> Sequence[Choices]:
        """Asks for all choices at once."""
        return [Choices(content["prompt"], content["choices"], task.chat, content.get(IMAGE, ""))]

    def score(self, task: Task, content: Content, answers: Sequence[Any]) -> float:
        """Tells whether the likeliest choice is the right one."""
        return float(choose(content["choices"], answers[0], task.metric) == content["answer"])


def choose(choices: Sequence[str], loglikelihoods: Sequence[float], metric: str) -> int:
    """Returns the index of the likeliest choice, by `acc_norm` per byte; the first among equals."""
    lengths = [len(c.encode()) if metric == "acc_norm" else 1 for c in choices]
    values = [ll / n for ll, n in zip(loglikelihoods, lengths, strict=True)]
    return values.index(max(values))


KIND = MultipleChoice()
