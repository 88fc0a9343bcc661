"""A run without models: workers that answer at once, and a run played to its end. For benchmarks and tests."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence

from evomerge_common.domain.messages import (
    JOB_KINDS,
    ArtifactExported,
    CandidateEvaluated,
    CandidateMerged,
    Decision,
    DownloadJob,
    EvaluateJob,
    Event,
    ExportJob,
    Job,
    MergeJob,
    Model,
    ModelReady,
    Result,
    RunStarted,
    TaskScore,
)
from evomerge_common.domain.reference import ModelReference
from evomerge_common.domain.spec import RunSpec
from evomerge_common.errors import Unavailable
from evomerge_common.runtime.ports_factory import Ports
from evomerge_selector.domain.run import Run

Score = Callable[[EvaluateJob], tuple[float, Sequence[TaskScore]]]
"""Fitness and scores of a candidate."""


def answer(job: Job, score: Score, *, layers: int = 6) -> Result:
    """Answers as a worker would; a model's name is its digest, and `base+adapter` an adapter on that base."""
    payload = job.payload
    match payload:
        case DownloadJob():
            name = payload.reference
            wanted = ModelReference.parse(name)
            model = Model(
                reference=name, digest=name, uri=f"file:///{name}", architecture="llama", num_layers=layers,
                base=str(wanted.whole) if wanted.adapter else "",
            )  # fmt: skip
            return ModelReady(job_id=job.job_id, model=model)
        case MergeJob():
            uri = f"file:///{payload.recipe_digest}"
            return CandidateMerged(job_id=job.job_id, recipe_digest=payload.recipe_digest, uri=uri)
        case EvaluateJob():
            fitness, scores = score(payload)
            return CandidateEvaluated(
                job_id=job.job_id, recipe_digest=payload.recipe_digest, split=payload.split, fitness=fitness,
                scores=tuple(scores), partial=bool(payload.items), rung=payload.rung,
            )  # fmt: skip
        case ExportJob():
            return ArtifactExported(
                job_id=job.job_id, recipe_digest=payload.recipe_digest, format=payload.format, uri="file:///champion"
            )


def play(
    run: Run,
    spec: RunSpec,
    respond: Callable[[Job], Result],
    *,
    started: RunStarted | None = None,
    record: Callable[[Event], None] = lambda _: None,
) -> None:
    """Plays a fresh run from its start to its end.

    Args:
        run: nothing has happened to it yet.
        spec: what it searches.
        respond: answers a job as a worker would.
        started: how it begins; without it there is no holdout.
        record: called with each event, in order.

    """

    def tell(payload: Decision | Result) -> None:
        event = Event(run_id=run.run_id, payload=payload)
        run.apply(event)
        record(event)

    done: set[str] = set()
    tell(started or RunStarted(spec_json=spec.to_json()))
    while not run.phase.is_terminal:
        while (decision := run.next_decision()) is not None:
            tell(decision)
        for job in run.jobs():
            if job.job_id not in done:
                done.add(job.job_id)
                tell(respond(job))
        run.discarded.clear()


@contextlib.asynccontextmanager
async def workers(ports: Ports, respond: Callable[[Job], Result], *, each: int = 1) -> AsyncIterator[None]:
    """Runs so many of each kind, on real queues; an outage of the broker is waited out."""
    over = asyncio.Event()

    async def work(kind: str) -> None:
        # Python 3.11's wait_for may swallow a cancellation that meets its answer, so the loop has an end of its own.
        while not over.is_set():
            try:
                delivery = await ports.queue.fetch(kind, 2.0)
                if delivery:
                    event = Event(run_id=delivery.job.run_id, payload=respond(delivery.job), time=ports.clock.now())
                    await ports.log.append_result(event, message_id=delivery.job.job_id)
                    await delivery.ack()
            except Unavailable:
                await asyncio.sleep(0.1)

    tasks = [asyncio.create_task(work(kind)) for kind in JOB_KINDS.values() for _ in range(each)]
    try:
        yield
    finally:
        over.set()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
