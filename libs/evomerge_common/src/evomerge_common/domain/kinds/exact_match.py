"""exact_match: the model says the answer, to the letter."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, ClassVar

from evomerge_common.domain.kinds.kind import IMAGE, Continuation, Kind, Words
from evomerge_common.domain.task import Content, Task
from evomerge_common.errors import Path, SuiteError


class Generation(Kind):
    """Basic: an item has a prompt, which the model continues; subclasses judge what it said."""

    fields: ClassVar[Words] = ("prompt",)
    texts: ClassVar[Words] = ("prompt",)
    generates = True

    def check_task(self, task: Task, path: Path) -> None:
        """Refuses an `extract` that is no regular expression."""
        try:
            re.compile(task.extract, re.MULTILINE)
        except re.error as error:
            raise SuiteError(
                f"task {task.name!r}: `extract` is no regular expression: {error}", (*path, "extract")
            ) from error

    def grades(self, task: Task) -> bool:
        """Graded where the right answer is all that is said: what leads to an extracted one has many wordings."""
        return not task.extract and type(self).right_answers is not Kind.right_answers

    def requests(self, task: Task, content: Content) -> Sequence[Continuation]:
        """Asks to continue the prompt."""
        return [Continuation(content["prompt"], task.stop, task.max_new_tokens, task.chat, content.get(IMAGE, ""))]


class ExactMatch(Generation):
    """An item is a prompt and the answer."""

    name = "exact_match"
    summary = "greedy generation up to a stop string, compared with the answer"
    fields = ("prompt", "answer")
    optional = (IMAGE,)
    metrics = ("exact_match",)

    def check_item(self, content: Content, path: Path) -> None:
        """Refuses an empty answer."""
        if not isinstance(content["answer"], str) or not content["answer"]:
            raise SuiteError("`answer` must be text and not empty", (*path, "answer"))

    def score(self, task: Task, content: Content, answers: Sequence[Any]) -> float:
        """Compares what was said with the answer, spaces around aside."""
        return float(extracted(answers[0], task.extract) == content["answer"].strip())

    def right_answers(self, task: Task, content: Content) -> Sequence[str]:
        """Returns the answer, with a space before it and without."""
        return spaced(content["prompt"], [content["answer"]])


def spaced(prompt: str, answers: Sequence[str]) -> list[str]:
    """Lists answers as they may follow a prompt: spaces around an answer do not count, so both ways are right."""
    if prompt[-1:].isspace():
        return list(dict.fromkeys(answer.strip() for answer in answers))
    return list(dict.fromkeys(text for answer in answers for text in (answer.rstrip(), " " + answer.strip())))


def extracted(text: str, pattern: str) -> str | None:
    """Finds the answer in a generated text: what the pattern's first group found, else all of it; stripped."""
    if not pattern:
        return text.strip()
    match = re.search(pattern, text, re.MULTILINE)
    if match is None:
        return None
    return (match.group(1 if match.re.groups else 0) or "").strip()


KIND = ExactMatch()
