"""Which items of a suite a job names, and which of their scores are known already."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, replace

from cachetools import LRUCache

from evomerge_common.domain.messages import EvaluateJob
from evomerge_common.domain.suite import Suite
from evomerge_common.domain.task import Item, Task, credit_of
from evomerge_common.errors import InvalidInput
from evomerge_common.ports import ArtifactStore
from evomerge_evaluator.fitness_cache import FitnessCache, Scores, item_digests

SUITES = 8


@dataclass(frozen=True)
class TaskItems:
    """Items of one task that a job names: their places in the split, and their digests."""

    task: Task
    items: tuple[Item, ...]
    places: tuple[int, ...]
    digests: tuple[bytes, ...]


@dataclass(frozen=True)
class JobItems:
    """A job's items, task by task, and what was known of them in the job's dtype when the job was looked at.

    `suite` has a further task (`credit_of`) for each whose partial credit is wanted, and `digest` tells it from others.
    """

    suite: Suite
    digest: str
    parts: tuple[TaskItems, ...]
    known: Scores
    dtype: str

    def missing(self) -> dict[str, dict[bytes, int]]:
        """Returns task → digest → place of each item without a score, once: items with the same content share one."""
        seen = set(self.known.items)
        found: dict[str, dict[bytes, int]] = {}
        for part in self.parts:
            for digest, place in zip(part.digests, part.places, strict=True):
                if digest not in seen:
                    seen.add(digest)
                    found.setdefault(part.task.name, {})[digest] = place
        return found


class JobReader:
    """Reads the items of jobs; remembers the last suites, which are the same for every candidate of a run."""

    def __init__(self, artifacts: ArtifactStore, cache: FitnessCache) -> None:
        self._artifacts = artifacts
        self._cache = cache
        self._suites: LRUCache[str, Suite] = LRUCache(SUITES)
        self._splits: LRUCache[tuple[str, str], tuple[TaskItems, ...]] = LRUCache(SUITES)

    async def of(self, payload: EvaluateJob, dtype: str) -> JobItems:
        """Returns a job's items, and what is known of them in a dtype.

        Raises:
            InvalidInput: the suite is not what the job says, or has no such items.
            NotFound: no such suite.

        """
        suite, digest = await self._suite(payload), payload.suite_digest
        if payload.graded:
            asked = [credit_of(task) for task in suite.tasks if task.name in payload.graded]
            suite, digest = replace(suite, tasks=(*suite.tasks, *asked)), f"{digest}+{json.dumps(payload.graded)}"
        whole = self._split(suite, digest, payload.split)
        known = await self._cache.known(payload.recipe_digest, dtype)
        return JobItems(suite, digest, _chosen(payload, whole) if payload.items else whole, known, dtype)

    def _split(self, suite: Suite, digest: str, split: str) -> tuple[TaskItems, ...]:
        key = (digest, split)
        if key not in self._splits:
            chosen = [(task, suite.items(task, split)) for task in suite.tasks]
            self._splits[key] = tuple(
                TaskItems(task, items, tuple(range(len(items))), item_digests(task, items)) for task, items in chosen
            )
        return self._splits[key]

    async def _suite(self, payload: EvaluateJob) -> Suite:
        if payload.suite_digest not in self._suites:
            text = await asyncio.to_thread(self._artifacts.get, payload.suite_uri)
            suite = Suite.from_json(text.decode())
            if suite.digest != payload.suite_digest:
                raise InvalidInput(
                    f"the suite at {payload.suite_uri} has digest {suite.digest}, not {payload.suite_digest}"
                )
            self._suites[payload.suite_digest] = suite
        return self._suites[payload.suite_digest]


def _chosen(payload: EvaluateJob, whole: tuple[TaskItems, ...]) -> tuple[TaskItems, ...]:
    """The items that a job names, of a split."""
    wanted = {one.task: one.positions for one in payload.items}
    credited = {credit_of(part.task).name: part.task.name for part in whole if part.task.name in payload.graded}
    wanted |= {name: wanted[task] for name, task in credited.items() if task in wanted}
    parts = []
    for part in whole:
        places = wanted.pop(part.task.name, ())
        if any(not 0 <= place < len(part.items) for place in places):
            raise InvalidInput(
                f"task {part.task.name!r} has {len(part.items)} items in the {payload.split} split, no more"
            )
        if places:
            items, digests = tuple(part.items[i] for i in places), tuple(part.digests[i] for i in places)
            parts.append(TaskItems(part.task, items, places, digests))
    if wanted or not parts:
        raise InvalidInput(f"the suite has no task {next(iter(wanted), '')!r}")
    return tuple(parts)
