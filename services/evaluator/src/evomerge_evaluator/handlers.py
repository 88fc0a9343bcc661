"""One EvaluateJob in, one CandidateEvaluated out."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace

import structlog
from cachetools import LRUCache

from evomerge_common.domain.messages import Answer, CandidateEvaluated, EvaluateJob, Job
from evomerge_common.domain.scores import task_score
from evomerge_common.domain.spec import AUTO
from evomerge_common.domain.task import CREDIT, credit_of
from evomerge_common.errors import EvoMergeException, InvalidInput, Unavailable
from evomerge_common.runtime.child import ChildProcess
from evomerge_common.runtime.ports_factory import Ports
from evomerge_common.runtime.sources import source_folders
from evomerge_evaluator.fitness_cache import FitnessCache, Scores
from evomerge_evaluator.job_items import JobItems, JobReader, TaskItems
from evomerge_evaluator.metrics import EVALUATOR_METRICS, EvaluatorMetrics
from evomerge_evaluator.weights import Weights
from evomerge_scoring import child as scoring
from evomerge_scoring.report import ScoreReport, ScoreRequest

PREPARED = 8


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
        self._child = child
        self._metrics = metrics
        self._cache = cache or FitnessCache(ports.kv)
        self._reader = JobReader(ports.artifacts, self._cache)
        self._models = ports.models
        self._weights = Weights(ports.artifacts, ports.models, executor)
        self._dtypes: dict[int, str] = {}  # by parameters: what "auto" is on this device
        self._prepared: LRUCache[str, JobItems] = LRUCache(PREPARED)
        self._fresh: dict[str, tuple[JobItems, Scores]] = {}
        self._log = structlog.get_logger("evomerge.evaluator")

    async def __call__(self, job: Job) -> CandidateEvaluated:
        """Does the whole of a job: `work`, then `finish`."""
        return await self.finish(job, await self.work(job))

    async def prepare(self, job: Job) -> None:
        """Does what can be done before it is the job's turn: items, known scores, weights. `work` tells what fails."""
        payload = job.payload
        if not isinstance(payload, EvaluateJob):
            return
        try:
            dtype = await self._dtype_of(payload)
            items = self._prepared[job.job_id] = await self._reader.of(payload, dtype)
            if items.missing():
                await self._weights.prepare(payload)
        except (EvoMergeException, OSError) as error:
            self._log.info("could not be prepared", job_id=job.job_id, error=str(error))

    async def work(self, job: Job) -> CandidateEvaluated:
        """Scores what is not known.

        Raises:
            InvalidInput: no such suite, no such items, an unusable model or recipe.
            WorkFailed: the model answers NaN; WorkerCrashed: the child process died; DeadlineExceeded: it took longer
                than `timeout` seconds.
            Unavailable: a source model is not on this machine, or its device cannot compute in the job's dtype.

        """
        payload = job.payload
        if not isinstance(payload, EvaluateJob):
            raise InvalidInput(f"the evaluator got a job of kind {job.kind}")
        items = self._prepared.pop(job.job_id, None)
        items = items or await self._reader.of(payload, await self._dtype_of(payload))
        missing = items.missing()
        if not missing:
            return _result(job.job_id, payload, items, items.known)
        report = await self._score(payload, items, missing)
        fresh = Scores(device=report.device)
        for score in report.scores:
            fresh.items.update(zip(missing[score.task], score.item_scores, strict=True))
        self._fresh[job.job_id] = (items, fresh)
        whole = Scores({**items.known.items, **fresh.items}, report.device)
        found = _result(job.job_id, payload, items, whole)
        # A metric that was measured is more exact than one that follows from remembered scores.
        exact = {one.task: one for one in report.scores if len(one.item_scores) == len(_of(items, one.task).items)}
        scores = tuple(
            replace(one, metric_value=exact[one.task].metric_value) if one.task in exact else one
            for one in found.scores
        )
        scores = tuple(replace(one, answers=_answers(report, missing, one.task, payload.rung)) for one in scores)
        names = {one.task for one in found.scores}  # an answer and its partial credit are one item
        computed = sum(len(one.item_scores) for one in report.scores if one.task in names)
        return replace(found, scores=scores, cached=False, seconds=report.seconds, computed=computed)

    async def finish(self, job: Job, result: CandidateEvaluated) -> CandidateEvaluated:
        """Remembers the scores; where another worker was first, its scores count: there is one score for all."""
        items, fresh = self._fresh.pop(job.job_id, (None, None))
        if items is None or fresh is None or not isinstance(job.payload, EvaluateJob):
            return result
        known = await self._cache.add(result.recipe_digest, fresh, items.dtype)
        known.add(fresh)  # where the entry was too long
        if all(known.items[digest] == score for digest, score in fresh.items.items()):
            return result
        found = _result(job.job_id, job.payload, items, known)
        return replace(found, cached=False, seconds=result.seconds, computed=result.computed)

    async def _dtype_of(self, payload: EvaluateJob) -> str:
        """Returns the job's dtype; of "auto" this device's, by the largest source: the same for all jobs of a run."""
        if payload.dtype not in {"", AUTO}:
            return payload.dtype
        parameters = max((one.parameters for one in payload.sources), default=0)
        if parameters not in self._dtypes:
            self._dtypes[parameters] = await self._child.call(scoring.auto_dtype, parameters)
        return self._dtypes[parameters]

    async def _score(
        self, payload: EvaluateJob, items: JobItems, missing: Mapping[str, Mapping[bytes, int]]
    ) -> ScoreReport:
        """Scores the items without a score; each task's come in the order of `missing`."""
        suite = items.suite
        folder = await asyncio.to_thread(self._weights.folder, payload)
        places = {task.name: tuple(missing[task.name].values()) for task in suite.tasks if task.name in missing}
        sizes = {part.name: len(suite.items(part, payload.split)) for part in suite.tasks}
        everything = places == {name: tuple(range(size)) for name, size in sizes.items()}
        candidate = scoring.Candidate(
            folder=folder,
            recipe_json=payload.recipe_json,
            models={} if folder else source_folders(payload.sources, self._models),
        )
        request = ScoreRequest(
            suite=suite,
            suite_digest=items.digest,
            split=payload.split,
            threads=payload.threads or scoring.DEFAULT_THREADS,
            dtype=items.dtype,
            places=None if everything else places,
        )
        try:
            report = await self._child.call(scoring.score, candidate, request, timeout=self._timeout)
        except FileNotFoundError as error:
            raise Unavailable(f"the weights went away while they were read: {error}") from error
        kinds = {task.name: task.kind for task in suite.tasks}
        for score in report.scores:
            self._metrics.items.labels(kinds[score.task]).inc(len(score.item_scores))
        if report.truncated:
            self._log.warning("prompts cut to the context window", items=report.truncated, suite=payload.suite_digest)
        return report

    def close(self) -> None:
        """Removes the weights that were made here."""
        self._weights.close()


def _answers(
    report: ScoreReport, missing: Mapping[str, Mapping[bytes, int]], task: str, rung: int
) -> tuple[Answer, ...]:
    """What the model wrote to the first items of a task, by their places in the split; of a race the first rung's."""
    made = next((one for one in report.scores if one.task == task), None)
    if made is None or rung:
        return ()
    places = tuple(missing[task].values())
    return tuple(replace(one, position=places[one.position]) for one in made.answers)


def _of(items: JobItems, task: str) -> TaskItems:
    return next(part for part in items.parts if part.task.name == task)


def _result(job_id: str, payload: EvaluateJob, items: JobItems, scores: Scores) -> CandidateEvaluated:
    """What the scores say of a job's items; nothing of it was computed."""
    measured = {
        part.task.name: task_score(part.task, part.items, [scores.items[digest] for digest in part.digests])
        for part in items.parts
    }
    asked = [part for part in items.parts if part.task.fitness != CREDIT]
    found = tuple(
        replace(
            measured[part.task.name],
            positions=part.places if payload.items else (),
            credit=credit.score if (credit := measured.get(credit_of(part.task).name)) else 0.0,
        )
        for part in asked
    )
    weights = {part.task.name: part.task.weight for part in asked}
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
        dtype=items.dtype,
    )


def _mean(scores: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """Weighted mean, as `Suite.fitness`; of a rung whose tasks all weigh nothing, 0."""
    total = sum(weights.values())
    return sum(weights[task] * score for task, score in scores.items()) / total if total else 0.0
