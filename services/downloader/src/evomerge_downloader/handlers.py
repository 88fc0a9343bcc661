"""One download job in, one ModelReady out."""

from __future__ import annotations

import time

from evomerge_common.domain.messages import DownloadJob, Job, ModelReady
from evomerge_common.errors import InvalidInput
from evomerge_downloader.fetch import Fetcher
from evomerge_downloader.threads import in_daemon_thread


class DownloadHandler:
    """Brings the job's model into the store; instant when it is there with its files unchanged."""

    def __init__(self, fetcher: Fetcher) -> None:
        self._fetcher = fetcher

    async def __call__(self, job: Job) -> ModelReady:
        """Raises what `Fetcher.fetch` raises."""
        if not isinstance(job.payload, DownloadJob):
            raise InvalidInput(f"job {job.job_id} is a {job.kind} job; the downloader takes download jobs alone")
        start = time.monotonic()
        model = await in_daemon_thread(
            self._fetcher.fetch,
            job.payload.reference,
            job.payload.base,
            typed=False,
            together=job.payload.together,
            accept_licence_conflict=job.payload.accept_licence_conflict,
        )
        return ModelReady(job_id=job.job_id, model=model, seconds=time.monotonic() - start)
