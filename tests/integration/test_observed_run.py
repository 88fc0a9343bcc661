"""One small run by the real command, and what an operator finds of one candidate: its lines in the logs, its trace."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from evomerge_common.runtime import spans
from helpers.collector import Collector
from helpers.tiny_family import write_family
from helpers.traces import ReadSpan, covered, read_spans

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@dataclass(frozen=True)
class Observed:
    """A run that is done.

    Attributes:
        events: its log, a dictionary an event.
        lines: all lines of all services' logs, the service before each.
        spans: those in the trace file.

    """

    out: Path
    events: list[dict[str, Any]]
    lines: list[str]
    spans: list[ReadSpan]

    def all(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["type"] == kind]

    def grep(self, *words: str) -> list[str]:
        return [line for line in self.lines if all(word in line for word in words)]


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Observed:
    spec = write_family(tmp_path_factory.mktemp("family"))
    search = {"evaluations": 7, "population": 3}
    spec.write_text(yaml.safe_dump({**yaml.safe_load(spec.read_text()), "search": search}))
    out, traces = spec.parent / "out", spec.parent / "traces.jsonl"
    environ = {
        **os.environ,
        "EVOMERGE_MODEL_STORE": str(spec.parent / "store"),
        "EVOMERGE_STATE_DIR": str(spec.parent / "state"),
        "EVOMERGE_SCORE_CACHE": "off",
        "EVOMERGE_TRACE_FILE": str(traces),
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{collector.address}",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
    }
    command = [sys.executable, "-m", "evomerge_cli", "run", str(spec), "--out", str(out)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr
    return Observed(
        out,
        [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()],
        [f"{file.name}: {line}" for file in sorted((out / ".evomerge/logs").glob("*.log*"))
         for line in file.read_text().splitlines()],
        read_spans(traces),
    )  # fmt: skip


def test_grep_of_a_digest_finds_a_candidates_life_in_the_logs(observed: Observed) -> None:
    merged = [one["recipe_digest"] for one in observed.all("CandidateMerged")]
    assert merged
    for digest in merged:
        short = digest[:12]
        (proposed,) = observed.grep("selector.log", short, "decided", "CandidateProposed", "candidate")
        assert observed.grep("merger.log", short, "job done", "job_id", "run_id", "attempt")
        assert observed.grep("selector.log", short, "result taken in", "CandidateMerged")
        assert observed.grep("evaluator.log", short, "job done", "evaluate-search")
        assert observed.grep("selector.log", short, "result taken in", "CandidateEvaluated", "fitness")
        # The models that it stands on, and where each came from: their digests are in the downloader's lines.
        for model in observed.all("ModelReady"):
            said = f"{model['model']['reference']}@{model['model']['digest'].removeprefix('sha256:')[:12]}"
            assert said in proposed
            assert observed.grep("downloader.log", "model ready", said, "job_id")
    champion = observed.all("RunFinished")[0]["champion_digest"]
    assert observed.grep("selector.log", champion[:12], "decided", "ChampionChanged")
    assert observed.grep("merger.log", champion[:12], "job done", "export")


def candidate_trace(observed: Observed, digest: str) -> tuple[ReadSpan, list[ReadSpan]]:
    """The trace of a candidate as its id, which follows from run and digest, finds it: the span around all, and all."""
    run_id = observed.events[0]["run_id"]
    spans.record_to(lambda _: None)
    try:
        context = spans.of_candidate(run_id, digest)
    finally:
        spans.record_to(None)
    assert context is not None
    found = [one for one in observed.spans if one.trace_id == f"{context.trace_id:032x}"]
    (root,) = [one for one in found if one.span_id == f"{context.span_id:016x}"]
    return root, found


def test_one_trace_of_a_candidate_from_start_to_score_adds_up_to_its_wall_time(observed: Observed) -> None:
    """Measured by the log: from the call that started the run to the event that brought the candidate's score."""
    started = observed.all("RunStarted")[0]["began"]
    early = [one["recipe_digest"] for one in observed.all("CandidateProposed") if one["operator"] != "source"]
    scored = {
        one["recipe_digest"]: one["time"] for one in observed.all("CandidateEvaluated") if one["split"] == "search"
    }
    digest = next(one for one in early if one in scored)
    root, found = candidate_trace(observed, digest)
    parts = [one.within(root) for one in found if one.parent_id == root.span_id and one.start < root.end]
    parts.sort(key=lambda one: one.start)
    wall = scored[digest] - started
    for one in parts:
        print(f"{one.start - root.start:8.3f} {one.seconds:8.3f} {one.name} ({one.service})")
    print(f"wall by the log {wall:.3f}, sum of spans {sum(o.seconds for o in parts):.3f}, root {root.seconds:.3f}")
    names = [one.name for one in parts]
    assert names[:4] == ["StartRun", "prepare the run", "wait for results", "propose"]
    assert [one for one in names if one in {"queue merge", "merge", "queue evaluate", "evaluate"}] == [
        "queue merge", "merge", "queue evaluate", "evaluate"]  # fmt: skip
    assert names[-1] == "decide"
    assert {one.service for one in found} == {"evomerge-selector", "evomerge-merger", "evomerge-evaluator"}
    assert len({one.pid for one in found}) >= 5, "the processes that merge and score are others than the services"
    assert sum(one.seconds for one in parts) == pytest.approx(wall, rel=0.05)
    assert covered(parts, root) > 0.95 * root.seconds


def test_the_work_on_a_candidate_is_told_down_to_each_task(observed: Observed) -> None:
    for event in observed.all("CandidateMerged"):
        _, found = candidate_trace(observed, event["recipe_digest"])
        ids = {one.span_id: one for one in found}
        assert all(one.parent_id is None or one.parent_id in ids for one in found), "no span is without its parent"
        paths = {"/".join(one.path(ids)[1:]) for one in found}
        assert {"merge/handle/child merge/plan", "merge/handle/child merge/execute", "merge/handle/commit",
                "merge/publish", "evaluate/handle/child score/load"} <= paths  # fmt: skip
        assert {one for one in paths if one.startswith("evaluate/handle/child score/task ")} == {
            "evaluate/handle/child score/task choice", "evaluate/handle/child score/task text"}  # fmt: skip
        jobs = {one.attributes["evomerge.job_id"]: one for one in found if one.name == "evaluate"}
        (work,) = [one for job_id, one in jobs.items() if job_id.startswith("evaluate-search")]
        parts = [one for one in found if one.parent_id == work.span_id]
        assert work.seconds - covered(parts, work) < 0.05 * work.seconds + 0.05


def test_downloads_and_the_call_are_in_the_runs_own_trace(observed: Observed) -> None:
    root, found = candidate_trace(observed, "")
    assert root.name == f"run {observed.events[0]['run_id']}"
    assert sum(one.name == "download" for one in found) == len(observed.all("ModelReady"))
    (call,) = [one for one in observed.spans if one.name == "evomerge.v1.SelectorService/StartRun"]
    assert call.trace_id in root.links


def test_a_collector_gets_the_same_spans_by_otlp(observed: Observed, collector: Collector) -> None:
    sent = {one.span_id: one for one in observed.spans}
    arrived = collector.spans()
    assert set(arrived) == set(sent)
    for span_id, one in arrived.items():
        same = sent[span_id]
        assert (one.name, one.trace_id.hex(), one.start_time_unix_nano, one.end_time_unix_nano) == (
            same.name, same.trace_id, same.start_ns, same.end_ns)  # fmt: skip
        assert one.parent_span_id.hex() == (same.parent_id or "")
    assert {"evomerge-selector", "evomerge-merger", "evomerge-evaluator", "evomerge-downloader"} <= collector.services()
