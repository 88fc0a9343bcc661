"""plugin: one task of a user's own, in the short form `kind.UserTask`."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from evomerge_common.domain.kinds.installed import load_installed
from evomerge_common.domain.kinds.kind import Kind, Request, UserTask, check_name
from evomerge_common.domain.task import Content, Task
from evomerge_common.errors import Path


class Plugin(Kind):
    """An item holds whatever the user's task put there; its hooks are the user's."""

    name = "plugin"
    summary = "a task of your own: an entry point of the group evomerge.tasks"
    options: ClassVar[Mapping[str, Any]] = {"plugin": None, "options": {}}
    own_items = True

    def read_options(self, data: Mapping[str, Any], path: Path) -> dict[str, Any]:
        """Refuses a task without a name."""
        options = super().read_options(data, path)
        check_name(options, "plugin", path)
        return options

    def read_item(self, data: Mapping[str, Any], path: Path) -> dict[str, Any]:
        """Keeps all but the `id`."""
        return {key: value for key, value in data.items() if key != "id"}

    def items(self, task: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
        """Asks the user's task for its items, with the task's `options`."""
        return _user_task(str(task.get("plugin", ""))).items(task.get("options") or {})

    def requests(self, task: Task, content: Content) -> Sequence[Request]:
        """Asks the user's task."""
        return list(_user_task(task.options["plugin"]).requests(content))

    def score(self, task: Task, content: Content, answers: Sequence[Any]) -> float:
        """Asks the user's task."""
        return _user_task(task.options["plugin"]).score(content, answers)


@functools.cache
def _user_task(name: str) -> UserTask:
    found: UserTask = load_installed(name)
    return found


KIND = Plugin()
