"""One EvaluateJob in, one CandidateEvaluated out."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import structlog

from evomerge_common import codec
from evomerge_common.domain.messages import CandidateEvaluated, EvaluateJob, Job
from evomerge_common.domain.suite import Suite
from evomerge_common.errors import InvalidInput, NotFound, Unavailable
from evomerge_common.runtime.child import ChildProcess
from evomerge_common.runtime.ports_factory import Ports
from evomerge_common.uris import model_folders, path_of_uri
from evomerge_evaluator.metrics import EVALUATOR_METRICS, EvaluatorMetrics
from evomerge_evaluator.scoring import child as scoring
from evomerge_evaluator.scoring.report import ScoreReport

DEFAULT_THREADS = 2
SUITES_KEPT = 8


class EvaluateHandler:
    """Scores a candidate, unless its score is known: nothing is scored twice, in any run."""

    def __init__(
        self,
        *,
        ports: Ports,
        child: ChildProcess,
        metrics: EvaluatorMetrics = EVALUATOR_METRICS,
        timeout: float | None = None,
    ) -> None:
        self._timeout = timeout
        self._ports = ports
        self._child = child
        self._metrics = metrics
        self._suites: OrderedDict[str, Suite] = OrderedDict()
        self._log = structlog.get_logger("evomerge.evaluator")

    async def __call__(self, job: Job) -> CandidateEvaluated:
        """See the class.

        Raises:
            InvalidInput: no such suite, an unusable model or recipe.
            WorkFailed: the model answers NaN; WorkerCrashed: the child process died; DeadlineExceeded: it took longer
                than `timeout` seconds.
            Unavailable: a source model is not on this machine.

        """
        payload = job.payload
        if not isinstance(payload, EvaluateJob):
            raise InvalidInput(f"the evaluator got a job of kind {job.kind}")
        key = f"{payload.recipe_digest}.{payload.suite_digest}.{payload.split}"
        known = await self._ports.kv.get("scores", key)
        if known is not None:
            return replace(codec.decode(CandidateEvaluated, known[0]), job_id=job.job_id, cached=True)
        report = await self._score(payload)
        result = CandidateEvaluated(
            job_id=job.job_id,
            recipe_digest=payload.recipe_digest,
            suite_digest=payload.suite_digest,
            split=payload.split,
            fitness=report.fitness,
            scores=report.scores,
            seconds=report.seconds,
            device=report.device,
        )
        if not await self._ports.kv.create("scores", key, codec.encode(replace(result, job_id=""))):
            known = await self._ports.kv.get("scores", key)  # another worker was first: one score for all
            if known is not None:
                return replace(codec.decode(CandidateEvaluated, known[0]), job_id=job.job_id)
        return result

    async def _score(self, payload: EvaluateJob) -> ScoreReport:
        suite = await self._suite(payload)
        folder = await asyncio.to_thread(self._weights, payload)
        request = scoring.ScoreRequest(
            folder=folder,
            recipe_json=payload.recipe_json,
            models={} if folder else model_folders(payload.sources),
            suite=suite,
            suite_digest=payload.suite_digest,
            split=payload.split,
            threads=payload.threads or DEFAULT_THREADS,
        )
        try:
            report = await self._child.call(scoring.score, request, timeout=self._timeout)
        except FileNotFoundError as error:
            raise Unavailable(f"the weights went away while they were read: {error}") from error
        for task, score in zip(suite.tasks, report.scores, strict=True):
            self._metrics.items.labels(task.kind).inc(len(score.item_scores))
        if report.truncated:
            self._log.warning("prompts cut to the context window", items=report.truncated, suite=payload.suite_digest)
        return report

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
        if not uri:
            return None
        if any(model.uri == uri for model in payload.sources):  # a source as it is lies in the model store
            folder = path_of_uri(uri)
            return folder if folder is not None and folder.is_dir() else None
        try:
            return self._ports.artifacts.open(uri)
        except NotFound:
            self._log.info("weights out of reach, the recipe is executed here", uri=uri)
            return None
