"""MergerService: parse, call, map."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import grpc

from evomerge.v1 import merger_pb2, merger_pb2_grpc, types_pb2
from evomerge_common.adapters import codec
from evomerge_common.domain.messages import (
    ADHOC,
    ArtifactExported,
    CandidateFailed,
    CandidateMerged,
    Event,
    ExportJob,
    Job,
    JobPayload,
    MergeJob,
    Model,
)
from evomerge_common.domain.recipe import Recipe
from evomerge_common.errors import NotFound
from evomerge_common.runtime.child import ChildProcess
from evomerge_common.runtime.ports_factory import Ports
from evomerge_merger import engine

"""Run id of jobs that no run asked for."""


class MergerServicer(merger_pb2_grpc.MergerServiceServicer):
    """Merges and exports outside a run, and what the engine knows."""

    def __init__(self, *, ports: Ports, child: ChildProcess) -> None:
        self._ports = ports
        self._child = child

    async def ValidateRecipe(
        self, request: merger_pb2.ValidateRecipeRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> merger_pb2.ValidateRecipeResponse:
        """Answers with the recipe in canonical form, its digest, models and notes."""
        text, digest, models, notes = await self._child.call(engine.validate, request.recipe)
        return merger_pb2.ValidateRecipeResponse(recipe_json=text, recipe_digest=digest, models=models, notes=notes)

    async def Merge(
        self, request: merger_pb2.MergeRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> merger_pb2.MergeStatus:
        """Queues a merge; answers with its job id."""
        recipe, sources = await self._resolve(request.recipe, request.sources)
        return await self._queue(
            recipe, "merge", MergeJob(recipe_json=recipe.to_json(), recipe_digest=recipe.digest, sources=sources)
        )

    async def Export(
        self, request: merger_pb2.ExportRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> merger_pb2.MergeStatus:
        """Queues an export; answers with its job id."""
        recipe, sources = await self._resolve(request.recipe, request.sources)
        job = ExportJob(
            recipe_json=recipe.to_json(),
            recipe_digest=recipe.digest,
            sources=sources,
            format=request.format or "hf",
            destination=request.destination or recipe.digest,
            gguf_type=request.gguf_type,
        )
        return await self._queue(recipe, "export", job)

    async def GetMerge(
        self, request: merger_pb2.GetMergeRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> merger_pb2.MergeStatus:
        """Answers how a merge went."""
        entry = await self._ports.kv.get("results", request.job_id)
        if entry is None:
            if not request.job_id.startswith(("merge-", "export-")):
                raise NotFound(f"there is no merge {request.job_id!r}; Merge and Export give ids")
            return merger_pb2.MergeStatus(job_id=request.job_id, state="queued")
        payload = codec.decode(Event, entry[0]).payload
        if isinstance(payload, CandidateFailed):
            return merger_pb2.MergeStatus(
                job_id=request.job_id,
                recipe_digest=payload.recipe_digest,
                state="failed",
                error=codec.to_proto(payload.error),
            )
        if not isinstance(payload, CandidateMerged | ArtifactExported):
            raise NotFound(f"{request.job_id!r} is no merge")
        return merger_pb2.MergeStatus(
            job_id=request.job_id, recipe_digest=payload.recipe_digest, state="done", uri=payload.uri
        )

    async def ListMethods(
        self, request: merger_pb2.ListMethodsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> merger_pb2.ListMethodsResponse:
        """Answers with every merge method and its parameters."""
        return merger_pb2.ListMethodsResponse(
            methods=[
                merger_pb2.Method(
                    name=name,
                    summary=summary,
                    parameters=[
                        merger_pb2.Parameter(name=p, type=kind, default=default, per_model=per_model)
                        for p, kind, default, per_model in parameters
                    ],
                )
                for name, summary, parameters in await self._child.call(engine.list_methods)
            ]
        )

    async def _resolve(self, text: str, sources: Iterable[types_pb2.Model]) -> tuple[Recipe, tuple[Model, ...]]:
        recipe_json, *_ = await self._child.call(engine.validate, text)
        models = tuple(codec.from_proto(one) for one in sources)
        return Recipe.from_json(recipe_json).with_digests({one.reference: one.digest for one in models}), models

    async def _queue(self, recipe: Recipe, kind: str, payload: JobPayload) -> merger_pb2.MergeStatus:
        key = hashlib.sha256(repr(payload).encode()).hexdigest()[:24]
        job = Job(job_id=f"{kind}-{key}-{ADHOC}", run_id=ADHOC, payload=payload)
        await self._ports.queue.publish(job)
        return merger_pb2.MergeStatus(job_id=job.job_id, recipe_digest=recipe.digest, state="queued")
