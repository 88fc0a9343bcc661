"""code: programs that the model writes, run against unit tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from evomerge_common.domain.kinds.exact_match import Generation
from evomerge_common.domain.task import Content, Task
from evomerge_common.errors import Path, SuiteError


class Code(Generation):
    """An item is a program's beginning, the tests of the whole, and perhaps what follows the beginning (`solution`).

    The sandbox is `evomerge_scoring.kinds.code`'s.
    """

    name = "code"
    summary = "greedy generation of code, run against unit tests in a sandbox (needs EVOMERGE_ALLOW_CODE=true)"
    fields = ("prompt", "tests")
    optional = ("solution",)
    texts = ("prompt", "tests", "solution")
    filled = ("tests",)
    metrics = ("pass@1",)
    options: ClassVar[Mapping[str, Any]] = {"timeout": 5.0, "memory_mb": 512}
    stop = ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint(", "\n```")
    max_new_tokens = 256
    runs_code = True
    scored_by = "evomerge_scoring.kinds.code:Programs"

    def read_options(self, data: Mapping[str, Any], path: Path) -> dict[str, Any]:
        """Refuses limits that are none."""
        options = super().read_options(data, path)
        if not (0 < options["timeout"] <= 600 and 64 <= options["memory_mb"] <= 65536):
            raise SuiteError("`timeout` must be at most 600 seconds and `memory_mb` from 64 to 65536", path)
        return options

    def check_task(self, task: Task, path: Path) -> None:
        """Checks nothing: programs are not extracted."""

    def grades(self, task: Task) -> bool:
        """Graded where an item says how its program goes on."""
        return any(item.content.get("solution") for item in task.items)

    def right_answers(self, task: Task, content: Content) -> Sequence[str]:
        """Returns the item's solution."""
        return [content["solution"]] if content.get("solution") else []

    def program(self, content: Content, answers: Sequence[Any]) -> str:
        """Writes the whole program of an item, tests included; called by the sandbox's side for each candidate."""
        return f"{content['prompt']}{answers[0]}\n\n{content['tests']}\n"


KIND = Code()
