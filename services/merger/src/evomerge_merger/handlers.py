"""One MergeJob or ExportJob in, one artifact and its event out."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable
from typing import TypeVar

from cachetools import LRUCache

from evomerge_common.domain.messages import ArtifactExported, CandidateMerged, ExportJob, Job, MergeJob, Model
from evomerge_common.domain.spec import FORMATS
from evomerge_common.errors import InvalidInput, NotFound, UnsafeFile
from evomerge_common.ports import ModelStore
from evomerge_common.runtime.child import ChildProcess
from evomerge_common.runtime.ports_factory import Ports
from evomerge_common.runtime.sources import source_folders
from evomerge_common.runtime.spans import span
from evomerge_merger import engine

Result = TypeVar("Result")
THREADS = 2
REMEMBERED = 1000
"""Artifacts that the handler knows to be stored."""


class _Handler:
    def __init__(self, *, ports: Ports, child: ChildProcess) -> None:
        self._ports = ports
        self._child = child

    async def _store(self, name: str, work: Callable[..., Result], *arguments: object) -> tuple[str, Result]:
        """Runs `work(…, folder, …)` in the child and makes the folder the artifact `name`."""
        staged = await asyncio.to_thread(self._ports.artifacts.stage, name)
        try:
            result = await self._child.call(work, *(str(staged) if one is FOLDER else one for one in arguments))
            with span("commit"):
                return await asyncio.to_thread(self._ports.artifacts.commit, staged, name), result
        except BaseException:
            await asyncio.to_thread(shutil.rmtree, staged, True)
            raise


FOLDER = object()
"""Stands for the staged folder among the arguments of `_store`."""


class MergeHandler(_Handler):
    """A recipe's weights, in the scratch area of the artifact store; those that are still there are not made again."""

    def __init__(self, *, ports: Ports, child: ChildProcess) -> None:
        super().__init__(ports=ports, child=child)
        self._made: LRUCache[str, tuple[str, int]] = LRUCache(REMEMBERED)
        self._notes: LRUCache[str, set[str]] = LRUCache(REMEMBERED)

    def _still_there(self, digest: str) -> tuple[str, int] | None:
        found = self._made.get(digest)
        if found is not None:
            try:
                self._ports.artifacts.open(found[0])
            except NotFound:
                del self._made[digest]
                return None
        return found

    async def __call__(self, job: Job) -> CandidateMerged:
        payload = job.payload
        if not isinstance(payload, MergeJob):
            raise InvalidInput(f"the merge queue brought a {job.kind} job")
        began = time.monotonic()
        digest = payload.recipe_digest
        stored = await asyncio.to_thread(self._still_there, digest)
        notes: tuple[str, ...] = ()
        if stored is None:
            uri, (size, found) = await self._store(
                f"scratch/{digest}",
                engine.merge,
                payload.recipe_json,
                folders(payload.sources, self._ports.models),
                FOLDER,
                THREADS,
            )
            notes = self._new(job.run_id, found)
            self._made[digest] = stored = (uri, size)
        uri, size = stored
        return CandidateMerged(
            job_id=job.job_id,
            recipe_digest=digest,
            uri=uri,
            bytes=size,
            seconds=time.monotonic() - began,
            notes=notes,
        )

    def _new(self, run_id: str, notes: tuple[str, ...]) -> tuple[str, ...]:
        """Returns the notes that no candidate of this run has had: a thousand candidates have the same ones."""
        known = self._notes.setdefault(run_id, set())
        found = tuple(note for note in notes if note not in known)
        known.update(found)
        return found


class ExportHandler(_Handler):
    """A recipe as a finished model: Hugging Face folder with tokenizer, recipe and model card, or a GGUF file."""

    async def __call__(self, job: Job) -> ArtifactExported:
        payload = job.payload
        if not isinstance(payload, ExportJob):
            raise InvalidInput(f"the export queue brought a {job.kind} job")
        if payload.format not in FORMATS:
            raise InvalidInput(f"unknown export format {payload.format!r}; valid: {', '.join(FORMATS)}")
        if payload.gguf_type and payload.format != "gguf":
            raise InvalidInput(f"GGUF type {payload.gguf_type!r} belongs to format gguf, not to {payload.format}")
        if not payload.destination or "/" in payload.destination or payload.destination.startswith("."):
            raise UnsafeFile(f"export destination {payload.destination!r} must be one plain folder name")
        began = time.monotonic()
        work, wish = (
            (engine.export, payload.card) if payload.format == "hf" else (engine.export_gguf, payload.gguf_type)
        )
        uri, (size, notes) = await self._store(
            f"exports/{job.run_id}/{payload.destination}",
            work,
            payload.recipe_json,
            folders(payload.sources, self._ports.models),
            FOLDER,
            THREADS,
            wish,
        )
        return ArtifactExported(
            job_id=job.job_id,
            recipe_digest=payload.recipe_digest,
            format=payload.format,
            uri=uri,
            bytes=size,
            seconds=time.monotonic() - began,
            notes=notes,
        )


def folders(models: tuple[Model, ...], store: ModelStore) -> dict[str, str]:
    """Returns digest → folder of each source.

    Raises:
        NotFound: a source is not on this machine.
        UnservedScheme: a source's URI is of a scheme that no store serves.

    """
    found = source_folders(models, store)
    for model in models:
        if model.digest not in found:
            raise NotFound(f"{model.reference} is not at {model.uri}: the merger must see the downloader's model store")
    return {digest: str(folder) for digest, folder in found.items()}
