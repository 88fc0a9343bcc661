"""One download job in, one ModelReady out."""

from __future__ import annotations

import time

import structlog

from evomerge_common.domain.messages import ADHOC, DownloadJob, Job, ModelReady
from evomerge_common.errors import InvalidInput
from evomerge_common.runtime.logging import short
from evomerge_downloader.fetch import Fetcher
from evomerge_downloader.threads import in_daemon_thread
from evomerge_models.pins import run_owner

log = structlog.get_logger("evomerge.downloader")


class DownloadHandler:
    """Brings the job's model into the store, where the run keeps it; instant when it is there, its files unchanged."""

    def __init__(self, fetcher: Fetcher) -> None:
        self._fetcher = fetcher

    async def __call__(self, job: Job) -> ModelReady:
        """Raises what `Fetcher.fetch` raises."""
        if not isinstance(job.payload, DownloadJob):
            raise InvalidInput(f"job {job.job_id} is a {job.kind} job; the downloader takes download jobs alone")
        start = time.monotonic()
        wanted = job.payload
        model = await in_daemon_thread(
            self._fetcher.fetch,
            wanted.reference,
            wanted.base,
            typed=False,
            together=wanted.together,
            accept_licence_conflict=wanted.accept_licence_conflict,
            owner="" if job.run_id == ADHOC else run_owner(job.run_id),
        )
        log.info("model ready", model=f"{model.reference}@{short(model.digest)}", uri=model.uri, bytes=model.bytes)
        return ModelReady(job_id=job.job_id, model=model, seconds=time.monotonic() - start)
