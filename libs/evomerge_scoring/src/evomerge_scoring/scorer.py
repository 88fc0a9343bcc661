"""Scores a model on a suite. One Scorer lives as long as its process; its model stays resident between candidates."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from cachetools import LRUCache

from evomerge_common.domain.kinds import kind_of
from evomerge_common.domain.suite import Suite
from evomerge_common.domain.task import Item, Task
from evomerge_common.errors import ModelError, SuiteError
from evomerge_common.runtime.spans import span
from evomerge_scoring.devices import choose_device, choose_threads
from evomerge_scoring.encode import Encoder
from evomerge_scoring.encode_pairs import PairEncoder
from evomerge_scoring.kinds import Prepared, prepare
from evomerge_scoring.model import Backend, Picture, ScoringModel, Stop
from evomerge_scoring.report import GenerateResult, ScoreReport, ScoreRequest
from evomerge_scoring.resident import Resident
from evomerge_scoring.sandbox import check_sandbox
from evomerge_scoring.vllm_backend import VllmResident, use_vllm

Progress = Callable[[int, int], None]
Load = Callable[[Backend], ScoringModel]
Chosen = tuple[Task, tuple[Item, ...]]
PREPARED_KEPT = 16
"""Suites, or parts of them, whose items stay encoded; each rung of a race is one."""
NO_CODE = (
    "a task of kind `code` runs programs that models write; allow it with EVOMERGE_ALLOW_CODE=true where models are "
    "scored (they run in a sandbox without files, network and other processes)"
)


class Scorer:
    """See the module's text. Not thread-safe: one job at a time."""

    def __init__(
        self, *, device: str = "auto", backend: str = "auto", allow_code: bool = False, tensor_parallel: int = 1
    ) -> None:
        chosen = choose_device(device)
        self.resident: Backend = (
            VllmResident(chosen, tensor_parallel=tensor_parallel)
            if use_vllm(backend, chosen.type)
            else Resident(chosen)
        )
        self.allow_code = allow_code
        self._prepared: LRUCache[tuple[object, ...], list[Prepared]] = LRUCache(PREPARED_KEPT)

    def score(self, load: Load, request: ScoreRequest, progress: Progress | None = None) -> ScoreReport:
        """Scores one model: the only way in, for folders, merge plans and tensors alike.

        Args:
            load: makes the model the backend's, such as `lambda backend: backend.load_folder(folder)`.
            request: what to ask.
            progress: called with items done and items in all.

        Raises:
            ModelError: it is no model, unsafe, or its tensors do not fit its config.
            SuiteError: the suite asks what this kind of model cannot answer, or what this machine does not allow.
            NonFiniteScore: the model answered NaN or infinity.
            OutOfMemory: not even one row fits.
            Unavailable: the device cannot compute in the dtype that is asked for.

        """
        start = time.perf_counter()
        self._check(request.suite)
        self.resident.dtype = request.dtype
        with span("load"):  # or to put the weights into the model that is there
            model = load(self.resident)
        threads = choose_threads(request.threads, parameters=model.parameters)
        torch.set_num_threads(threads)
        chosen = chosen_items(request)
        total = sum(len(items) for _, items in chosen)
        with span("encode"):
            prepared = self._prepare(model, chosen, request)
        scores = []
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            if progress:
                progress(done, total)

        for (asked_task, items), task in zip(chosen, prepared, strict=True):
            before = done
            with span(f"task {asked_task.name}", task=asked_task.name, items=len(items)):
                scores.append(task.score(model, request.suite.batch_size, advance))
            advance(len(items) - (done - before))
        asked = replace(request.suite, tasks=tuple(task for task, _ in chosen))
        return ScoreReport(
            fitness=asked.fitness({score.task: score.score for score in scores}),
            scores=tuple(scores),
            seconds=time.perf_counter() - start,
            items=total,
            device=model.describe(threads),
            truncated=sum(task.truncated for task in prepared),
        )

    def generate(
        self, folder: Path, prompt: str, max_new_tokens: int, *, threads: int = 2, chat: bool = False
    ) -> GenerateResult:
        """Greedy continuation; see `scoring.generate_text`."""
        start = time.perf_counter()
        model = self.resident.load_folder(folder)
        torch.set_num_threads(choose_threads(threads, parameters=model.parameters))
        if model.masked:
            raise ModelError(f"{folder} is a masked language model; it cannot continue a text")
        count = min(max(1, max_new_tokens), model.context - 1)
        encoder = self.encoder(model)
        if not (prompt or chat or encoder.lead or encoder.start):
            raise ModelError("an empty prompt, and the tokenizer has no first token; give a prompt")
        (ids,) = encoder.prompts([prompt], count, chat=chat).prompts
        (made,) = model.continuations([ids], Stop((), count), 1)
        shown = [] if model.decoder_start is not None or isinstance(ids, Picture) else list(ids)
        before = model.tokenizer.decode(shown, skip_special_tokens=True)
        whole = model.tokenizer.decode([*shown, *made], skip_special_tokens=True)
        found = whole[len(before) :] if whole.startswith(before) else model.tokenizer.decode(made)
        return GenerateResult(text=found, tokens=len(made), seconds=time.perf_counter() - start)

    def _check(self, suite: Suite) -> None:
        """Whether this machine runs what models write, where the suite asks for it."""
        if any(kind_of(task.kind).runs_code for task in suite.tasks):
            if not self.allow_code:
                raise SuiteError(NO_CODE)
            check_sandbox()

    def _prepare(self, model: ScoringModel, chosen: Sequence[Chosen], request: ScoreRequest) -> list[Prepared]:
        encoder = self.encoder(model)
        places = "" if request.places is None else json.dumps(request.places)
        key = (
            model.tokenizer_digest, request.suite_digest or request.suite.digest, request.split, places,
            encoder.context, encoder.masked, encoder.tree, encoder.vocabulary,
            encoder.decoder_start,
        )  # fmt: skip
        if key not in self._prepared:
            self._prepared[key] = [prepare(task, items, encoder) for task, items in chosen]
        return self._prepared[key]

    @staticmethod
    def encoder(model: ScoringModel) -> Encoder:
        """What turns items into rows for this model."""
        kind = Encoder if model.decoder_start is None else PairEncoder
        return kind(
            model.tokenizer, context=model.context, masked=model.masked, vocabulary=model.vocabulary, tree=model.tree,
            decoder_start=model.decoder_start, sight=model.sight,
        )  # fmt: skip


def chosen_items(request: ScoreRequest) -> list[Chosen]:
    """Tasks with the items that a request asks for, in the suite's order."""
    chosen = [(task, request.suite.items(task, request.split)) for task in request.suite.tasks]
    if request.places is None:
        return chosen
    places = request.places
    return [(task, tuple(items[i] for i in places[task.name])) for task, items in chosen if task.name in places]
