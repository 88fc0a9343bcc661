"""The jobs that a run waits for, and the weights that they leave behind."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from evomerge_common.domain.messages import EvaluateJob, Job, MergeJob


@dataclass
class Ledger:
    """Every job without a result; the first result of a job settles it.

    Attributes:
        waiting: by job id, oldest first.
        discarded: URIs of weights that nobody needs any more; the shell takes them off the list and deletes them.
        unscored: of all that was ever on that list, what no result has come of: it may be made again.

    """

    waiting: dict[str, Job] = field(default_factory=dict)
    discarded: list[str] = field(default_factory=list)
    unscored: set[str] = field(default_factory=set)

    def add(self, *jobs: Job) -> None:
        """Notes jobs to be done."""
        self.waiting.update((job.job_id, job) for job in jobs)

    def settle(self, job_id: str) -> Job | None:
        """Takes a job off the list, since its result is there; None when it was not on it (a result may come twice)."""
        return self.waiting.pop(job_id, None)

    def postpone(self, job_id: str, attempt: int) -> bool:
        """Puts a job up for another attempt; False when that attempt is not the one that is waited for."""
        job = self.waiting.get(job_id)
        if job is None or job.attempt != attempt:
            return False
        self.waiting[job_id] = replace(job, attempt=attempt + 1)
        return True

    def release(self, job: Job | None) -> None:
        """Lets go of the merged weights that a job was to score; a source's own files are not ours to delete."""
        if job is not None and isinstance(job.payload, EvaluateJob):
            uri = job.payload.artifact_uri
            if uri and all(model.uri != uri for model in job.payload.sources):
                self.discarded.append(uri)

    def discard(self, uris: Iterable[str]) -> None:
        """Lets go of weights that no job was to score."""
        for uri in uris:
            self.discarded.append(uri)
            self.unscored.add(uri)

    def keep(self, uri: str) -> None:
        """Takes weights off the list that were made again, where a continued run had let go of them before.

        Only a fold of the log finds such: a shell that goes along has deleted the former ones by then.
        """
        if uri in self.unscored:  # a fold of a long log has a long list
            self.unscored.remove(uri)
            self.discarded = [one for one in self.discarded if one != uri]

    def needs(self, digest: str, uri: str) -> bool:
        """Tells whether a job is to score these weights, or to make them again at the same place."""
        wanted = [job.payload for job in self.waiting.values()]
        scored = any(isinstance(p, EvaluateJob) and (p.recipe_digest, p.artifact_uri) == (digest, uri) for p in wanted)
        return scored or any(isinstance(p, MergeJob) and p.recipe_digest == digest for p in wanted)

    def clear(self) -> None:
        """Waits for nothing any more."""
        before = len(self.discarded)
        for job in self.waiting.values():
            self.release(job)
        self.unscored.update(self.discarded[before:])
        self.waiting.clear()
