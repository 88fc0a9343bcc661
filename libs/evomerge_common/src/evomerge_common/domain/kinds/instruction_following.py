"""instruction_following: an answer that keeps to rules which a program can check."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from evomerge_common.domain.kinds.exact_match import Generation
from evomerge_common.domain.task import Content, Task
from evomerge_common.errors import Path, SuiteError, did_you_mean


def _words(text: str) -> int:
    return len(text.split())


def _sentences(text: str) -> int:
    return len([part for part in re.split(r"[.!?]+(?:\s|$)", text.strip()) if part.strip()])


def _is_json(text: str) -> bool:
    bare = re.sub(r"^```(?:json)?\n(.*)\n```$", r"\1", text.strip(), flags=re.DOTALL)
    try:
        json.loads(bare)
    except (ValueError, RecursionError):
        return False
    return True


def _bullets(text: str) -> int:
    return len(re.findall(r"^\s*(?:[-*•]|\d+[.)])\s+\S", text, flags=re.MULTILINE))


CHECKS: dict[str, tuple[type, Callable[[str, Any], bool]]] = {
    "contains": (str, lambda text, value: value.lower() in text.lower()),
    "not_contains": (str, lambda text, value: value.lower() not in text.lower()),
    "starts_with": (str, lambda text, value: text.strip().lower().startswith(value.lower())),
    "ends_with": (str, lambda text, value: text.strip().lower().endswith(value.lower())),
    "min_words": (int, lambda text, value: _words(text) >= value),
    "max_words": (int, lambda text, value: 0 < _words(text) <= value),
    "min_sentences": (int, lambda text, value: _sentences(text) >= value),
    "max_sentences": (int, lambda text, value: 0 < _sentences(text) <= value),
    "bullets": (int, lambda text, value: _bullets(text) == value),
    "matches": (str, lambda text, value: re.search(value, text, re.MULTILINE) is not None),
    "json": (bool, lambda text, value: _is_json(text) == value),
    "lowercase": (bool, lambda text, value: (bool(text.strip()) and text == text.lower()) == value),
    "uppercase": (bool, lambda text, value: (bool(text.strip()) and text == text.upper()) == value),
}
"""Instructions that a program can verify, in the manner of IFEval (Zhou et al. 2023, arXiv:2311.07911): name → type of
its value, and whether a text follows it."""


class InstructionFollowing(Generation):
    """An item is a prompt and the checks of what is said."""

    name = "instruction_following"
    summary = f"greedy answer, checked by rules: {', '.join(CHECKS)}"
    fields = ("prompt", "checks")
    metrics = ("instruction_acc", "prompt_acc")
    stop = ()
    max_new_tokens = 128

    def check_item(self, content: Content, path: Path) -> None:
        """Checks an item's checks, see `check_checks`."""
        check_checks(content["checks"], (*path, "checks"))

    def score(self, task: Task, content: Content, answers: Sequence[Any]) -> float:
        """Judges what was said, see `judge_instructions`."""
        return judge_instructions(answers[0], content["checks"], task.metric)


def check_checks(checks: Any, path: Path) -> None:
    """Checks that an item's checks mean something.

    Raises:
        SuiteError: none, an unknown one, or a value of another type.

    """
    if not isinstance(checks, Mapping) or not checks:
        raise SuiteError("`checks` must be an object such as {contains: word, max_words: 50}", path)
    for name, value in checks.items():
        if name not in CHECKS:
            raise SuiteError(f"unknown check {name!r}; {did_you_mean(str(name), CHECKS)}", (*path, str(name)))
        if type(value) is not CHECKS[name][0]:
            raise SuiteError(f"{name} takes {CHECKS[name][0].__name__}, not {value!r}", (*path, name))
        if name == "matches":
            try:
                re.compile(str(value))
            except re.error as error:
                raise SuiteError(f"no regular expression: {error}", (*path, name)) from error


def judge_instructions(text: str, checks: Mapping[str, Any], metric: str) -> float:
    """Returns the share of the instructions that a text follows (instruction_acc), or whether all (prompt_acc)."""
    verdicts = [CHECKS[name][1](text, value) for name, value in checks.items()]
    return float(all(verdicts)) if metric == "prompt_acc" else sum(verdicts) / len(verdicts)


KIND = InstructionFollowing()
