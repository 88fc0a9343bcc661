"""Scores a model on a suite. One Scorer lives as long as its process; its model stays resident between candidates."""

from __future__ import annotations

import math
import re
import struct
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from evomerge_common.domain.messages import TaskScore
from evomerge_common.domain.suite import Item, Suite, Task
from evomerge_common.errors import ModelError, SuiteError
from evomerge_evaluator.scoring.devices import choose_device, choose_threads, describe
from evomerge_evaluator.scoring.encode import CHARS_PER_TOKEN, EncodedTask, Encoder, chat_text, tree_limit
from evomerge_evaluator.scoring.forward import token_logprobs
from evomerge_evaluator.scoring.generation import Stop, cut, generate
from evomerge_evaluator.scoring.report import GenerateResult, ScoreReport
from evomerge_evaluator.scoring.resident import LoadedModel, Resident

if TYPE_CHECKING:
    from evomerge_merging import Plan

Progress = Callable[[int, int], None]
ENCODINGS_KEPT = 4


class Scorer:
    """See the module's text. Not thread-safe: one job at a time."""

    def __init__(self, *, device: str = "auto") -> None:
        self.resident = Resident(choose_device(device))
        self._encodings: OrderedDict[tuple[object, ...], list[EncodedTask]] = OrderedDict()

    def score_folder(
        self, folder: Path, suite: Suite, split: str, *, threads: int = 2, progress: Progress | None = None,
        suite_digest: str = "",
    ) -> ScoreReport:  # fmt: skip
        """Scores a model folder; see `scoring.score_folder`."""
        start = time.perf_counter()
        return self._score(self.resident.load_folder(folder), suite, split, threads, progress, suite_digest, start)

    def score_tensors(
        self, tensors: Mapping[str, torch.Tensor], config_folder: Path, suite: Suite, split: str, *, threads: int = 2,
        progress: Progress | None = None, suite_digest: str = "",
    ) -> ScoreReport:  # fmt: skip
        """Scores weights in memory; config and tokenizer come from a folder."""
        start = time.perf_counter()
        model = self.resident.load_tensors(tensors, config_folder)
        return self._score(model, suite, split, threads, progress, suite_digest, start)

    def score_plan(
        self, plan: Plan, suite: Suite, split: str, *, threads: int = 2, progress: Progress | None = None,
        suite_digest: str = "",
    ) -> ScoreReport:  # fmt: skip
        """Scores the model that a merge plan makes, without writing it anywhere."""
        start = time.perf_counter()
        model = self.resident.load_plan(plan, threads=threads)
        return self._score(model, suite, split, threads, progress, suite_digest, start)

    def generate(
        self, folder: Path, prompt: str, max_new_tokens: int, *, threads: int = 2, chat: bool = False
    ) -> GenerateResult:
        """Greedy continuation; see `scoring.generate_text`."""
        start = time.perf_counter()
        model = self.resident.load_folder(folder)
        torch.set_num_threads(choose_threads(threads, parameters=model.parameters))
        if model.masked:
            raise ModelError(f"{folder} is a masked language model; it cannot continue a text")
        text = prompt[-model.context * CHARS_PER_TOKEN :]
        text = chat_text(model.tokenizer, text) if chat else text
        encoder = self.encoder(model)
        ids = [*([] if chat else encoder.lead), *model.tokenizer(text, add_special_tokens=False)["input_ids"]]
        ids = ids or list(encoder.start)
        if not ids:
            raise ModelError("an empty prompt, and the tokenizer has no first token; give a prompt")
        count = min(max(1, max_new_tokens), model.context - 1)
        ids = ids[-max(1, model.context - count) :]
        (made,) = generate(model, [ids], Stop((), count), 1)
        before = model.tokenizer.decode(ids, skip_special_tokens=True)
        whole = model.tokenizer.decode([*ids, *made], skip_special_tokens=True)
        found = whole[len(before) :] if whole.startswith(before) else model.tokenizer.decode(made)
        return GenerateResult(text=found, tokens=len(made), seconds=time.perf_counter() - start)

    def _score(
        self, model: LoadedModel, suite: Suite, split: str, threads: int, progress: Progress | None,
        suite_digest: str, start: float,
    ) -> ScoreReport:  # fmt: skip
        threads = choose_threads(threads, parameters=model.parameters)
        torch.set_num_threads(threads)
        chosen = [suite.items(task, split) for task in suite.tasks]
        total = sum(map(len, chosen))
        encodings = self._encode(model, suite, split, chosen, suite_digest or suite.digest)
        scores = []
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            if progress:
                progress(done, total)

        for task, items, encoded in zip(suite.tasks, chosen, encodings, strict=True):
            before = done
            scores.append(_score_task(model, task, items, encoded, suite.batch_size, advance))
            advance(len(items) - (done - before))
        return ScoreReport(
            fitness=suite.fitness({score.task: score.score for score in scores}),
            scores=tuple(scores),
            seconds=time.perf_counter() - start,
            items=total,
            device=describe(model.device, model.dtype, threads),
            truncated=sum(encoded.truncated for encoded in encodings),
        )

    def _encode(
        self, model: LoadedModel, suite: Suite, split: str, chosen: list[tuple[Item, ...]], suite_digest: str
    ) -> list[EncodedTask]:
        encoder = self.encoder(model)
        key = (
            model.tokenizer_digest, suite_digest, split, encoder.context, encoder.masked, encoder.tree,
            encoder.vocabulary,
        )  # fmt: skip
        if key not in self._encodings:
            self._encodings[key] = [encoder.task(task, items) for task, items in zip(suite.tasks, chosen, strict=True)]
            while len(self._encodings) > ENCODINGS_KEPT:
                self._encodings.popitem(last=False)
        self._encodings.move_to_end(key)
        return self._encodings[key]

    @staticmethod
    def encoder(model: LoadedModel) -> Encoder:
        """What turns items into rows for this model."""
        config = model.module.config.get_text_config()
        return Encoder(
            model.tokenizer,
            context=model.context,
            masked=model.masked,
            vocabulary=model.vocabulary,
            tree=tree_limit(config),
        )


def _score_task(
    model: LoadedModel,
    task: Task,
    items: Sequence[Item],
    encoded: EncodedTask,
    size: int,
    advance: Callable[[int], None],
) -> TaskScore:
    if task.kind == "exact_match":
        return _exact_match(model, task, items, encoded, size, advance)
    sums = loglikelihoods(model, encoded, size, advance)
    if task.kind == "multiple_choice":
        values = [
            float(choose(item.content["choices"], lls, task.metric) == item.content["answer"])
            for item, lls in zip(items, sums, strict=True)
        ]
        return task_score(task, values)
    bits = [-(choices[0] + constant) / math.log(2) for choices, constant in zip(sums, encoded.constants, strict=True)]
    sizes = [len(str(item.content["text"]).encode()) for item in items]
    values = [2.0 ** -(b / n) for b, n in zip(bits, sizes, strict=True)]
    return task_score(task, values, metric_value=sum(bits) / sum(sizes))


def loglikelihoods(
    model: LoadedModel, encoded: EncodedTask, size: int, advance: Callable[[int], None] = lambda _: None
) -> list[list[float]]:
    """Item → choice → natural log-likelihood of the choice's (or document's) tokens."""
    values = token_logprobs(model, encoded.rows, size, _by_item(encoded, advance))
    return [[sum(values[row][query] for row, query in pairs) for pairs in item] for item in encoded.groups]


def choose(choices: Sequence[str], loglikelihoods: Sequence[float], metric: str) -> int:
    """The likeliest choice, by `acc_norm` per byte; the first among equals."""
    lengths = [len(c.encode()) if metric == "acc_norm" else 1 for c in choices]
    values = [ll / n for ll, n in zip(loglikelihoods, lengths, strict=True)]
    return values.index(max(values))


def task_score(task: Task, values: Sequence[float], metric_value: float | None = None) -> TaskScore:
    """Item scores and their mean.

    Item scores travel as 32-bit numbers, so they are rounded first: the mean is then the same wherever it is computed.
    """
    count = len(values)
    rounded = struct.unpack(f"<{count}f", struct.pack(f"<{count}f", *values))
    mean = sum(rounded) / len(rounded)
    return TaskScore(
        task=task.name,
        score=mean,
        metric=task.metric,
        metric_value=mean if metric_value is None else metric_value,
        item_scores=rounded,
    )


def _exact_match(
    model: LoadedModel,
    task: Task,
    items: Sequence[Item],
    encoded: EncodedTask,
    size: int,
    advance: Callable[[int], None],
) -> TaskScore:
    pattern = compile_extract(task)
    stop = Stop(task.stop, task.max_new_tokens)
    made = generate(model, encoded.prompts, stop, size, lambda batch: advance(len(batch)))
    texts = model.tokenizer.batch_decode(made, skip_special_tokens=True) if made else []
    values = [
        float(extracted(cut(text, task.stop), pattern) == str(item.content["answer"]).strip())
        for item, text in zip(items, texts, strict=True)
    ]
    return task_score(task, values)


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


def _by_item(encoded: EncodedTask, advance: Callable[[int], None]) -> Callable[[Sequence[int]], None]:
    """Progress in items: an item counts with its first row."""
    first = {pairs[0][0] for item in encoded.groups for pairs in item[:1] if pairs}
    return lambda batch: advance(sum(row in first for row in batch))
