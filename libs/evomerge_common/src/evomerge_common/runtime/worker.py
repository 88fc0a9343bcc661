"""The one worker loop: heartbeats, retries, dead letters, idempotency, shutdown. Handlers know nothing of them.

Bucket `results` holds, by job id, the Event that was the job's first result (`codec.encode`): "done" means that it is
there. Order: handler → result event (message id = job id) → `results` → ack, so that a worker that dies in between
leaves a job that is delivered again, and whose second result is absorbed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

import structlog

from evomerge_common.adapters import codec
from evomerge_common.domain.messages import (
    ADHOC,
    CandidateFailed,
    DownloadJob,
    ErrorInfo,
    EvaluateJob,
    Event,
    Job,
    JobPostponed,
    Result,
)
from evomerge_common.errors import (
    DiskFull,
    EvoMergeException,
    InvalidInput,
    OutOfMemory,
    ResourceExhausted,
    Unavailable,
    WorkerCrashed,
    WorkFailed,
    is_disk_full,
)
from evomerge_common.ports import Delivery
from evomerge_common.runtime import spans
from evomerge_common.runtime.logging import words_of
from evomerge_common.runtime.metrics import WORKER_METRICS, WorkerMetrics
from evomerge_common.runtime.ports_factory import Ports
from evomerge_common.runtime.settings import Settings

Handler = Callable[[Job], Awaitable[Result]]
"""Called by the worker's loop when it is a job's turn; returns the job's result."""
Preparation = Callable[[Job], Awaitable[None]]
"""Called when a job was fetched, while another may be in work; raises nothing: what is wrong, the handler says."""
Finish = Callable[[Job, Any], Awaitable[Result]]
"""Called with a job and the handler's result before it is published; returns the result to publish."""

_FETCH_SECONDS = 1.0  # also the longest that an idle worker takes to stop: a fetch is never cut, or its job would hang
_GLANCE_SECONDS = 0.002  # for a worker with a job: it takes what lies there, and leaves the rest to idle ones
_BETWEEN_GLANCES = 0.05
_RETRY_DELAYS = (1.0, 5.0, 15.0, 30.0)
_LACK_ATTEMPTS = 3
"""Attempts after which a lack is no passing one: others have had six seconds to make room."""
_TRANSIENT = (Unavailable, ResourceExhausted, WorkerCrashed, OSError)


class Worker:
    """Works one kind of job, one at a time.

    With `prepare`, the next job is fetched and prepared while one is in work, and a result is published while the next
    is in work already: the handler never waits for the queue. Only a job that no idle worker waits for is taken ahead:
    a worker with a job just glances at the queue.

    The handler raises InvalidInput or WorkFailed (but not WorkerCrashed) when the job can never succeed: the result
    is CandidateFailed at once. Anything else is tried again after a delay; at the last attempt the job is a dead
    letter and the result CandidateFailed. But what the machine lacks (`lack_of`) is no fault of the job: after a few
    attempts it is JobPostponed, which is no result, so that the run can ask for it again when there is room.
    """

    def __init__(
        self,
        *,
        kind: str,
        handler: Handler,
        prepare: Preparation | None = None,
        finish: Finish | None = None,
        ports: Ports,
        settings: Settings,
        metrics: WorkerMetrics | None = None,
        retry_delays: tuple[float, ...] = _RETRY_DELAYS,
    ) -> None:
        self.kind = kind
        self._handler = handler
        self._prepare = prepare
        self._finish = finish
        self._turn = asyncio.Lock()  # fair: whoever fetched first works first
        self._fetching = asyncio.Lock()
        self._jobs_in_hand = 0
        self._name = f"{kind}@{socket.gethostname()}:{os.getpid()}"
        self._ports = ports
        self._settings = settings
        self._retry_delays = retry_delays
        self._metrics = metrics or WORKER_METRICS
        self._metrics.prepare(kind)
        self._log = structlog.get_logger("evomerge.worker").bind(kind=kind)

    async def run(self, stop: asyncio.Event) -> None:
        """Works until `stop` is set; the job in work then has `drain_timeout` seconds, and is given back."""
        loops = [asyncio.create_task(self._loop(stop)) for _ in range(1 if self._prepare is None else 2)]
        try:
            await asyncio.gather(*loops)
        finally:
            for loop in loops:
                loop.cancel()
            await asyncio.gather(*loops, return_exceptions=True)

    async def _loop(self, stop: asyncio.Event) -> None:
        failures = 0
        while not stop.is_set():
            try:
                delivery = await self._fetch(stop)
                failures = 0
            except Unavailable as error:
                failures += 1
                self._log.warning("cannot fetch", error=str(error), failures=failures)
                await _wait(stop, min(0.2 * 2**failures, 5.0))
                continue
            if delivery is None:
                continue
            words = words_of(delivery.job, delivery.attempt)
            with structlog.contextvars.bound_contextvars(**words), _traced(delivery, words):
                try:
                    await self._work(delivery, stop)
                except Unavailable as error:  # the broker went away: the job comes again after ack_wait
                    self._log.warning("lost touch with the queue", error=str(error))
                finally:
                    self._jobs_in_hand -= 1

    async def _fetch(self, stop: asyncio.Event) -> Delivery | None:
        async with self._fetching:
            if self._jobs_in_hand:
                await _wait(stop, _BETWEEN_GLANCES)
            if stop.is_set():
                return None
            delivery = await self._ports.queue.fetch(
                self.kind, _GLANCE_SECONDS if self._jobs_in_hand else _FETCH_SECONDS
            )
            self._jobs_in_hand += delivery is not None
            return delivery

    async def _work(self, delivery: Delivery, stop: asyncio.Event) -> None:
        job = delivery.job
        if stop.is_set():
            await self._give_back(delivery)
            return
        heart = asyncio.create_task(self._heartbeats(delivery))
        try:
            with spans.span("look for a result"):
                known = await self._ports.kv.get("results", job.job_id)
            if known is not None:
                await self._absorb(delivery)
            elif delivery.attempt > 2 * self._settings.max_deliver:
                # Deliveries beyond max_deliver are of workers that vanished: each was stopped, or killed by this job.
                reason = f"{delivery.attempt - 1} workers were stopped or died while they had this job"
                await self._finish_failed(delivery, WorkerCrashed(reason), dead=True)
            else:
                await self._attempt(delivery, stop)
        finally:
            heart.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await heart

    async def _attempt(self, delivery: Delivery, stop: asyncio.Event) -> None:
        job = delivery.job
        if self._prepare is not None:
            with spans.span("prepare"):
                await self._prepare(job)
        result, problem, began = None, None, 0.0
        waiting = time.time_ns()
        async with self._turn:
            if self._prepare is not None:
                spans.emit("wait for its turn", waiting, time.time_ns(), parent=spans.here())
            if not stop.is_set():
                started, began = time.monotonic(), self._ports.clock.now()
                self._metrics.in_progress.labels(self.kind).inc()
                try:
                    with spans.span("handle"):
                        result = await self._run_handler(job, stop)
                except Exception as error:
                    problem = error
                finally:
                    self._metrics.in_progress.labels(self.kind).dec()
                    seconds = time.monotonic() - started
                    self._metrics.duration.labels(self.kind).observe(seconds, exemplar=spans.exemplar())
        ended = self._ports.clock.now()
        if result is not None and self._finish is not None:
            try:
                with spans.span("finish"):
                    result = await self._finish(job, result)
            except Exception as error:
                problem = error
        if problem is not None:
            await self._failed(delivery, problem)
        elif result is None:
            await self._give_back(delivery)
        elif await self._publish(delivery, result, stop, began=began, ended=ended):
            self._count("done")
            self._log.info("job done", seconds=round(ended - began, 3))

    async def _failed(self, delivery: Delivery, error: Exception) -> None:
        if isinstance(error, InvalidInput | WorkFailed) and not isinstance(error, WorkerCrashed):
            await self._finish_failed(delivery, error, dead=False)
            return
        lack = lack_of(error, delivery.job)
        if lack is not None and (delivery.attempt >= _LACK_ATTEMPTS or delivery.is_last_attempt):
            await self._postpone(delivery, lack)
            return
        if not isinstance(error, _TRANSIENT):
            self._log.error("bug in the handler", error=str(error), exc_info=error)
        await self._again(delivery, error)

    async def _run_handler(self, job: Job, stop: asyncio.Event) -> Result | None:
        """The handler's result, or None when it had to be cut because the service stops."""
        work = asyncio.ensure_future(self._handler(job))
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({work, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                await asyncio.wait({work}, timeout=self._settings.drain_timeout)
            if work.done():
                return work.result()
            work.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                return await work  # it may have ended in this very moment
            return None
        finally:
            stopping.cancel()
            if not work.done():
                work.cancel()

    async def _publish(
        self, delivery: Delivery, result: Result, stop: asyncio.Event, *, began: float, ended: float
    ) -> bool:
        """Publishes the result once; tells whether it was the first. Work that is done outlives a broker's restart."""
        job = delivery.job
        event = Event(run_id=job.run_id, payload=result, time=ended, worker=self._name, began=began)
        with spans.span("publish"):
            return await self._publish_event(delivery, event, stop)

    async def _publish_event(self, delivery: Delivery, event: Event, stop: asyncio.Event) -> bool:
        job = delivery.job
        failures = 0
        while True:
            try:
                if await self._ports.kv.get("results", job.job_id) is not None:
                    await self._absorb(delivery)
                    return False
                await self._ports.log.append_result(event, message_id=job.job_id)
                if not await self._ports.kv.create("results", job.job_id, codec.encode(event)):
                    await self._absorb(delivery)
                    return False
                await self._ack(delivery)
                return True
            except Unavailable as error:
                failures += 1
                self._log.warning("cannot publish the result, trying again", error=str(error), failures=failures)
                if stop.is_set():
                    raise
                await _wait(stop, min(0.2 * 2**failures, 5.0))

    async def _absorb(self, delivery: Delivery) -> None:
        self._metrics.duplicates.labels(self.kind).inc()
        self._count("duplicate")
        self._log.info("job has a result already")
        await self._ack(delivery)

    async def _ack(self, delivery: Delivery) -> None:
        """Whatever becomes of it: the job has its result, and is absorbed should it come again."""
        try:
            await delivery.ack()
        except Unavailable as error:
            self._log.warning("no answer to the ack; the job may come again", error=str(error))

    async def _again(self, delivery: Delivery, error: BaseException) -> None:
        if delivery.is_last_attempt:
            await self._finish_failed(delivery, error, dead=True)
            return
        delay = self._retry_delays[min(delivery.attempt, len(self._retry_delays)) - 1]
        self._count("retried")
        self._log.warning("job failed, will be tried again", error=str(error), type=type(error).__name__, delay=delay)
        await delivery.retry(delay)

    async def _postpone(self, delivery: Delivery, lack: ResourceExhausted) -> None:
        """Tells the run what is lacking, and takes the job off the queue; bucket `results` hears nothing of it."""
        job = delivery.job
        error = ErrorInfo(type=type(lack).__name__, message=str(lack))
        event = Event(
            run_id=job.run_id,
            time=self._ports.clock.now(),
            payload=JobPostponed(job_id=job.job_id, kind=job.kind, attempt=job.attempt, error=error),
        )
        self._log.error("this machine lacks something; the job is postponed", error=str(lack), type=error.type)
        await self._ports.log.append_result(event, message_id=f"{job.message_id}-postponed")
        await self._ack(delivery)
        self._count("postponed")

    async def _finish_failed(self, delivery: Delivery, error: BaseException, *, dead: bool) -> None:
        """The result first, then the queue: a run never waits for a job that has vanished."""
        job = delivery.job
        message = str(error) if isinstance(error, EvoMergeException) else f"{type(error).__name__}: {error}"
        name = type(error).__name__ if isinstance(error, EvoMergeException) else "WorkFailed"
        self._log.error("job failed for good", error=message, type=type(error).__name__, dead_letter=dead)
        event = Event(
            run_id=job.run_id,
            time=self._ports.clock.now(),
            payload=failure_of(job, ErrorInfo(type=name, message=message)),
        )
        await self._ports.log.append_result(event, message_id=job.job_id)
        await self._ports.kv.create("results", job.job_id, codec.encode(event))
        if dead:
            await delivery.dead_letter(f"{name}: {message}")
        else:
            await self._ack(delivery)
        self._count("dead_letter" if dead else "failed")

    async def _give_back(self, delivery: Delivery) -> None:
        self._count("given_back")
        self._log.info("job given back: this service stops")
        await delivery.retry(0.0)

    async def _heartbeats(self, delivery: Delivery) -> None:
        while True:
            await self._ports.clock.sleep(self._ports.queue.ack_wait / 3)
            try:
                await delivery.heartbeat()
            except Unavailable as error:
                self._log.warning("heartbeat failed", error=str(error))

    def _count(self, outcome: str) -> None:
        self._metrics.jobs.labels(self.kind, outcome).inc()


def lack_of(error: Exception, job: Job) -> ResourceExhausted | None:
    """Tells what the machine lacks for a job of a run; None where the job itself is to blame, or no run waits for it.

    A candidate that is too large to be scored is a fact about the candidate: that alone its evaluation may say.
    """
    if isinstance(error, OSError) and is_disk_full(error):
        error = DiskFull(f"no room left for {error.filename or 'a file'}: free some space")
    elif isinstance(error, MemoryError):
        error = OutOfMemory(f"this machine's memory is too small: {error}")
    if job.run_id == ADHOC or not isinstance(error, ResourceExhausted):
        return None
    return None if isinstance(job.payload, EvaluateJob) and isinstance(error, OutOfMemory) else error


def failure_of(job: Job, error: ErrorInfo) -> CandidateFailed:
    """Makes the result of a job that will never succeed."""
    payload = job.payload
    return CandidateFailed(
        job_id=job.job_id,
        kind=job.kind,
        recipe_digest="" if isinstance(payload, DownloadJob) else payload.recipe_digest,
        split=payload.split if isinstance(payload, EvaluateJob) else "",
        reference=payload.reference if isinstance(payload, DownloadJob) else "",
        error=error,
    )


@contextlib.contextmanager
def _traced(delivery: Delivery, words: Mapping[str, Any]) -> Iterator[None]:
    """Records the job's wait in the queue, and the work on it, in the trace that came with it."""
    with spans.inside(context := spans.received(delivery.headers)):
        if context is None:
            yield
            return
        kind = delivery.job.kind
        if delivery.attempt == 1:  # a later one has waited since it was given back, and nobody knows when that was
            queued = spans.nanoseconds(delivery.queued_at)
            spans.emit(f"queue {kind}", queued, time.time_ns(), parent=context, kind="consumer", **words)
        with spans.span(kind, kind="consumer", **words):
            yield


async def _wait(stop: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stop.wait()
