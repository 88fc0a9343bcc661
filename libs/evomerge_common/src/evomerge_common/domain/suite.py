"""What a model is asked: tasks, their items, and which items selection never sees."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from evomerge_common.domain.fields import Fields, check_keys
from evomerge_common.domain.kinds import Kind, kind_of
from evomerge_common.domain.reference import is_repository
from evomerge_common.domain.task import AUTO, FITNESS, GRADED, Benchmark, Item, Task
from evomerge_common.errors import Path, SuiteError, did_you_mean

SPLITS = ("search", "holdout", "all")

TASK_KEYS = (
    "name", "kind", "data", "items", "weight", "limit", "max_new_tokens", "stop", "metric", "extract", "chat",
    "fitness", "benchmark",
)  # fmt: skip
"""Keys of a task of every kind; each kind has some of its own (`Kind.options`)."""
SUITE_KEYS = ("name", "tasks", "holdout", "seed", "batch_size", "folds", "fold")


@dataclass(frozen=True)
class Suite:
    """Tasks with the share of items held out. `batch_size` is fixed by the suite so that scores are bit-stable.

    With `fold`, from 1 to `folds`, that fold is held out in place of a share: each item is in one of them. `folds`
    alone asks the command for a search on each, and leaves this suite's own split as it is.
    """

    tasks: tuple[Task, ...]
    name: str = ""
    holdout: float = 0.3
    seed: int = 0
    batch_size: int = 32
    folds: int = 0
    fold: int = 0

    def items(self, task: Task, split: str) -> tuple[Item, ...]:
        """Returns the task's items of a split ("search", "holdout", "all"), in the suite's order."""
        if split not in SPLITS:
            raise SuiteError(f"unknown split {split!r}; {did_you_mean(split, SPLITS)}")
        if split == "all" or not kind_of(task.kind).splits:
            return task.items
        wanted = split == "holdout"
        if self.fold:
            return tuple(i for i in task.items if (i.fold(seed=self.seed, folds=self.folds) == self.fold) == wanted)
        return tuple(i for i in task.items if i.is_holdout(seed=self.seed, share=self.holdout) == wanted)

    def held_out(self) -> frozenset[str]:
        """Returns the contents of all items that selection never sees, as text; duplicates are one."""
        tasks = [task for task in self.tasks if kind_of(task.kind).splits]
        return frozenset(one.text for task in tasks for one in self.items(task, "holdout"))

    def searches_with(self, contents: frozenset[str]) -> bool:
        """Tells whether any of these contents, as `held_out` returns them, is among the search items."""
        return any(one.text in contents for task in self.tasks for one in self.items(task, "search"))

    def on_fold(self, fold: int) -> Suite:
        """Returns the suite that holds out one of the folds, from 1; 0: the share, with no word of folds."""
        return replace(self, fold=fold, holdout=1 / self.folds) if fold else replace(self, folds=0)

    def fitness(self, scores: Mapping[str, float]) -> float:
        """Returns the weighted mean of the tasks' scores."""
        return sum(t.weight * scores[t.name] for t in self.tasks) / sum(t.weight for t in self.tasks)

    def to_dict(self) -> dict[str, Any]:
        """Writes plain data in the form that `from_dict` reads, items included."""
        tasks = [
            {
                "name": t.name, "kind": t.kind, "weight": t.weight, "metric": t.metric, "stop": list(t.stop),
                "max_new_tokens": t.max_new_tokens, "extract": t.extract, "chat": t.chat, **t.options,
                **({} if t.fitness == AUTO else {"fitness": t.fitness}),
                **({} if t.benchmark is None else {"benchmark": t.benchmark.to_dict()}),
                "items": [{"id": i.id, **i.content} for i in t.items],
            }
            for t in self.tasks
        ]  # fmt: skip
        return {
            "name": self.name, "tasks": tasks, "holdout": self.holdout, "seed": self.seed,
            "batch_size": self.batch_size,
            **({"folds": self.folds} if self.folds else {}), **({"fold": self.fold} if self.fold else {}),
        }  # fmt: skip

    def to_json(self) -> str:
        """Writes canonical JSON, items included."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    @property
    def digest(self) -> str:
        """Returns SHA-256 (hex) of the canonical JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @classmethod
    def from_json(cls, text: str) -> Suite:
        """Reads what `to_json` wrote.

        Raises:
            SuiteError: it is not a suite.

        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise SuiteError(f"not a suite: {error}") from error
        return cls.from_dict(data)

    @classmethod
    def from_dict(cls, data: Any, path: Path = ()) -> Suite:
        """Reads a suite whose tasks carry their `items`; every mistake names its place.

        Raises:
            SuiteError: unknown key or kind, no tasks, no items, a field missing, an empty split.

        """
        own = Fields.of(data, SUITE_KEYS, path, SuiteError)
        tasks = data.get("tasks")
        if not isinstance(tasks, Sequence) or isinstance(tasks, str) or not tasks:
            raise own.wrong("a suite needs at least one task", "tasks")
        holdout = own.number("holdout", 0.3, low=0.0, high=0.95)
        suite = cls(
            tasks=tuple(_task(task, (*path, "tasks", i)) for i, task in enumerate(tasks)),
            name=str(data.get("name", "")),
            holdout=holdout,
            seed=int(own.number("seed", 0)),
            batch_size=int(own.number("batch_size", 32, low=1)),
            folds=own.integer("folds", 0, high=50),
            fold=own.integer("fold", 0, high=own.integer("folds", 0, high=50)),
        )
        if suite.folds == 1:
            raise own.wrong("one fold would leave no items to search with; give two or more", "folds")
        names = [t.name for t in suite.tasks]
        for i, name in enumerate(names):
            if name in names[:i]:
                raise SuiteError(f"two tasks are named {name!r}", (*path, "tasks", i, "name"))
        if not sum(t.weight for t in suite.tasks) > 0:
            raise SuiteError("at least one task needs a weight above zero", (*path, "tasks"))
        for i, task in enumerate(suite.tasks):
            for split in ("search", "holdout") if holdout else ("search",):
                if not suite.items(task, split):
                    raise SuiteError(
                        f"no item of task {task.name!r} falls into the {split} split; add items or change `holdout`",
                        (*path, "tasks", i),
                    )
            for fold in range(1, suite.folds + 1) if not suite.fold else ():
                if not suite.on_fold(fold).items(task, "holdout"):
                    raise SuiteError(
                        f"no item of task {task.name!r} falls into fold {fold}; add items or lower `folds`",
                        (*path, "tasks", i),
                    )
        return suite


def check_task_keys(data: Any, path: Path) -> Kind:
    """Finds the kind of a task, which must be known, as must be each of the task's keys.

    Raises:
        SuiteError: names the nearest valid word.

    """
    name = data.get("kind") if isinstance(data, Mapping) else None
    try:
        kind = kind_of(name if isinstance(name, str) else "")
    except SuiteError as error:
        check_keys(data, TASK_KEYS, path, SuiteError)
        raise SuiteError(error.problem, (*path, *error.path)) from error
    check_keys(data, (*TASK_KEYS, *kind.options), path, SuiteError)
    return kind


def _task(data: Any, path: Path) -> Task:
    kind = check_task_keys(data, path)
    name = data.get("name")
    if not isinstance(name, str) or not name:
        raise SuiteError("a task needs a name", (*path, "name"))
    metric = data.get("metric") or (kind.metrics[0] if kind.metrics else "")
    if not isinstance(metric, str) or (kind.metrics and metric not in kind.metrics):
        raise SuiteError(
            f"{data['kind']} has no metric {metric!r}; {did_you_mean(str(metric), kind.metrics)}", (*path, "metric")
        )
    own = Fields(data, path, SuiteError)
    stop = data.get("stop") or kind.stop
    if not isinstance(stop, str | list | tuple) or not all(isinstance(one, str) for one in stop):
        raise own.wrong(f"must be a text or a list of texts, not {stop!r}", "stop")
    options = kind.read_options(data, path)
    items = kind.fixed_items or data.get("items")
    if not items:
        raise own.wrong(f"task {name!r} has no items", "items")
    if not isinstance(items, list | tuple):
        raise own.wrong(f"must be a list of items, not {items!r}", "items")
    limit = int(own.number("limit", 0, low=0)) or len(items)
    task = Task(
        name=name,
        kind=data["kind"],
        items=tuple(_item(item, kind, i, (*path, "items", i)) for i, item in enumerate(items[:limit])),
        weight=own.number("weight", 1.0, low=0.0),
        metric=metric,
        max_new_tokens=int(own.number("max_new_tokens", kind.max_new_tokens, low=1, high=4096)),
        stop=tuple([stop] if isinstance(stop, str) else stop),
        extract=own.text("extract"),
        chat=own.flag("chat", False),
        options=options,
        fitness=own.word("fitness", FITNESS, AUTO),
        benchmark=_benchmark(own),
    )
    kind.check_task(task, path)
    if task.fitness == GRADED and not kind.grades(task):
        raise own.wrong(
            f"task {name!r} has no partial credit: it needs right answers in words (exact_match and qa without "
            "`extract`, code whose items have a `solution`)",
            "fitness",
        )
    return task


def _benchmark(own: Fields) -> Benchmark | None:
    if "benchmark" not in own:
        return None
    named = own.section("benchmark", ("dataset", "task", "revision"))
    found = Benchmark(named.text("dataset"), named.text("task"), named.text("revision"))
    if not is_repository(found.dataset):
        raise named.wrong(f"must be a dataset of the hub, org/name, not {found.dataset!r}", "dataset")
    if not found.task:
        raise named.wrong("is needed: the task's id in the benchmark's eval.yaml", "task")
    return found


def _item(data: Any, kind: Kind, index: int, path: Path) -> Item:
    if not isinstance(data, Mapping):
        raise SuiteError(f"an item must be an object, found {data!r}", path)
    content = kind.read_item(data, path)
    return Item(str(data.get("id", index)), content)
