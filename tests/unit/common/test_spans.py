"""Spans: their ids, how the context travels, what a child process gives back, where they go."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from google.protobuf import json_format
from opentelemetry.proto.trace.v1 import trace_pb2
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from evomerge.v1 import selector_pb2, selector_pb2_grpc
from evomerge_common.domain.messages import Job, MergeJob, ModelReady
from evomerge_common.errors import DeadlineExceeded, InvalidInput, NotFound, RecipeError, WorkerCrashed
from evomerge_common.runtime import spans
from evomerge_common.runtime.child import ChildProcess
from evomerge_common.runtime.grpc_server import GrpcServer, client_channel
from evomerge_common.runtime.metrics import WorkerMetrics
from evomerge_common.runtime.ports_factory import memory_ports
from evomerge_common.runtime.settings import Settings
from evomerge_common.runtime.spans import Context, Span
from evomerge_common.runtime.tracing import start_tracing, wanted_protocol
from evomerge_common.runtime.worker import Worker
from helpers import child_functions
from helpers.collector import Collector
from helpers.support import assert_eventually, assert_eventually_sync
from helpers.traces import read_spans


@pytest.fixture
def recorded() -> Iterator[list[Span]]:
    found: list[Span] = []
    spans.record_to(found.append)
    yield found
    spans.record_to(None)


def root() -> Context:
    context = spans.of_candidate("run-1", "ab" * 32)
    assert context is not None
    return context


def test_whoever_knows_the_candidate_knows_its_trace(recorded: list[Span]) -> None:
    """Also in another process, with another hash seed."""
    code = (
        "from evomerge_common.runtime import spans; spans.record_to(print);"
        "of = spans.of_candidate; print(of('run-1', 'ab' * 32), of('run-1'), of('run-2', 'ab' * 32))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert said[0] == str(root())
    assert len({one.split("-")[1] for one in said}) == 3
    assert Context.parse(said[0]) == root()


@pytest.mark.parametrize(
    "text", ["", "00-" + "0" * 32 + "-" + "1" * 16 + "-01", "00-" + "A" * 32 + "-" + "1" * 16 + "-01", "01-x", "\n"]
)
def test_what_is_no_traceparent_begins_no_trace(recorded: list[Span], text: str) -> None:
    assert spans.received({spans.HEADER: text}) is None


def test_spans_nest_and_tell_errors(recorded: list[Span]) -> None:
    with contextlib.suppress(ValueError), spans.inside(root()), spans.span("outer", kind="consumer", items=2):
        with spans.span("inner"):
            pass
        raise ValueError("bad")
    inner, outer = recorded
    assert (inner.parent, outer.parent) == (outer.context, root())
    assert inner.context.trace_id == outer.context.trace_id == root().trace_id
    assert outer.start <= inner.start <= inner.end <= outer.end
    assert (inner.error, outer.error, outer.kind) == ("", "ValueError: bad", "consumer")
    assert outer.attributes == {"evomerge.items": 2, "process.pid": os.getpid()}


def test_off_it_records_nothing_and_costs_next_to_nothing() -> None:
    assert spans.of_candidate("run", "d") is None
    assert spans.headers() == {}
    begun = time.perf_counter()
    for _ in range(10_000):
        with spans.inside(spans.of_candidate("run", "d")), spans.span("work"):
            pass
    assert (time.perf_counter() - begun) / 10_000 < 100e-6, "seconds a candidate; microseconds in fact"
    loaded = "import sys, evomerge_common.runtime.service; sys.exit('opentelemetry' in sys.modules)"
    subprocess.run([sys.executable, "-c", loaded], check=True)


def test_what_the_sampler_leaves_out_is_recorded_nowhere() -> None:
    found: list[Span] = []
    spans.record_to(found.append, lambda trace_id: False)
    try:
        with spans.inside(root()), spans.span("work"):
            assert spans.headers()[spans.HEADER].endswith("-00"), "others are told"
            assert spans.exemplar() is None
    finally:
        spans.record_to(None)
    assert found == []


async def test_a_child_process_gives_its_spans_back(recorded: list[Span]) -> None:
    child = ChildProcess()
    try:
        with spans.inside(root()):
            pid = await child.call(child_functions.work_in_steps, False)
            with pytest.raises(RecipeError, match="bad step"):
                await child.call(child_functions.work_in_steps, True)
            with pytest.raises(DeadlineExceeded):
                await child.call(child_functions.sleep, 30.0, timeout=0.1)
            with pytest.raises(WorkerCrashed):
                await child.call(child_functions.die)
        assert isinstance(await child.call(child_functions.work_in_steps, False), int)  # of no trace
    finally:
        child.close()
    first, second, call, _, failed, failed_call, late, crashed = recorded
    assert [one.name for one in (first, second, call)] == ["first", "second", "child work_in_steps"]
    assert first.parent == second.parent == call.context
    assert first.attributes["process.pid"] == pid != os.getpid() == call.attributes["process.pid"]
    assert second.attributes["evomerge.items"] == 3
    assert failed.error == failed_call.error == "RecipeError: bad step"
    assert late.error.startswith("DeadlineExceeded")
    assert crashed.error.startswith("WorkerCrashed")


async def test_a_worker_goes_on_in_the_trace_of_the_job_and_its_metrics_point_there(
    recorded: list[Span], tmp_path: Path
) -> None:
    ports, registry = memory_ports(tmp_path), CollectorRegistry()

    async def handle(job: Job) -> ModelReady:
        assert spans.exemplar() is not None
        return ModelReady(job_id=job.job_id)

    worker = Worker(
        kind="merge",
        handler=handle,
        ports=ports,
        settings=Settings(),
        metrics=WorkerMetrics(registry),
    )
    with spans.inside(root()):
        await ports.queue.publish(Job(job_id="j", run_id="run-1", payload=MergeJob(recipe_digest="ab" * 32)))
    task = asyncio.create_task(worker.run(ports.stop))
    await assert_eventually(lambda: any(one.name == "merge" for one in recorded))
    ports.stop.set()
    await task
    by_name = {one.name: one for one in recorded}
    assert list(by_name) == ["queue merge", "look for a result", "handle", "publish", "merge"]
    work = by_name["merge"]
    assert (work.parent, by_name["queue merge"].parent) == (root(), root())
    assert by_name["handle"].parent == by_name["publish"].parent == work.context
    assert by_name["queue merge"].end <= work.start + 1_000_000
    words = {key: work.attributes[f"evomerge.{key}"] for key in ("run_id", "candidate", "job_id", "attempt")}
    assert words == {"run_id": "run-1", "candidate": "ab" * 6, "job_id": "j", "attempt": 1}
    read, write = cast("Any", text_string_to_metric_families), cast("Any", generate_latest)
    families = {one.name: one for one in read(write(registry).decode())}
    pointing = [one for one in families["evomerge_job_duration_seconds"].samples if one.exemplar]
    assert [one.exemplar.labels for one in pointing if one.exemplar] == [{"trace_id": f"{root().trace_id:032x}"}]


class Selector(selector_pb2_grpc.SelectorServiceServicer):
    async def GetRun(self, request: Any, context: Any) -> Any:  # noqa: N802
        if not request.run_id:
            raise NotFound("no run")
        return selector_pb2.Run(run_id=request.run_id, message=str(spans.here()))


async def test_a_call_carries_the_context_and_is_a_span(recorded: list[Span]) -> None:
    server = GrpcServer(Settings())
    port = await server.start()
    register = selector_pb2_grpc.add_SelectorServiceServicer_to_server
    await server.attach([("evomerge.v1.SelectorService", lambda one: register(Selector(), one))])
    try:
        async with client_channel(f"127.0.0.1:{port}") as channel:
            stub: Any = selector_pb2_grpc.SelectorServiceStub(channel)
            with spans.inside(root()):
                answer = await stub.GetRun(selector_pb2.GetRunRequest(run_id="r"))
            with pytest.raises(Exception, match="no run"):
                await stub.GetRun(selector_pb2.GetRunRequest())
    finally:
        await server.stop(0)
    inside, alone = recorded
    assert (inside.name, inside.kind, inside.parent) == ("evomerge.v1.SelectorService/GetRun", "server", root())
    assert answer.message == str(inside.context)
    assert (alone.parent, alone.error) == (None, "NotFound: no run")
    assert alone.context.trace_id != root().trace_id


def test_a_file_holds_otlp_that_the_protocol_itself_can_read(tmp_path: Path) -> None:
    file = tmp_path / "new" / "traces.jsonl"
    end = start_tracing("merger", Settings(trace_file=str(file)), {"OTEL_SERVICE_NAME": "mine"})
    try:
        with spans.inside(root()), spans.span("work", share=0.5, items=3, cached=True, name_of_it="a\n\"b'"):
            pass
        spans.emit("root", 1, 2, parent=None, context=root(), links=(Context(7, 8),), error="E: lost")
    finally:
        end()
    assert not spans.is_on()
    work, first = read_spans(file)
    assert (work.service, work.parent_id, first.parent_id) == ("mine", first.span_id, None)
    assert (first.links, first.error, first.start_ns, first.end_ns) == (("0" * 31 + "7",), "E: lost", 1, 2)
    assert file.stat().st_mode & 0o077 == 0
    for line in file.read_text().splitlines():
        data = json.loads(line)
        for one in data["resourceSpans"][0]["scopeSpans"][0]["spans"]:
            for owner in (one, *one.get("links", ())):  # protobuf's own JSON has bytes in base64, OTLP's in hexadecimal
                for key in {"traceId", "spanId", "parentSpanId"} & owner.keys():
                    owner[key] = base64.b64encode(bytes.fromhex(owner[key])).decode()
        json_format.ParseDict(data, trace_pb2.TracesData())


def test_a_file_that_cannot_be_written_is_said_and_a_full_disk_is_survived(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"EVOMERGE_TRACE_FILE=.*cannot be written"):
        start_tracing("merger", Settings(trace_file=str(tmp_path)), {})
    end = start_tracing("merger", Settings(trace_file="/dev/full"), {})
    try:
        with spans.inside(root()), spans.span("work"):
            pass
    finally:
        end()


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_collector_that_is_gone_holds_nobody_up(monkeypatch: pytest.MonkeyPatch, protocol: str) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    end = start_tracing("merger", Settings())
    begun = time.monotonic()
    with spans.inside(root()), spans.span("work"):
        pass
    end()
    assert time.monotonic() - begun < 4


def test_the_sampler_of_opentelemetry_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with Collector() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://{collector.address}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
        monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
        monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.25")
        end = start_tracing("merger", Settings())
        contexts = [one for i in range(400) if (one := spans.of_candidate("run", str(i))) is not None]
        chosen = {f"{one.trace_id:032x}" for one in contexts if one.sampled}
        for one in contexts:
            with spans.inside(one), spans.span("work"):
                pass
        end()
        assert_eventually_sync(lambda: {one.trace_id.hex() for one in collector.spans().values()} == chosen)
    assert 60 < len(chosen) < 140


def test_which_variables_switch_it_on() -> None:
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}
    assert wanted_protocol({}) is None
    assert wanted_protocol(endpoint) == "http/protobuf"
    assert wanted_protocol({"OTEL_TRACES_EXPORTER": "otlp"}) == "http/protobuf"
    assert wanted_protocol({**endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}) == "grpc"
    assert wanted_protocol({**endpoint, "OTEL_TRACES_EXPORTER": "none"}) is None
    assert wanted_protocol({**endpoint, "OTEL_SDK_DISABLED": "true"}) is None


def test_without_the_extra_a_service_says_what_to_install_and_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "evomerge_common.runtime.otlp", None)
    start_tracing("merger", Settings(), {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"})()
    assert "pip install 'evomerge-common[otlp]'" in "".join(capsys.readouterr())
