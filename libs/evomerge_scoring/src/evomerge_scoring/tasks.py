"""A task's items, ready to be asked of any model with the same tokenizer, and the scores that come of it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from evomerge_common.domain.judges import judge_answer, judge_instructions
from evomerge_common.domain.messages import TaskScore
from evomerge_common.domain.scores import task_score
from evomerge_common.domain.suite import Item, Task
from evomerge_common.domain.task_kinds import LOWERED, lower
from evomerge_common.errors import SuiteError
from evomerge_scoring.asking import Advance, continued, sums_of
from evomerge_scoring.encode import EncodedTask, Encoder
from evomerge_scoring.generation import Stop
from evomerge_scoring.model import ScoringModel
from evomerge_scoring.sandbox import Sandbox

SANDBOXES = 2
"""Programs of a code task that run at the same time."""


class Prepared(Protocol):
    """Items encoded for a tokenizer. One serves every candidate of a run."""

    @property
    def truncated(self) -> int:
        """Items that were cut to fit the context window."""
        ...

    def score(self, model: ScoringModel, size: int, advance: Advance) -> TaskScore:
        """Asks a model, `size` rows a batch."""
        ...


def prepare(task: Task, items: Sequence[Item], encoder: Encoder) -> Prepared:
    """Encodes a task's items.

    Raises:
        SuiteError: the kind of task does not go with the kind of model, or an item is too long.
        ModelError: the task asks for a chat template and the model has none.

    """
    if task.kind == "lm_eval":
        from evomerge_scoring.lm_eval_task import LmEvalItems

        return LmEvalItems(task, items, encoder)
    if task.kind == "plugin":
        from evomerge_scoring.plugin import PluginItems

        return PluginItems(task, items, encoder)
    if task.kind == "efficiency":
        from evomerge_scoring.efficiency import Cost

        return Cost(task)
    labels = task.options.get("labels") or sorted({i.content["label"] for i in task.items if "label" in i.content})
    contents = [lower(task.kind, task.options, item.content, labels) for item in items]
    basic = LOWERED.get(task.kind, task.kind)
    if basic == "multiple_choice":
        encoded = encoder.choices([(str(c["prompt"]), c["choices"]) for c in contents], chat=task.chat)
        return Choices(task, items, contents, encoded)
    if basic == "perplexity":
        pairs = [(str(c.get("prompt", "")), str(c["text"])) for c in contents]
        return Documents(task, items, contents, encoder.documents(pairs, name=task.name))
    prompts = [str(c["prompt"]) for c in contents]
    encoded = encoder.prompts(prompts, task.max_new_tokens, chat=task.chat, name=task.name)
    return Continuations(task, items, contents, encoded, make_judge(task))


@dataclass(frozen=True)
class _Encoded:
    task: Task
    items: Sequence[Item]
    contents: Sequence[Mapping[str, Any]]
    encoded: EncodedTask

    @property
    def truncated(self) -> int:
        return self.encoded.truncated


class Choices(_Encoded):
    """Which choice is the likeliest: acc, or acc_norm (per byte)."""

    def score(self, model: ScoringModel, size: int, advance: Advance) -> TaskScore:
        """See `Prepared`."""
        sums = sums_of(model, self.encoded, size, advance)
        values = [
            float(choose(content["choices"], lls, self.task.metric) == content["answer"])
            for content, lls in zip(self.contents, sums, strict=True)
        ]
        return task_score(self.task, self.items, values)


class Documents(_Encoded):
    """Bits per byte of texts; what stands before them is not counted. Item score: 2 ** -bits."""

    def score(self, model: ScoringModel, size: int, advance: Advance) -> TaskScore:
        """See `Prepared`."""
        sums = sums_of(model, self.encoded, size, advance)
        pairs = zip(sums, self.encoded.constants, strict=True)
        bits = [-(choices[0] + constant) / math.log(2) for choices, constant in pairs]
        sizes = [len(str(content["text"]).encode()) for content in self.contents]
        values = [2.0 ** -(b / n) for b, n in zip(bits, sizes, strict=True)]
        return task_score(self.task, self.items, values)


Judge = Callable[[Sequence[Mapping[str, Any]], Sequence[str]], list[float]]
"""Items and what the model said to each → item scores."""


@dataclass(frozen=True)
class Continuations(_Encoded):
    """What the model says, judged."""

    judge: Judge

    def score(self, model: ScoringModel, size: int, advance: Advance) -> TaskScore:
        """See `Prepared`."""
        stop = Stop(self.task.stop, self.task.max_new_tokens)
        said = continued(model, self.encoded, stop, size, advance)
        return task_score(self.task, self.items, self.judge(self.contents, said))


def make_judge(task: Task) -> Judge:
    """How a task's answers are judged.

    Raises:
        SuiteError: its `extract` is no regular expression.

    """
    if task.kind == "code":
        return lambda contents, said: _run_all(task, contents, said)
    pattern = compile_extract(task)

    def judge(content: Mapping[str, Any], text: str) -> float:
        if task.kind == "instruction_following":
            return judge_instructions(text, content["checks"], task.metric)
        answer = extracted(text, pattern)
        if task.kind == "qa":
            return judge_answer(answer or "", content["answers"], task.metric)
        return float(answer == str(content["answer"]).strip())

    return lambda contents, said: [judge(c, text) for c, text in zip(contents, said, strict=True)]


def _run_all(task: Task, contents: Sequence[Mapping[str, Any]], said: Sequence[str]) -> list[float]:
    sandbox = Sandbox(seconds=task.options["timeout"], memory_bytes=task.options["memory_mb"] << 20)
    programs = [f"{c['prompt']}{text}\n\n{c['tests']}\n" for c, text in zip(contents, said, strict=True)]
    with ThreadPoolExecutor(SANDBOXES) as pool:
        return [float(verdict.passed) for verdict in pool.map(sandbox.run, programs)]


def choose(choices: Sequence[str], loglikelihoods: Sequence[float], metric: str) -> int:
    """The likeliest choice, by `acc_norm` per byte; the first among equals."""
    lengths = [len(c.encode()) if metric == "acc_norm" else 1 for c in choices]
    values = [ll / n for ll, n in zip(loglikelihoods, lengths, strict=True)]
    return values.index(max(values))


def compile_extract(task: Task) -> re.Pattern[str] | None:
    """The task's regular expression.

    Raises:
        SuiteError: it is none.

    """
    if not task.extract:
        return None
    try:
        return re.compile(task.extract, re.MULTILINE)
    except re.error as error:
        raise SuiteError(f"task {task.name!r}: `extract` is no regular expression: {error}") from error


def extracted(text: str, pattern: re.Pattern[str] | None) -> str | None:
    """The answer in a generated text: what the pattern's first group found, else all of it; stripped."""
    if pattern is None:
        return text.strip()
    match = pattern.search(text)
    if match is None:
        return None
    return (match.group(1 if pattern.groups else 0) or "").strip()
