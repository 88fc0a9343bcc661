"""Scores a model on a suite. One Scorer lives as long as its process; its model stays resident between candidates."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from cachetools import LRUCache

from evomerge_common.domain.kinds import kind_of
from evomerge_common.domain.suite import Suite
from evomerge_common.domain.task import Item, Task
from evomerge_common.errors import ModelError, SuiteError
from evomerge_scoring.devices import choose_device, choose_threads
from evomerge_scoring.encode import CHARS_PER_TOKEN, Encoder, chat_text
from evomerge_scoring.generation import Stop
from evomerge_scoring.kinds import Prepared, prepare
from evomerge_scoring.model import ScoringModel
from evomerge_scoring.report import GenerateResult, ScoreReport
from evomerge_scoring.resident import Resident
from evomerge_scoring.sandbox import check_sandbox
from evomerge_scoring.vllm_model import VllmResident, use_vllm

if TYPE_CHECKING:
    from evomerge_merging import Plan

Progress = Callable[[int, int], None]
Places = Mapping[str, Sequence[int]]
"""Task → places of items in the split's order."""
PREPARED_KEPT = 16
"""Suites, or parts of them, whose items stay encoded; each rung of a race is one."""
NO_CODE = (
    "a task of kind `code` runs programs that models write; allow it with EVOMERGE_ALLOW_CODE=true where models are "
    "scored (they run in a sandbox without files, network and other processes)"
)


class Scorer:
    """See the module's text. Not thread-safe: one job at a time."""

    def __init__(self, *, device: str = "auto", backend: str = "auto", allow_code: bool = False) -> None:
        chosen = choose_device(device)
        self.resident: Resident | VllmResident = Resident(chosen)
        if use_vllm(backend, chosen.type):
            self.resident = VllmResident(chosen)
        self.allow_code = allow_code
        self._prepared: LRUCache[tuple[object, ...], list[Prepared]] = LRUCache(PREPARED_KEPT)

    def score_folder(
        self, folder: Path, suite: Suite, split: str, *, threads: int = 2, progress: Progress | None = None,
        suite_digest: str = "", places: Places | None = None,
    ) -> ScoreReport:  # fmt: skip
        """Scores a model folder; see `scoring.score_folder`.

        `places` picks items by their places in the split, task by task; tasks that it does not name are left out.
        """
        start = time.perf_counter()
        self._check(suite)
        model = self.resident.load_folder(folder)
        return self._score(model, suite, split, threads, progress, suite_digest, start, places)

    def score_tensors(
        self, tensors: Mapping[str, torch.Tensor], config_folder: Path, suite: Suite, split: str, *, threads: int = 2,
        progress: Progress | None = None, suite_digest: str = "",
    ) -> ScoreReport:  # fmt: skip
        """Scores weights in memory; config and tokenizer come from a folder."""
        start = time.perf_counter()
        self._check(suite)
        model = self.resident.load_tensors(tensors, config_folder)
        return self._score(model, suite, split, threads, progress, suite_digest, start)

    def score_plan(
        self, plan: Plan, suite: Suite, split: str, *, threads: int = 2, progress: Progress | None = None,
        suite_digest: str = "", places: Places | None = None,
    ) -> ScoreReport:  # fmt: skip
        """Scores the model that a merge plan makes, without writing it anywhere."""
        start = time.perf_counter()
        self._check(suite)
        model = self.resident.load_plan(plan, threads=threads)
        return self._score(model, suite, split, threads, progress, suite_digest, start, places)

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
        (made,) = model.continuations([ids], Stop((), count), 1)
        before = model.tokenizer.decode(ids, skip_special_tokens=True)
        whole = model.tokenizer.decode([*ids, *made], skip_special_tokens=True)
        found = whole[len(before) :] if whole.startswith(before) else model.tokenizer.decode(made)
        return GenerateResult(text=found, tokens=len(made), seconds=time.perf_counter() - start)

    def _check(self, suite: Suite) -> None:
        """Whether this machine runs what models write, where the suite asks for it."""
        if any(kind_of(task.kind).runs_code for task in suite.tasks):
            if not self.allow_code:
                raise SuiteError(NO_CODE)
            check_sandbox()

    def _score(
        self, model: ScoringModel, suite: Suite, split: str, threads: int, progress: Progress | None,
        suite_digest: str, start: float, places: Places | None = None,
    ) -> ScoreReport:  # fmt: skip
        threads = choose_threads(threads, parameters=model.parameters)
        torch.set_num_threads(threads)
        chosen = [(task, suite.items(task, split)) for task in suite.tasks]
        if places is not None:
            chosen = [
                (task, tuple(items[i] for i in places[task.name])) for task, items in chosen if task.name in places
            ]
        total = sum(len(items) for _, items in chosen)
        part = "" if places is None else json.dumps(places)
        prepared = self._prepare(model, chosen, suite_digest or suite.digest, f"{split}{part}")
        scores = []
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            if progress:
                progress(done, total)

        for (_, items), task in zip(chosen, prepared, strict=True):
            before = done
            scores.append(task.score(model, suite.batch_size, advance))
            advance(len(items) - (done - before))
        return ScoreReport(
            fitness=replace(suite, tasks=tuple(task for task, _ in chosen)).fitness({s.task: s.score for s in scores}),
            scores=tuple(scores),
            seconds=time.perf_counter() - start,
            items=total,
            device=model.describe(threads),
            truncated=sum(task.truncated for task in prepared),
        )

    def _prepare(
        self, model: ScoringModel, chosen: list[tuple[Task, tuple[Item, ...]]], suite_digest: str, part: str
    ) -> list[Prepared]:
        encoder = self.encoder(model)
        key = (
            model.tokenizer_digest, suite_digest, part, encoder.context, encoder.masked, encoder.tree,
            encoder.vocabulary,
        )  # fmt: skip
        if key not in self._prepared:
            self._prepared[key] = [prepare(task, items, encoder) for task, items in chosen]
        return self._prepared[key]

    @staticmethod
    def encoder(model: ScoringModel) -> Encoder:
        """What turns items into rows for this model."""
        return Encoder(
            model.tokenizer, context=model.context, masked=model.masked, vocabulary=model.vocabulary, tree=model.tree
        )
