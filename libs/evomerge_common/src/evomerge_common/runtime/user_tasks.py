"""Tasks of your own: a package with an entry point in the group `evomerge.tasks`.

    [project.entry-points."evomerge.tasks"]
    rhymes = "my_package.tasks:Rhymes"

A suite names it: `{name: rhymes, kind: plugin, plugin: rhymes, options: {words: 200}}`. The package must be installed
where suites are read (the command) and where models are scored (the evaluator).
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

ENTRY_POINTS = "evomerge.tasks"


def plugin_names() -> list[str]:
    """User tasks that are installed here."""
    return sorted({entry.name for entry in importlib.metadata.entry_points(group=ENTRY_POINTS)})


@dataclass(frozen=True)
class Loglikelihood:
    """Asks for the natural log-likelihood (a float) of a continuation after a context."""

    context: str
    continuation: str


@dataclass(frozen=True)
class Continuation:
    """Asks for the greedy continuation (a text) of a prompt, up to a stop string or `max_new_tokens`."""

    prompt: str
    stop: Sequence[str] = ("\n",)
    max_new_tokens: int = 32


Request = Loglikelihood | Continuation


class UserTask(Protocol):
    """What the entry point names: such an object, or a class of them that takes no arguments."""

    def items(self, options: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
        """The task's items, JSON objects; the same options must give the same items. An `id` is kept as its name."""
        ...

    def requests(self, item: Mapping[str, Any]) -> Iterable[Request]:
        """What to ask about an item."""
        ...

    def score(self, item: Mapping[str, Any], answers: Sequence[Any]) -> float:
        """The item's score, 0 to 1, from the answers in the order of the requests."""
        ...
