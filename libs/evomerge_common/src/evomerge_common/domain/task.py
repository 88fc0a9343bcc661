"""A task and its items: what a model is asked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

EXACT, GRADED, AUTO, CREDIT = "exact", "graded", "auto", "credit"
FITNESS = (AUTO, EXACT, GRADED)
"""Whether a task's partial credit steers a search beside its score; auto: where no first candidate scores."""
Content = Mapping[str, Any]
"""An item's fields, as its kind says (see `kinds.Kind`)."""


@dataclass(frozen=True)
class Item:
    """One item of a task; its `content` holds the fields of the task's kind."""

    id: str
    content: Content

    def is_holdout(self, *, seed: int, share: float) -> bool:
        """Tells whether a seeded hash of the content holds it out: duplicates fall together, whatever their id."""
        return self._hash(seed) / 2**64 < share

    def fold(self, *, seed: int, folds: int) -> int:
        """Returns the fold, from 1, in which a seeded hash of the content holds it out."""
        return self._hash(seed) * folds // 2**64 + 1

    @property
    def text(self) -> str:
        """Returns the content as canonical JSON: of duplicates the same, whatever their id."""
        return json.dumps(dict(self.content), sort_keys=True, ensure_ascii=False)

    def _hash(self, seed: int) -> int:
        text = json.dumps([seed, dict(self.content)], sort_keys=True, ensure_ascii=False)
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


@dataclass(frozen=True)
class Benchmark:
    """Where a task's items come from: a benchmark's dataset on a hub, its task there, the commit ("" where unsaid)."""

    dataset: str
    task: str
    revision: str = ""

    def to_dict(self) -> dict[str, str]:
        """Writes plain data."""
        revision = {"revision": self.revision} if self.revision else {}
        return {"dataset": self.dataset, "task": self.task, **revision}


@dataclass(frozen=True)
class Task:
    """Items of one kind and how they are scored.

    Attributes:
        kind: the name of a kind (see `kinds.kind_of`).
        metric: one of the kind's.
        max_new_tokens, stop, extract: of kinds that generate: generation ends at a stop string (default: the first
            line break); `extract` is a regular expression whose first group is judged.
        chat: puts the prompt through the model's chat template.
        options: the kind's own keys.
        fitness: one of FITNESS; CREDIT of the items as `credit_of` asks them.
        benchmark: whose items these are; None of tasks of one's own.

    """

    name: str
    kind: str
    items: tuple[Item, ...]
    weight: float = 1.0
    metric: str = ""
    max_new_tokens: int = 32
    stop: tuple[str, ...] = ("\n",)
    extract: str = ""
    chat: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    fitness: str = AUTO
    benchmark: Benchmark | None = None


def credit_of(task: Task) -> Task:
    """Returns the same items asked another way: how likely the right answer is, an item's partial credit (0 to 1)."""
    return replace(task, name=f"{task.name} (partial credit)", fitness=CREDIT)
