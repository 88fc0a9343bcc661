"""Tasks of EleutherAI's lm-evaluation-harness (0.4.13), by name or from a folder of task files.

The harness loads the documents, writes the prompts and computes the metrics; our scoring answers its requests. Prompts
of all documents are made in one go and then chosen from, so that an item's few-shot examples do not depend on which
others are asked.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import logging
import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge_common.domain.messages import TaskScore
from evomerge_common.domain.scores import task_score
from evomerge_common.domain.task import Item, Task
from evomerge_common.errors import EvoMergeException, ModelError, SuiteError, Unavailable, did_you_mean

if TYPE_CHECKING:
    from evomerge_scoring.encode import Encoder
    from evomerge_scoring.model import ScoringModel

FEWSHOT_SEED = 1234
"""The harness's own default."""
PERPLEXITIES = ("bits_per_byte", "byte_perplexity", "word_perplexity")
"""Metrics of (log-likelihood, count) pairs: an item's score is the geometric mean of its units' probabilities."""
NO_HARNESS = "tasks of kind lm_eval need lm-evaluation-harness: pip install 'evomerge-evaluator[lm-eval]'"


class Subtask:
    """One of the harness's tasks with the requests of its documents."""

    def __init__(self, name: str, task: Any) -> None:
        self.name, self.task = name, task
        self.by_document: dict[int, list[Any]] = defaultdict(list)

    def build(self, limit: int, template: Callable[[list[dict[str, str]]], str] | None, tokenizer: str) -> None:
        """Writes the prompts of the first `limit` documents (0: of all)."""
        with contextlib.redirect_stderr(io.StringIO()):  # a bar for each task
            self.task.build_all_requests(
                limit=limit or None, apply_chat_template=template is not None, chat_template=template,
                fewshot_as_multiturn=template is not None, tokenizer_name=tokenizer,
            )  # fmt: skip
        self.by_document.clear()
        for instance in self.task.instances:
            self.by_document[instance.doc_id].append(instance)
        for instances in self.by_document.values():
            instances.sort(key=lambda instance: instance.idx)

    def document(self, number: int) -> str:
        """Digest of a document, whatever its number."""
        text = json.dumps(self.by_document[number][0].doc, sort_keys=True, ensure_ascii=False, default=str)
        return hashlib.sha256(text.encode()).hexdigest()


def expand_lm_eval(task: Mapping[str, Any]) -> Mapping[str, Any]:
    """The task with one item a document, its metric chosen, and a digest of all prompts.

    Raises:
        SuiteError: no such task, no harness, or a metric that is no score of single items.

    """
    name = str(task.get("task", ""))
    limit = int(task.get("limit") or 0)
    subtasks = load_subtasks(name, str(task.get("folder") or ""), _shots(task))
    metric = choose_metric(subtasks[0].task, str(task.get("metric") or ""))
    items, prompts = [], hashlib.sha256()
    for subtask in subtasks:
        with _harness_errors(name, subtask.task):
            subtask.build(limit, None, "")
        for number in sorted(subtask.by_document):
            items.append({"id": f"{subtask.name}:{number}", "document": subtask.document(number)})
            for instance in subtask.by_document[number]:
                prompts.update(json.dumps(instance.args, ensure_ascii=False, default=str).encode())
    split = "test" if any(subtask.task.has_test_docs() for subtask in subtasks) else "validation"
    return {**task, "items": items, "metric": metric, "requests": prompts.hexdigest(), "split": split}


def _shots(options: Mapping[str, Any]) -> int:
    value = options.get("num_fewshot", -1)
    if isinstance(value, bool) or not isinstance(value, int) or value < -1:
        raise SuiteError(f"must be a whole number, not {value!r}", ("num_fewshot",))
    return value


@functools.lru_cache(maxsize=16)
def load_subtasks(name: str, folder: str, num_fewshot: int) -> tuple[Subtask, ...]:
    """The task, or every task of a group.

    Raises:
        SuiteError: see `expand_lm_eval`.

    """
    _quiet()
    if not name:
        raise SuiteError("a task of kind lm_eval needs `task`: the name of one", ("task",))
    if folder and not Path(folder).is_dir():
        raise SuiteError(f"{folder} is no folder of task files", ("folder",))
    with _harness_errors(name), _standing_in(folder):
        manager = _manager(folder)
        if name not in manager.task_index:
            raise SuiteError(f"no task {name!r}; {did_you_mean(name, manager.all_tasks)}"[:300], ("task",))
        loaded = manager.load([name])["tasks"]
        subtasks = []
        for key in sorted(loaded):
            task = loaded[key]
            if getattr(task, "UNSAFE_CODE", False):
                raise SuiteError("runs what models write without a sandbox; write it as kind: code", ("task",))
            if getattr(task, "MULTIMODAL", False):
                raise SuiteError("asks about images or sounds; only text is scored", ("task",))
            default = task.get_config("num_fewshot")
            if num_fewshot >= 0 and default != 0:
                task.set_config(key="num_fewshot", value=num_fewshot)
            elif default is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=FEWSHOT_SEED)
            subtasks.append(Subtask(key, task))
    return tuple(subtasks)


def _manager(folder: str) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=folder or None, include_defaults=not folder)


@contextlib.contextmanager
def _standing_in(folder: str) -> Iterator[None]:
    """Data files of a local task are relative to its folder."""
    with contextlib.chdir(folder) if folder else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def _harness_errors(name: str, _task: Any = None) -> Iterator[None]:
    """Whatever the harness, its tasks and its data sets raise, as an error that names the task."""
    try:
        yield
    except EvoMergeException as error:
        if isinstance(error, SuiteError):
            raise SuiteError(f"lm_eval task {name!r}: {error.problem}", error.path) from error
        raise
    except ModuleNotFoundError as error:
        missing = NO_HARNESS if (error.name or "").startswith("lm_eval") else f"needs the package {error.name}"
        raise SuiteError(f"lm_eval task {name!r}: {missing}", ("task",)) from error
    except Exception as error:
        text = f"lm_eval task {name!r} cannot be loaded: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        if isinstance(error, ConnectionError | TimeoutError):
            raise Unavailable(text) from error
        raise SuiteError(text, ("task",)) from error


def _quiet() -> None:
    for name in ("lm_eval", "datasets", "evaluate"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")


def choose_metric(task: Any, wanted: str) -> str:
    """The metric that is asked for, or the task's first.

    Raises:
        SuiteError: the task does not compute it, or less of it is better.

    """
    better = task.higher_is_better()
    known = [name for name in task.aggregation() if better.get(name, True) or name in PERPLEXITIES]
    if not wanted:
        if not known:
            raise SuiteError(f"no metric of this task is better when higher: {', '.join(task.aggregation())}")
        return str(known[0])
    if wanted not in known:
        raise SuiteError(f"no metric {wanted!r} to go up in this task; {did_you_mean(wanted, known)}", ("metric",))
    return wanted


class LmEvalItems:
    """Chosen documents with the harness's requests about them."""

    truncated = 0

    def __init__(self, task: Task, items: Sequence[Item], encoder: Encoder) -> None:
        self._task, self._items, self._encoder = task, items, encoder
        self._name = str(task.options["task"])
        self._subtasks = {
            subtask.name: subtask
            for subtask in load_subtasks(self._name, str(task.options["folder"]), int(task.options["num_fewshot"]))
        }
        numbers: dict[str, int] = defaultdict(int)  # of all the task's items, so that every split has the same prompts
        for item in task.items:
            name, _, number = item.id.rpartition(":")
            numbers[name] = max(numbers[name], int(number) + 1)
        template = _template(encoder.tokenizer) if task.chat else None
        for name, limit in numbers.items():
            if name not in self._subtasks:
                raise self._changed()
            with _harness_errors(self._name):
                self._subtasks[name].build(limit, template, f"{id(encoder.tokenizer)}")
        self._chosen: list[tuple[Subtask, int]] = []
        for item in items:
            name, _, number = item.id.rpartition(":")
            subtask = self._subtasks[name]
            if int(number) not in subtask.by_document or subtask.document(int(number)) != item.content["document"]:
                raise self._changed()
            self._chosen.append((subtask, int(number)))

    def _changed(self) -> SuiteError:
        return SuiteError(f"lm_eval task {self._name!r}: its documents are not those that the suite was made from")

    def score(self, model: ScoringModel, size: int, advance: Callable[[int], None]) -> TaskScore:
        """See `kinds.Prepared`."""
        from evomerge_scoring.kinds.lm_eval_model import HarnessModel

        instances = [i for subtask, number in self._chosen for i in subtask.by_document[number]]
        for instance in instances:
            instance.resps, instance.filtered_resps = [], {}
        by_type: dict[str, list[Any]] = defaultdict(list)
        for instance in instances:
            by_type[instance.request_type].extend([instance] * (instance.repeats or 1))
        harness = HarnessModel(model, self._encoder, size)
        for kind, requests in by_type.items():
            for instance, answer in zip(requests, getattr(harness, kind)(requests), strict=True):
                instance.resps.append(answer)
        with _harness_errors(self._name):
            for subtask in self._subtasks.values():
                mine = [i for other, number in self._chosen if other is subtask for i in subtask.by_document[number]]
                if mine:
                    subtask.task._instances = mine
                    subtask.task.apply_filters()
            values = [self._value(subtask, number) for subtask, number in self._chosen]
        advance(len(values))
        return task_score(self._task, self._items, values)

    def _value(self, subtask: Subtask, number: int) -> float:
        instances = subtask.by_document[number]
        filters = list(instances[0].filtered_resps)
        chosen = str(self._task.options["filter"]) or filters[0]
        if chosen not in filters:
            raise SuiteError(f"no filter {chosen!r}; {did_you_mean(chosen, filters)}", ("filter",))
        found = subtask.task.process_results(instances[0].doc, [i.filtered_resps[chosen] for i in instances])
        return item_score(found, self._task.metric)


def item_score(found: Mapping[str, Any], metric: str) -> float:
    """One document's metric as a score that is better when higher.

    Raises:
        SuiteError: the metric is computed from all documents together.

    """
    value: Any = found.get(metric)
    if metric in PERPLEXITIES and isinstance(value, tuple):
        loglikelihood, count = value
        return math.exp(loglikelihood / max(1, count))
    if hasattr(value, "item"):  # a number of numpy's
        value = value.item()
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise SuiteError(f"the metric {metric!r} has no value for single documents; choose another", ("metric",))
    return float(value)


def _template(tokenizer: Any) -> Callable[[list[dict[str, str]]], str]:
    if not tokenizer.chat_template:
        raise ModelError("the model has no chat template, and the task says chat: true")

    def apply(history: list[dict[str, str]]) -> str:
        return str(tokenizer.apply_chat_template(history, tokenize=False, add_generation_prompt=True))

    return apply
