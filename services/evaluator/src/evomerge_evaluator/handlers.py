"""One EvaluateJob in, one CandidateEvaluated out."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from evomerge_common.domain.messages import CandidateEvaluated, EvaluateJob, Job
from evomerge_common.domain.recipe import Recipe
from evomerge_common.domain.scores import task_score
from evomerge_common.domain.suite import Item, Suite, Task
from evomerge_common.errors import EvoMergeException, InvalidInput, NotFound, Unavailable
from evomerge_common.runtime.child import ChildProcess
from evomerge_common.runtime.ports_factory import Ports
from evomerge_common.uris import model_folders, path_of_uri
from evomerge_evaluator.fitness_cache import FitnessCache, Scores, item_digests
from evomerge_evaluator.metrics import EVALUATOR_METRICS, EvaluatorMetrics
from evomerge_evaluator.scoring import child as scoring
from evomerge_evaluator.scoring.report import ScoreReport

DEFAULT_THREADS = 2
SUITES_KEPT = 8
PREPARED_KEPT = 8
EXECUTED_KEPT = 4
"""Recipes whose weights this machine made itself and keeps for their next rungs."""


@dataclass(frozen=True)
class _Part:
    """Items of one task that a job asks for: their places in the split, and their digests."""

    task: Task
    items: tuple[Item, ...]
    places: tuple[int, ...]
    digests: tuple[bytes, ...]


@dataclass(frozen=True)
class _Asked:
    """A job's items, task by task, and what was known of them when the job was looked at."""

    suite: Suite
    parts: tuple[_Part, ...]
    known: Scores

    def missing(self) -> dict[str, dict[bytes, int]]:
        """Task → digest → place of each item without a score, once: items with the same content share one."""
        seen = set(self.known.items)
        found: dict[str, dict[bytes, int]] = {}
        for part in self.parts:
            for digest, place in zip(part.digests, part.places, strict=True):
                if digest not in seen:
                    seen.add(digest)
                    found.setdefault(part.task.name, {})[digest] = place
        return found


class EvaluateHandler:
    """Scores a candidate on the items whose scores are not known yet: nothing is scored twice, in any run.

    Args:
        executor: a second process, in which `prepare` executes a recipe whose weights are out of this machine's reach
            while the first one scores.

    """

    def __init__(
        self,
        *,
        ports: Ports,
        child: ChildProcess,
        metrics: EvaluatorMetrics = EVALUATOR_METRICS,
        cache: FitnessCache | None = None,
        executor: ChildProcess | None = None,
        timeout: float | None = None,
    ) -> None:
        self._timeout = timeout
        self._ports = ports
        self._child = child
        self._metrics = metrics
        self._cache = cache or FitnessCache(ports.kv)
        self._executor = executor
        self._executed: OrderedDict[str, Path] = OrderedDict()
        self._prepared: OrderedDict[str, _Asked] = OrderedDict()
        self._fresh: dict[str, tuple[_Asked, Scores]] = {}
        self._suites: OrderedDict[str, Suite] = OrderedDict()
        self._items: OrderedDict[tuple[str, str], tuple[_Part, ...]] = OrderedDict()
        self._log = structlog.get_logger("evomerge.evaluator")

    async def __call__(self, job: Job) -> CandidateEvaluated:
        """The whole of a job: `work`, then `finish`."""
        return await self.finish(job, await self.work(job))

    async def prepare(self, job: Job) -> None:
        """What can be done before it is the job's turn: items, known scores, weights. `work` tells what fails."""
        payload = job.payload
        if not isinstance(payload, EvaluateJob):
            return
        try:
            asked = self._prepared[job.job_id] = await self._asked(payload)
            while len(self._prepared) > PREPARED_KEPT:
                self._prepared.popitem(last=False)
            if asked.missing() and payload.artifact_uri and await asyncio.to_thread(self._weights, payload) is None:
                await self._execute(payload)
        except (EvoMergeException, OSError) as error:
            self._log.info("could not be prepared", job_id=job.job_id, error=str(error))

    async def work(self, job: Job) -> CandidateEvaluated:
        """Scores what is not known.

        Raises:
            InvalidInput: no such suite, no such items, an unusable model or recipe.
            WorkFailed: the model answers NaN; WorkerCrashed: the child process died; DeadlineExceeded: it took longer
                than `timeout` seconds.
            Unavailable: a source model is not on this machine.

        """
        payload = job.payload
        if not isinstance(payload, EvaluateJob):
            raise InvalidInput(f"the evaluator got a job of kind {job.kind}")
        asked = self._prepared.pop(job.job_id, None) or await self._asked(payload)
        missing = asked.missing()
        if not missing:
            return _result(job.job_id, payload, asked, asked.known)
        report = await self._score(payload, asked.suite, missing)
        fresh = Scores(device=report.device)
        for score in report.scores:
            fresh.items.update(zip(missing[score.task], score.item_scores, strict=True))
        self._fresh[job.job_id] = (asked, fresh)
        whole = Scores({**asked.known.items, **fresh.items}, report.device)
        told = _result(job.job_id, payload, asked, whole)
        # A metric that was measured is more exact than one that follows from remembered scores.
        exact = {one.task: one for one in report.scores if len(one.item_scores) == len(_of(asked, one.task).items)}
        scores = tuple(
            replace(one, metric_value=exact[one.task].metric_value) if one.task in exact else one for one in told.scores
        )
        return replace(told, scores=scores, cached=False, seconds=report.seconds, computed=len(fresh.items))

    async def finish(self, job: Job, result: CandidateEvaluated) -> CandidateEvaluated:
        """Remembers the scores; where another worker was first, its scores count: there is one score for all."""
        asked, fresh = self._fresh.pop(job.job_id, (None, None))
        if asked is None or fresh is None or not isinstance(job.payload, EvaluateJob):
            return result
        known = await self._cache.add(result.recipe_digest, fresh)
        known.add(fresh)  # where the entry was too long
        if all(known.items[digest] == score for digest, score in fresh.items.items()):
            return result
        told = _result(job.job_id, job.payload, asked, known)
        return replace(told, cached=False, seconds=result.seconds, computed=result.computed)

    async def _score(
        self, payload: EvaluateJob, suite: Suite, missing: Mapping[str, Mapping[bytes, int]]
    ) -> ScoreReport:
        """Scores the items without a score; each task's come in the order of `missing`."""
        folder = await asyncio.to_thread(self._weights, payload)
        places = {task.name: tuple(missing[task.name].values()) for task in suite.tasks if task.name in missing}
        sizes = {part.name: len(suite.items(part, payload.split)) for part in suite.tasks}
        everything = places == {name: tuple(range(size)) for name, size in sizes.items()}
        request = scoring.ScoreRequest(
            folder=folder,
            recipe_json=payload.recipe_json,
            models={} if folder else model_folders(payload.sources),
            suite=suite,
            suite_digest=payload.suite_digest,
            split=payload.split,
            threads=payload.threads or DEFAULT_THREADS,
            places=None if everything else places,
        )
        try:
            report = await self._child.call(scoring.score, request, timeout=self._timeout)
        except FileNotFoundError as error:
            raise Unavailable(f"the weights went away while they were read: {error}") from error
        kinds = {task.name: task.kind for task in suite.tasks}
        for score in report.scores:
            self._metrics.items.labels(kinds[score.task]).inc(len(score.item_scores))
        if report.truncated:
            self._log.warning("prompts cut to the context window", items=report.truncated, suite=payload.suite_digest)
        return report

    async def _asked(self, payload: EvaluateJob) -> _Asked:
        suite = await self._suite(payload)
        whole = self._split(suite, payload.suite_digest, payload.split)
        known = await self._cache.known(payload.recipe_digest)
        if not payload.items:
            return _Asked(suite, whole, known)
        wanted = {one.task: one.positions for one in payload.items}
        parts = []
        for part in whole:
            places = wanted.pop(part.task.name, ())
            if any(not 0 <= place < len(part.items) for place in places):
                raise InvalidInput(
                    f"task {part.task.name!r} has {len(part.items)} items in the {payload.split} split, no more"
                )
            if places:
                items, digests = ([one[i] for i in places] for one in (part.items, part.digests))
                parts.append(_Part(part.task, tuple(items), places, tuple(digests)))  # type: ignore[arg-type]
        if wanted or not parts:
            raise InvalidInput(f"the suite has no task {next(iter(wanted), '')!r}")
        return _Asked(suite, tuple(parts), known)

    def _split(self, suite: Suite, digest: str, split: str) -> tuple[_Part, ...]:
        key = (digest, split)
        if key not in self._items:
            chosen = [(task, suite.items(task, split)) for task in suite.tasks]
            self._items[key] = tuple(
                _Part(task, items, tuple(range(len(items))), item_digests(task, items)) for task, items in chosen
            )
            while len(self._items) > SUITES_KEPT:
                self._items.popitem(last=False)
        self._items.move_to_end(key)
        return self._items[key]

    async def _suite(self, payload: EvaluateJob) -> Suite:
        if payload.suite_digest not in self._suites:
            text = await asyncio.to_thread(self._ports.artifacts.get, payload.suite_uri)
            suite = Suite.from_json(text.decode())
            if suite.digest != payload.suite_digest:
                raise InvalidInput(
                    f"the suite at {payload.suite_uri} has digest {suite.digest}, not {payload.suite_digest}"
                )
            self._suites[payload.suite_digest] = suite
            while len(self._suites) > SUITES_KEPT:
                self._suites.popitem(last=False)
        self._suites.move_to_end(payload.suite_digest)
        return self._suites[payload.suite_digest]

    def _weights(self, payload: EvaluateJob) -> Path | None:
        """The candidate's folder; None where there is none or this machine cannot reach it."""
        uri = payload.artifact_uri
        if uri and any(model.uri == uri for model in payload.sources):  # a source as it is lies in the model store
            folder = path_of_uri(uri)
            return folder if folder is not None and folder.is_dir() else None
        if uri:
            try:
                return self._ports.artifacts.open(uri)
            except NotFound:
                self._log.info("weights out of reach, the recipe is executed here", uri=uri)
        return self._executed.get(payload.recipe_digest)

    # ---- weights made here ----

    async def _execute(self, payload: EvaluateJob) -> None:
        """Makes a candidate's weights beside the scoring of another one; they stay for its next rungs."""
        recipe = Recipe.from_json(payload.recipe_json)
        models = model_folders(payload.sources)
        if self._executor is None or any(source.key not in models for source in recipe.sources()):
            return
        if recipe.digest == Recipe.of_source(recipe.sources()[0]).digest:
            return
        folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="evomerge-"))
        try:
            threads = payload.threads or DEFAULT_THREADS
            await self._executor.call(scoring.execute, payload.recipe_json, models, folder, threads)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self._executed[payload.recipe_digest] = folder
        while len(self._executed) > EXECUTED_KEPT:
            shutil.rmtree(self._executed.popitem(last=False)[1], ignore_errors=True)

    def close(self) -> None:
        """Removes the weights that were made here."""
        while self._executed:
            shutil.rmtree(self._executed.popitem()[1], ignore_errors=True)


def _of(asked: _Asked, task: str) -> _Part:
    return next(part for part in asked.parts if part.task.name == task)


def _result(job_id: str, payload: EvaluateJob, asked: _Asked, scores: Scores) -> CandidateEvaluated:
    """What the scores say of a job's items; nothing of it was computed."""
    found = tuple(
        replace(
            task_score(part.task, part.items, [scores.items[digest] for digest in part.digests]),
            positions=part.places if payload.items else (),
        )
        for part in asked.parts
    )
    weights = {part.task.name: part.task.weight for part in asked.parts}
    return CandidateEvaluated(
        job_id=job_id,
        recipe_digest=payload.recipe_digest,
        suite_digest=payload.suite_digest,
        split=payload.split,
        fitness=_mean({score.task: score.score for score in found}, weights),
        scores=found,
        device=scores.device,
        cached=True,
        partial=bool(payload.items),
        rung=payload.rung,
    )


def _mean(scores: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """Weighted mean, as `Suite.fitness`; of a rung whose tasks all weigh nothing, 0."""
    total = sum(weights.values())
    return sum(weights[task] * score for task, score in scores.items()) / total if total else 0.0
