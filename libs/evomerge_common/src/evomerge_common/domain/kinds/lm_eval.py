"""lm_eval: tasks of EleutherAI's lm-evaluation-harness."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from evomerge_common.domain.kinds.kind import Kind, check_name
from evomerge_common.domain.task import Task
from evomerge_common.errors import Path


class LmEval(Kind):
    """An item is the digest of one of the harness's documents, which loads and judges them itself."""

    name = "lm_eval"
    summary = (
        "a task of EleutherAI's lm-evaluation-harness by name, or of a local task folder (needs the extra lm-eval)"
    )
    fields = ("document",)
    texts = ("document",)
    options: ClassVar[Mapping[str, Any]] = {
        "task": None,
        "folder": "",
        "num_fewshot": -1,
        "filter": "",
        "requests": "",
        "split": "",
    }
    paths = ("folder",)
    own_items = True
    scored_by = "evomerge_scoring.kinds.lm_eval:LmEvalItems"
    expanded_by = "evomerge_scoring.kinds.lm_eval:expand_lm_eval"

    def read_options(self, data: Mapping[str, Any], path: Path) -> dict[str, Any]:
        """Refuses a task without a name."""
        options = super().read_options(data, path)
        check_name(options, "task", path)
        return options

    def test_split_of(self, task: Task) -> str | None:
        """Asks the harness which split its documents are of; a local folder's task is as good as its name."""
        if task.options.get("folder"):
            return None
        return str(task.options["task"]) if task.options.get("split") == "test" else ""


KIND = LmEval()
