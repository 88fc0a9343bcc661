"""Tasks of a user's own, found by entry point; see `evomerge_common.runtime.user_tasks`."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from evomerge_common.domain.messages import TaskScore
from evomerge_common.domain.scores import task_score
from evomerge_common.domain.suite import Item, Task
from evomerge_common.errors import EvoMergeException, SuiteError, did_you_mean
from evomerge_common.runtime.user_tasks import ENTRY_POINTS, Continuation, Loglikelihood, UserTask, plugin_names
from evomerge_scoring.asking import Advance, Asker
from evomerge_scoring.encode import Encoder
from evomerge_scoring.generation import Stop
from evomerge_scoring.model import ScoringModel

T = TypeVar("T")


def load_plugin(name: str) -> UserTask:
    """The task of an entry point: the object that it names, or what its class makes without arguments.

    Raises:
        SuiteError: it is not installed, or cannot be loaded.

    """
    entries = list(importlib.metadata.entry_points(group=ENTRY_POINTS, name=name))
    if not entries:
        known = plugin_names()
        hint = did_you_mean(name, known) if known else "none is"
        raise SuiteError(f"no user task {name!r} is installed here (entry points {ENTRY_POINTS}); {hint}", ("plugin",))
    found = guarded(name, entries[0].load)
    task: UserTask = guarded(name, found) if isinstance(found, type) else found
    return task


def guarded(name: str, work: Callable[..., T], *arguments: Any) -> T:
    """Whatever a user's code raises, as an error that names it."""
    try:
        return work(*arguments)
    except EvoMergeException:
        raise
    except Exception as error:
        raise SuiteError(f"user task {name!r} failed: {type(error).__name__}: {error}") from error


def expand_plugin(task: Mapping[str, Any]) -> Mapping[str, Any]:
    """The task with its items, as the plugin makes them from the task's `options`."""
    plugin = load_plugin(str(task.get("plugin", "")))
    items = guarded(str(task["plugin"]), lambda: [dict(item) for item in plugin.items(task.get("options") or {})])
    return {**task, "items": items}


class PluginItems:
    """A user task's items with their requests."""

    truncated = 0

    def __init__(self, task: Task, items: Sequence[Item], encoder: Encoder) -> None:
        self._task, self._items, self._encoder = task, items, encoder
        self._name = str(task.options["plugin"])
        self._plugin = load_plugin(self._name)
        self._requests = [list(guarded(self._name, self._plugin.requests, item.content)) for item in items]

    def score(self, model: ScoringModel, size: int, advance: Advance) -> TaskScore:
        """See `tasks.Prepared`."""
        asker = Asker(model, self._encoder, size)
        flat = [request for requests in self._requests for request in requests]
        likelihoods = [r for r in flat if isinstance(r, Loglikelihood)]
        continuations = [r for r in flat if isinstance(r, Continuation)]
        if len(likelihoods) + len(continuations) < len(flat):
            raise SuiteError(f"user task {self._name!r}: requests must be Loglikelihood or Continuation")
        found = iter(asker.loglikelihoods([(r.context, r.continuation) for r in likelihoods]) if likelihoods else [])
        said = iter(
            asker.continuations([(r.prompt, Stop(tuple(r.stop), r.max_new_tokens)) for r in continuations])
            if continuations
            else []
        )
        values = []
        for item, requests in zip(self._items, self._requests, strict=True):
            answers = [next(found)[0] if isinstance(r, Loglikelihood) else next(said) for r in requests]
            value = guarded(self._name, self._plugin.score, item.content, answers)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise SuiteError(f"user task {self._name!r}: a score must be a number from 0 to 1, not {value!r}")
            values.append(float(value))
        advance(len(values))
        return task_score(self._task, self._items, values)
