"""EvaluatorService: parse, call, map. The runtime's interceptor maps errors to status codes."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc

from evomerge.v1 import evaluator_pb2, evaluator_pb2_grpc
from evomerge_common.adapters import codec
from evomerge_common.domain.kinds import KINDS, installed_names
from evomerge_common.domain.messages import ADHOC, CandidateFailed, EvaluateJob, Event, Job, Model
from evomerge_common.domain.recipe import Recipe
from evomerge_common.domain.suite import SPLITS, Suite
from evomerge_common.errors import InvalidInput, ModelNotFound, NotFound, SuiteError, did_you_mean
from evomerge_common.runtime.child import ChildProcess
from evomerge_common.runtime.documents import read_text
from evomerge_common.runtime.ports_factory import Ports
from evomerge_common.runtime.settings import Settings
from evomerge_evaluator.gpu import GpuMonitor
from evomerge_models.reference import resolve_reference
from evomerge_scoring import child as scoring

MAX_NEW_TOKENS = 2048
MAX_PROMPT_CHARS = 1_000_000
GENERATE_SECONDS = 120.0

_CUDA = "cuda"


class EvaluatorServicer(evaluator_pb2_grpc.EvaluatorServiceServicer):
    """See proto/evomerge/v1/evaluator.proto."""

    def __init__(
        self, *, ports: Ports, child: ChildProcess, settings: Settings, monitor: GpuMonitor | None = None
    ) -> None:
        self._ports = ports
        self._child = child
        self._settings = settings
        self._monitor = monitor

    async def Evaluate(
        self, request: evaluator_pb2.EvaluateRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> evaluator_pb2.Evaluation:
        """Queues it; the same model, suite and split asked for again is the same job."""
        model: Model = codec.from_proto(request.model)
        if not model.digest:
            raise InvalidInput("model.digest is empty; DownloaderService.Download (or GetModel) tells it")
        split = request.split or "search"
        if split not in SPLITS:
            raise InvalidInput(f"unknown split {split!r}; {did_you_mean(split, SPLITS)}")
        suite = await asyncio.to_thread(_read_suite, request.suite_json)
        uri = self._uri(model)
        await asyncio.to_thread(self._ports.models.open, uri)  # refused here rather than in the job
        recipe = Recipe.of_source(replace(resolve_reference(model.reference or model.digest), digest=model.digest))
        job_id = f"evaluate-{recipe.digest[:32]}-{suite.digest[:16]}-{split}-{ADHOC}"
        suite_uri = await asyncio.to_thread(
            self._ports.artifacts.put, f"suites/{suite.digest}.json", suite.to_json().encode()
        )
        payload = EvaluateJob(
            recipe_json=recipe.to_json(),
            recipe_digest=recipe.digest,
            sources=(replace(model, uri=uri),),
            suite_uri=suite_uri,
            suite_digest=suite.digest,
            split=split,
            threads=scoring.DEFAULT_THREADS,
        )
        if await self._ports.kv.get("results", job_id) is None:
            await self._ports.kv.create("results", _queued(job_id), b"queued")
            await self._ports.queue.publish(Job(job_id=job_id, run_id=ADHOC, payload=payload))
        return await self._evaluation(job_id)

    async def GetEvaluation(
        self, request: evaluator_pb2.GetEvaluationRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> evaluator_pb2.Evaluation:
        """Answers how a job went, of any run."""
        return await self._evaluation(request.job_id)

    async def _evaluation(self, job_id: str) -> evaluator_pb2.Evaluation:
        if not job_id:
            raise InvalidInput("job_id is empty; Evaluate tells it")
        stored = await self._ports.kv.get("results", job_id)
        if stored is None:
            if await self._ports.kv.get("results", _queued(job_id)) is None:
                raise NotFound(f"no evaluation {job_id!r}")
            return evaluator_pb2.Evaluation(job_id=job_id, state="queued")
        payload = codec.decode(Event, stored[0]).payload
        if isinstance(payload, CandidateFailed):
            return evaluator_pb2.Evaluation(job_id=job_id, state="failed", error=codec.to_proto(payload.error))
        message = codec.to_proto(payload)
        if message.DESCRIPTOR.name != "CandidateEvaluated":
            raise NotFound(f"job {job_id!r} is no evaluation")
        return evaluator_pb2.Evaluation(job_id=job_id, state="done", result=message)

    async def ListTasks(
        self, request: evaluator_pb2.ListTasksRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> evaluator_pb2.ListTasksResponse:
        """Lists the kinds of task that a suite may hold; a user's own, installed here, are named plugin:NAME."""
        kinds = [evaluator_pb2.TaskKind(name=name, summary=kind.summary) for name, kind in KINDS.items()]
        for name in installed_names():
            kinds.append(evaluator_pb2.TaskKind(name=f"plugin:{name}", summary="a task of your own"))
        return evaluator_pb2.ListTasksResponse(kinds=kinds)

    async def GetDevices(
        self, request: evaluator_pb2.GetDevicesRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> evaluator_pb2.GetDevicesResponse:
        """Answers what could score here. Waits for the scoring process, which answers between two candidates."""
        found = [
            _device(info.name, info.kind, info.dtype, info.memory_bytes, info.memory_used_bytes)
            for info in await self._child.call(scoring.devices)
        ]
        if self._monitor is not None:
            samples = await asyncio.to_thread(self._monitor.sample)
            for device, sample in zip((one for one in found if one.kind == _CUDA), samples, strict=False):
                device.utilization_ratio = sample.utilization_ratio
                device.power_watts = sample.power_watts
                device.temperature_celsius = sample.temperature_celsius
        return evaluator_pb2.GetDevicesResponse(devices=found)

    async def Generate(
        self, request: evaluator_pb2.GenerateRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> evaluator_pb2.GenerateResponse:
        """Continues a prompt greedily, within the caller's deadline (at most two minutes)."""
        count = request.max_new_tokens or 128
        if not 0 < count <= MAX_NEW_TOKENS:
            raise InvalidInput(f"max_new_tokens must be 1 to {MAX_NEW_TOKENS}, not {count}")
        if len(request.prompt) > MAX_PROMPT_CHARS:
            raise InvalidInput(f"the prompt has {len(request.prompt)} characters; at most {MAX_PROMPT_CHARS}")
        left = context.time_remaining()
        seconds = GENERATE_SECONDS if left is None else min(left, GENERATE_SECONDS)
        folder = await asyncio.to_thread(self._ports.models.open, self._uri(codec.from_proto(request.model)))
        asked = (folder, request.prompt, count, scoring.DEFAULT_THREADS, request.chat)
        result = await self._child.call(scoring.generate, *asked, timeout=max(seconds, 0.001))
        return evaluator_pb2.GenerateResponse(text=result.text, tokens=result.tokens, seconds=result.seconds)

    def _uri(self, model: Model) -> str:
        """By which the model store opens a model that is named by its URI, its digest, or a folder.

        Raises:
            InvalidInput: it is named by none of them.
            ModelNotFound: a base with an adapter, which only the downloader puts together.

        """
        if model.uri:
            return model.uri
        if model.digest:
            return self._ports.models.uri(model.digest)
        if model.reference:
            named = resolve_reference(model.reference)
            if named.adapter:
                raise ModelNotFound(f"{named} is a base with an adapter: download it first")
            return Path(named.name).expanduser().absolute().as_uri()
        raise InvalidInput("model is empty; give its uri, its digest, or a folder as its reference")


def _read_suite(text: str) -> Suite:
    """YAML or JSON into a suite whose tasks carry their items."""
    try:
        document = read_text(text, "suite", error=SuiteError)
    except SuiteError as error:
        raise SuiteError(f"not a suite: {error.problem}", error.path, file=error.file, line=error.line) from error
    try:
        return Suite.from_dict(document.data)
    except SuiteError as error:
        raise document.located(error) from error


def _device(name: str, kind: str, dtype: str, memory: int, used: int) -> evaluator_pb2.Device:
    """A device's message without what only NVML knows."""
    return evaluator_pb2.Device(name=name, kind=kind, dtype=dtype, memory_bytes=memory, memory_used_bytes=used)


def _queued(job_id: str) -> str:
    """Key that tells a queued job from one that nobody asked for."""
    return f"queued.{job_id}"
