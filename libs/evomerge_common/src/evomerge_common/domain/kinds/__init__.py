"""Kinds of task, one a file: what their items hold, what they ask of a model, what the answers are worth.

`kind_of(task.kind)` is the one way from a word to what it means; nothing else in EvoMerge knows a kind by its name. To
add one, add a file here (see `kind.Kind`), or install a package with an entry point of the group `evomerge.tasks`.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping

from evomerge_common.domain.kinds.installed import ENTRY_POINTS, installed_names, load_installed
from evomerge_common.domain.kinds.kind import (
    IMAGE,
    Choices,
    Continuation,
    Document,
    Kind,
    Loglikelihood,
    Request,
    UserTask,
)
from evomerge_common.errors import SuiteError, did_you_mean

__all__ = [
    "ENTRY_POINTS", "IMAGE", "KINDS", "Choices", "Continuation", "Document", "Kind", "Loglikelihood", "Request",
    "UserTask", "installed_names", "kind_of",
]  # fmt: skip


def _own_kinds() -> dict[str, Kind]:
    """The `KIND` of each file of this package that has one."""
    modules = [importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]
    return {kind.name: kind for kind in (getattr(module, "KIND", None) for module in modules) if kind is not None}


KINDS: Mapping[str, Kind] = _own_kinds()
"""Name → kind, of EvoMerge's own."""


def kind_of(name: str) -> Kind:
    """Finds the kind with this name: one of EvoMerge's own, else an installed one.

    Raises:
        SuiteError: there is none; names the nearest.

    """
    return KINDS[name] if name in KINDS else _installed_kind(name)


@functools.cache
def _installed_kind(name: str) -> Kind:
    names = installed_names()
    if name not in names:
        raise SuiteError(f"unknown kind of task {name!r}; {did_you_mean(name, [*KINDS, *names])}", ("kind",))
    found = load_installed(name)
    if not isinstance(found, Kind):
        raise SuiteError(f"{name!r} is a task, not a kind: write `kind: plugin` and `plugin: {name}`", ("kind",))
    return found
