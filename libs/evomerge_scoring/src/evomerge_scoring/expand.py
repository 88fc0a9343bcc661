"""Items of tasks that bring their own: lm-eval's and plugins'. Imports neither torch nor lm-eval before it must."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def expand_task(task: Mapping[str, Any]) -> Mapping[str, Any]:
    """A task of a suite with its items; see `evomerge_common.runtime.suite_file.load_suite`.

    Raises:
        SuiteError: what it needs is not installed here, or it cannot be loaded.

    """
    if task["kind"] == "lm_eval":
        from evomerge_scoring.lm_eval_task import expand_lm_eval

        return expand_lm_eval(task)
    if task["kind"] == "plugin":
        from evomerge_scoring.plugin import expand_plugin

        return expand_plugin(task)
    return task
