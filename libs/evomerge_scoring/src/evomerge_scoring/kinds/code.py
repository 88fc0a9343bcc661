"""Scoring of code: what the model says becomes a program, and the program is run in the sandbox."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from evomerge_common.domain.kinds.code import KIND
from evomerge_scoring.kinds.requests import Requests
from evomerge_scoring.sandbox import Sandbox

AT_ONCE = 2
"""Programs of a task that run at the same time."""


class Programs(Requests):
    """An item scores 1 where its program passes."""

    def scores(self, answers: Sequence[Sequence[Any]]) -> list[float]:
        """See `Requests`."""
        sandbox = Sandbox(seconds=self.task.options["timeout"], memory_bytes=self.task.options["memory_mb"] << 20)
        programs = [KIND.program(content, said) for content, said in zip(self.contents, answers, strict=True)]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return [float(verdict.passed) for verdict in pool.map(sandbox.run, programs)]
