"""The evaluator's service on memory ports, with its real child process."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
import torch
from prometheus_client import CollectorRegistry

from evomerge.v1 import evaluator_pb2, evaluator_pb2_grpc
from evomerge_common.adapters.codec import to_proto
from evomerge_common.domain.kinds import KINDS
from evomerge_common.domain.messages import EvaluateJob, Job, Model, TaskItems
from evomerge_common.domain.recipe import Recipe
from evomerge_common.domain.reference import ModelReference
from evomerge_common.domain.suite import Suite
from evomerge_common.domain.task import credit_of
from evomerge_common.errors import (
    InvalidInput,
    ModelNotFound,
    NonFiniteScore,
    NotFound,
    Unavailable,
    UnservedScheme,
    WorkerCrashed,
)
from evomerge_common.runtime.child import ChildProcess
from evomerge_common.runtime.grpc_server import GrpcServer, client_channel, error_from_rpc
from evomerge_common.runtime.ports_factory import Ports, memory_ports, model_store
from evomerge_common.runtime.settings import Settings
from evomerge_common.runtime.sources import source_folders
from evomerge_evaluator.bootstrap import bootstrap
from evomerge_evaluator.fitness_cache import FitnessCache
from evomerge_evaluator.handlers import EvaluateHandler
from evomerge_evaluator.metrics import EvaluatorMetrics
from evomerge_scoring import child as scoring
from evomerge_scoring import score_folder
from evomerge_scoring.devices import SMALL_MODEL, choose_dtype
from helpers.support import assert_eventually
from helpers.tiny_models import make

SUITE = Suite.from_dict(
    {
        "holdout": 0.3, "batch_size": 4,
        "tasks": [
            {"name": "c", "kind": "multiple_choice", "weight": 2, "items": [
                {"prompt": f"{n} + 1 =", "choices": [f" {n + 1}", f" {n}"], "answer": n % 2} for n in range(12)]},
            {"name": "e", "kind": "exact_match", "items": [{"prompt": f"{n} =", "answer": "x"} for n in range(12)]},
            {"name": "p", "kind": "perplexity", "items": [{"text": f"text number {n}"} for n in range(12)]},
        ],
    }
)  # fmt: skip
DIGEST = "sha256:" + "a" * 64


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make(folder / "one")
    make(folder / "two", seed=1)
    make(folder / "nan", scale=float("nan"))
    return folder


@pytest.fixture(scope="module")
def child() -> Iterator[ChildProcess]:
    """One for all tests: it takes seconds to import torch."""
    process = ChildProcess(initializer=scoring.initialise, initargs=("cpu",))
    yield process
    process.close()


def a_job(ports: Ports, folder: Path, *, artifact: bool = False, **changes: Any) -> Job:
    model = Model(reference=str(folder), digest=DIGEST, uri=folder.as_uri())
    recipe = Recipe.of_source(ModelReference(str(folder), digest=DIGEST))
    payload = EvaluateJob(
        recipe_json=recipe.to_json(), recipe_digest=recipe.digest, sources=(model,), split="search", threads=1,
        artifact_uri=folder.as_uri() if artifact else "", suite_digest=SUITE.digest,
        suite_uri=ports.artifacts.put(f"suites/{SUITE.digest}.json", SUITE.to_json().encode()),
    )  # fmt: skip
    return Job(job_id="evaluate-1", run_id="r", payload=replace(payload, **changes))


async def test_a_job_is_scored_once_and_then_known(tmp_path: Path, models: Path, child: ChildProcess) -> None:
    ports, registry = memory_ports(tmp_path), CollectorRegistry()
    handler = EvaluateHandler(ports=ports, child=child, metrics=EvaluatorMetrics(registry))
    job = a_job(ports, models / "one")
    first = await handler(job)
    expected = score_folder(models / "one", SUITE, "search", threads=1)
    assert (first.scores, first.fitness) == (expected.scores, expected.fitness)
    assert first.device == "cpu float32 1 thread"
    assert first.job_id == "evaluate-1"
    assert not first.cached
    for task in SUITE.tasks:
        scored = registry.get_sample_value("evomerge_items_scored_total", {"task_kind": task.kind})
        assert scored == len(SUITE.items(task, "search"))

    pid = child.pid
    again = await EvaluateHandler(ports=ports, child=child)(replace(job, job_id="evaluate-2", run_id="other"))
    known = replace(first, job_id="evaluate-2", cached=True, computed=0, seconds=0.0)
    assert again == known, "32-bit item scores survive the wire unchanged"
    holdout = await handler(a_job(ports, models / "one", split="holdout"))
    assert not holdout.cached
    assert child.pid == pid


async def test_partial_credit_is_scored_where_the_job_asks_for_it(
    tmp_path: Path, models: Path, child: ChildProcess
) -> None:
    """Scores stay those of the metric; what is known of either is not computed again."""
    ports = memory_ports(tmp_path)
    handler = EvaluateHandler(ports=ports, child=child, metrics=EvaluatorMetrics(CollectorRegistry()))
    plain = await handler(a_job(ports, models / "one"))
    job = replace(a_job(ports, models / "one", graded=("e",)), job_id="evaluate-2")
    graded = await handler(job)
    bare = tuple(replace(one, credit=0.0) for one in graded.scores)
    assert (bare, graded.fitness) == (plain.scores, plain.fitness)
    asked = replace(SUITE, tasks=(credit_of(SUITE.tasks[1]),))
    (expected,) = score_folder(models / "one", asked, "search", threads=1).scores
    assert [one.credit for one in graded.scores] == [0.0, pytest.approx(expected.score), 0.0]
    assert 0 < expected.score < 1
    assert (graded.computed, graded.cached) == (0, False)
    assert (await handler(replace(job, job_id="evaluate-3"))).cached
    other = a_job(ports, models / "two", graded=("e",), recipe_digest="b" * 64, artifact=True)
    both = await handler(other)
    assert both.computed == sum(len(SUITE.items(task, "search")) for task in SUITE.tasks)
    places = (TaskItems(task="e", positions=(0, 2)), TaskItems(task="p", positions=(1,)))
    part = a_job(ports, models / "two", graded=("e",), recipe_digest="b" * 64, artifact=True, items=places)
    some = await handler(replace(part, job_id="evaluate-4"))
    each = score_folder(models / "two", asked, "search", threads=1).scores[0].item_scores
    assert some.scores[0].credit == pytest.approx((each[0] + each[2]) / 2)


async def test_a_recipe_without_weights_is_executed_in_memory(
    tmp_path: Path, models: Path, child: ChildProcess
) -> None:
    """Bit for bit the scores of the folder that the merger would write."""
    from evomerge_merging import execute, plan_merge

    ports = memory_ports(tmp_path)
    handler = EvaluateHandler(ports=ports, child=child, metrics=EvaluatorMetrics(CollectorRegistry()))
    digests = {name: f"sha256:{name * 20}" for name in ("one", "two")}
    references = [ModelReference(name, digest=digest) for name, digest in digests.items()]
    sources = tuple(Model(reference=n, digest=d, uri=(models / n).as_uri()) for n, d in digests.items())
    for weight in (0.25, 0.75):
        recipe = Recipe.of_models("linear", [(references[0], {"weight": weight}), (references[1], {"weight": 1.0})])
        job = a_job(
            ports, models / "one", sources=sources, recipe_json=recipe.to_json(), recipe_digest=recipe.digest,
            artifact_uri=(tmp_path / "artifacts" / "scratch" / recipe.digest).as_uri(),
        )  # fmt: skip
        result = await handler(job)
        with plan_merge(recipe, source_folders(sources, ports.models)) as plan:
            execute(plan, tmp_path / f"merged-{weight}")
        assert result.scores == score_folder(tmp_path / f"merged-{weight}", SUITE, "search", threads=1).scores


async def test_what_a_handler_refuses(tmp_path: Path, models: Path, child: ChildProcess) -> None:
    ports = memory_ports(tmp_path)
    handler = EvaluateHandler(ports=ports, child=child, metrics=EvaluatorMetrics(CollectorRegistry()))
    with pytest.raises(NonFiniteScore):
        await handler(a_job(ports, models / "nan"))
    with pytest.raises(Unavailable, match="neither the candidate's weights nor its source"):
        await handler(a_job(ports, models / "one", sources=()))
    with pytest.raises(UnservedScheme, match="s3://bucket/one"):
        await handler(a_job(ports, models / "one", artifact_uri="s3://bucket/one"))
    with pytest.raises(InvalidInput, match="has digest"):
        await handler(a_job(ports, models / "one", suite_digest="b" * 64))
    with pytest.raises(NotFound):
        await handler(a_job(ports, models / "one", suite_digest="c" * 64, suite_uri=(tmp_path / "no").as_uri()))
    assert (await handler(a_job(ports, models / "two"))).fitness > 0, "the child is still well"


async def test_a_crash_of_the_child_is_typed_and_the_next_call_works(
    tmp_path: Path, models: Path, child: ChildProcess
) -> None:
    ports = memory_ports(tmp_path)
    handler = EvaluateHandler(ports=ports, child=child, metrics=EvaluatorMetrics(CollectorRegistry()))
    pid = await child.call(os.getpid)
    os.kill(pid, signal.SIGSTOP)  # so that it is surely killed with the job in hand
    sent, pipe = threading.Event(), child._pipe
    assert pipe is not None

    def send(call: Any) -> None:
        pipe.send(call)
        sent.set()

    watched: Any = SimpleNamespace(send=send, recv=pipe.recv)
    child._pipe = watched
    work = asyncio.create_task(handler(a_job(ports, models / "one")))
    assert await asyncio.to_thread(sent.wait, 30)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(WorkerCrashed, match="SIGKILL"):
        await work
    result = await handler(a_job(ports, models / "one"))
    assert result.scores == score_folder(models / "one", SUITE, "search", threads=1).scores


async def test_the_service_end_to_end(tmp_path: Path, models: Path) -> None:
    ports = memory_ports(tmp_path)
    settings = Settings(model_store=tmp_path / "store", device="cpu")
    ports.models = model_store(settings)
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / ("a" * 64)).symlink_to(models / "one")
    service = await bootstrap(settings, ports)
    server = GrpcServer(settings)
    port = await server.start()
    await server.attach(service.servicers)
    stop = asyncio.Event()
    tasks = [asyncio.create_task(worker.run(stop)) for worker in service.workers]
    async with client_channel(f"127.0.0.1:{port}", settings) as channel:
        stub = evaluator_pb2_grpc.EvaluatorServiceStub(channel)
        try:
            await _calls(stub, models)
        finally:
            stop.set()
            await asyncio.gather(*tasks)
            await server.stop(0)
            for close in service.closers:
                await close()


async def _calls(stub: Any, models: Path) -> None:
    model = to_proto(Model(reference=str(models / "one"), digest=DIGEST))
    request = evaluator_pb2.EvaluateRequest(model=model, suite_json=SUITE.to_json(), split="holdout")
    queued = await stub.Evaluate(request)
    assert (queued.state, queued.job_id[:9]) in {("queued", "evaluate-"), ("done", "evaluate-")}
    done = await _done(stub, queued.job_id)
    expected = score_folder(models / "one", SUITE, "holdout", threads=1)
    assert done.state == "done"
    assert done.result.fitness == expected.fitness
    assert [tuple(s.item_scores) for s in done.result.scores] == [s.item_scores for s in expected.scores]
    assert (await stub.Evaluate(request)).state == "done", "asked again: the same job"

    broken = to_proto(Model(digest="sha256:" + "d" * 64, uri=(models / "nan").as_uri()))
    queued = await stub.Evaluate(evaluator_pb2.EvaluateRequest(model=broken, suite_json=SUITE.to_json()))
    failed = await _done(stub, queued.job_id)
    assert (failed.state, failed.error.type) == ("failed", "NonFiniteScore")

    kinds = [kind.name for kind in (await stub.ListTasks(evaluator_pb2.ListTasksRequest())).kinds]
    assert kinds == list(KINDS)
    (cpu,) = (await stub.GetDevices(evaluator_pb2.GetDevicesRequest())).devices
    auto = choose_dtype(torch.device("cpu"), parameters=SMALL_MODEL)
    assert (cpu.kind, f"torch.{cpu.dtype}") == ("cpu", str(auto))
    assert 0 < cpu.memory_used_bytes < cpu.memory_bytes

    said = await stub.Generate(evaluator_pb2.GenerateRequest(model=model, prompt="1 + 1 =", max_new_tokens=5))
    assert 0 < said.tokens <= 5
    assert said.text
    for call, bad, error, text in (
        (stub.Generate, evaluator_pb2.GenerateRequest(model=model, max_new_tokens=10**6), InvalidInput, "1 to 2048"),
        (stub.Generate, evaluator_pb2.GenerateRequest(prompt="a"), InvalidInput, "model is empty"),
        (stub.Generate, evaluator_pb2.GenerateRequest(model={"digest": "sha256:../x"}), InvalidInput, "no digest"),
        (stub.Generate, evaluator_pb2.GenerateRequest(model={"reference": "/no/such"}), ModelNotFound, "not on this"),
        (stub.GetEvaluation, evaluator_pb2.GetEvaluationRequest(job_id="x"), NotFound, "no evaluation"),
        (stub.Evaluate, evaluator_pb2.EvaluateRequest(model=model, suite_json="{"), InvalidInput, "not a suite"),
        (stub.Evaluate, evaluator_pb2.EvaluateRequest(model=model, split="half"), InvalidInput, "unknown split"),
        (stub.Evaluate, evaluator_pb2.EvaluateRequest(), InvalidInput, "digest is empty"),
    ):
        await _refused(call, bad, error, text)


async def _refused(call: Callable[[Any], Awaitable[Any]], request: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        await call(request)
    with pytest.raises(error, match=text):
        raise error_from_rpc(caught.value)


async def _done(stub: Any, job_id: str) -> Any:
    async def found() -> Any:
        return await stub.GetEvaluation(evaluator_pb2.GetEvaluationRequest(job_id=job_id))

    async def ended() -> bool:
        return bool((await found()).state != "queued")

    await assert_eventually(ended, 60)
    return await found()


def test_the_service_process_never_imports_torch() -> None:
    code = (
        "import sys, evomerge_evaluator.bootstrap, evomerge_evaluator.__main__\n"
        "bad = [m for m in ('torch', 'transformers', 'numpy', 'safetensors', 'evomerge_merging') if m in sys.modules]\n"
        "assert not bad, bad\n"
        "print(int(open('/proc/self/statm').read().split()[1]) * 4096 // 2**20)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert int(done.stdout) <= 120


async def test_rungs_are_scored_alone_and_the_rest_is_remembered(
    tmp_path: Path, models: Path, child: ChildProcess
) -> None:
    """Two rungs and the whole split score every item once; another stack of the same home scores none."""
    home, registry = tmp_path / "home", CollectorRegistry()
    ports = memory_ports(tmp_path)
    metrics = EvaluatorMetrics(registry)
    handler = EvaluateHandler(ports=ports, child=child, metrics=metrics, cache=FitnessCache(ports.kv, home))
    sizes = {task.name: len(SUITE.items(task, "search")) for task in SUITE.tasks}
    rungs = [
        tuple(TaskItems(task=name, positions=tuple(range(size))[part::2]) for name, size in sizes.items())
        for part in (0, 1)
    ]
    found = []
    for number, items in enumerate(rungs):
        job = replace(a_job(ports, models / "one", items=items, rung=number), job_id=f"rung-{number}")
        await handler.prepare(job)
        result = await handler.finish(job, await handler.work(job))
        assert (result.partial, result.rung, result.cached) == (True, number, False)
        assert [(one.task, one.positions) for one in result.scores] == [(one.task, one.positions) for one in items]
        assert result.computed == sum(len(one.positions) for one in items)
        found.append(result)
    expected = score_folder(models / "one", SUITE, "search", threads=1)
    for one, (first, second) in zip(expected.scores, zip(*(r.scores for r in found), strict=True), strict=True):
        both = {**dict(zip(first.positions, first.item_scores, strict=True)),
                **dict(zip(second.positions, second.item_scores, strict=True))}  # fmt: skip
        assert [both[i] for i in range(len(both))] == pytest.approx(one.item_scores, abs=1e-6)
    whole = await handler(a_job(ports, models / "one"))
    assert (whole.cached, whole.computed, whole.seconds, whole.partial) == (True, 0, 0.0, False)
    assert whole.fitness == pytest.approx(expected.fitness, abs=1e-6)
    metric = [one.metric_value for one in expected.scores]
    assert [one.metric_value for one in whole.scores] == pytest.approx(metric, abs=1e-5)

    other = memory_ports(tmp_path / "other")
    again = EvaluateHandler(ports=other, child=child, metrics=metrics, cache=FitnessCache(other.kv, home))
    assert await again(a_job(other, models / "one")) == whole
    scored = [registry.get_sample_value("evomerge_items_scored_total", {"task_kind": t.kind}) for t in SUITE.tasks]
    assert scored == list(sizes.values())
    with pytest.raises(InvalidInput, match="no more"):
        await handler(a_job(ports, models / "one", items=(TaskItems(task="c", positions=(99,)),)))
    with pytest.raises(InvalidInput, match="no task 'z'"):
        await handler(a_job(ports, models / "one", items=(TaskItems(task="z", positions=(0,)),)))


async def test_a_job_is_scored_in_its_dtype_and_known_in_no_other(
    tmp_path: Path, models: Path, child: ChildProcess
) -> None:
    ports = memory_ports(tmp_path)
    handler = EvaluateHandler(ports=ports, child=child, metrics=EvaluatorMetrics(CollectorRegistry()))
    auto = await handler(a_job(ports, models / "one"))
    assert (auto.dtype, auto.device, auto.cached) == ("float32", "cpu float32 1 thread", False)
    asked = a_job(ports, models / "one", dtype="bfloat16")
    await handler.prepare(asked)
    other = await handler.finish(asked, await handler.work(asked))
    assert (other.dtype, other.device, other.cached) == ("bfloat16", "cpu bfloat16 1 thread", False)
    assert other.scores != auto.scores
    for known, dtype in ((auto, "float32"), (other, "bfloat16")):
        again = await handler(a_job(ports, models / "one", dtype=dtype))
        assert again == replace(known, cached=True, computed=0, seconds=0.0)


async def test_weights_out_of_reach_are_made_while_another_candidate_is_scored(
    tmp_path: Path, models: Path, child: ChildProcess
) -> None:
    ports, executor = memory_ports(tmp_path), ChildProcess()
    handler = EvaluateHandler(
        ports=ports, child=child, metrics=EvaluatorMetrics(CollectorRegistry()), executor=executor
    )
    digests = {name: f"sha256:{name * 20}" for name in ("one", "two")}
    references = [ModelReference(name, digest=digest) for name, digest in digests.items()]
    sources = tuple(Model(reference=n, digest=d, uri=(models / n).as_uri()) for n, d in digests.items())
    recipe = Recipe.of_models("linear", [(references[0], {"weight": 0.5}), (references[1], {"weight": 1.0})])
    gone = (tmp_path / "artifacts" / "scratch" / recipe.digest).as_uri()
    job = a_job(
        ports, models / "one", sources=sources, recipe_json=recipe.to_json(), recipe_digest=recipe.digest,
        artifact_uri=gone,
    )  # fmt: skip
    await handler.prepare(job)
    prepared = await handler.work(job)
    executor.close()
    handler.close()
    plain = EvaluateHandler(ports=ports, child=child, metrics=EvaluatorMetrics(CollectorRegistry()))
    assert (await plain.work(job)).scores == prepared.scores, "bit for bit what is made in memory when it is due"
