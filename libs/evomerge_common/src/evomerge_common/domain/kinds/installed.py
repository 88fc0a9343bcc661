"""Kinds and tasks of users' own, in installed packages: entry points of the group `evomerge.tasks`."""

from __future__ import annotations

import importlib.metadata
from typing import Any

from evomerge_common.errors import SuiteError, did_you_mean

ENTRY_POINTS = "evomerge.tasks"


def installed_names() -> list[str]:
    """Lists the names of the kinds and tasks that are installed here."""
    return sorted({entry.name for entry in importlib.metadata.entry_points(group=ENTRY_POINTS)})


def load_installed(name: str) -> Any:
    """Loads the kind or task of an entry point: the object that it names, or what its class makes without arguments.

    Raises:
        SuiteError: it is not installed, or cannot be loaded.

    """
    entries = list(importlib.metadata.entry_points(group=ENTRY_POINTS, name=name))
    if not entries:
        known = installed_names()
        hint = did_you_mean(name, known) if known else "none is"
        raise SuiteError(f"no user task {name!r} is installed here (entry points {ENTRY_POINTS}); {hint}", ("plugin",))
    try:
        found = entries[0].load()
        return found() if isinstance(found, type) else found
    except Exception as error:  # whatever a user's code raises
        raise SuiteError(f"user task {name!r} failed: {type(error).__name__}: {error}") from error
