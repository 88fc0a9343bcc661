"""The selector under load: a real process and a real broker, workers that answer at once.

Prints the throughput of a whole run, the selector's memory, the time that a decision takes (99 of 100) and how long a
fold of a log takes, with and without a snapshot.

    evomerge bench selector --candidates 10000 --out bench-selector
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import psutil

from evomerge.v1 import selector_pb2, selector_pb2_grpc
from evomerge_cli.stack.broker import Broker
from evomerge_common.domain.messages import (
    JOB_KINDS,
    TERMINAL,
    ArtifactExported,
    CandidateEvaluated,
    CandidateMerged,
    CandidateProposed,
    DownloadJob,
    EvaluateJob,
    Event,
    ExportJob,
    Job,
    MergeJob,
    Model,
    ModelReady,
    Result,
    TaskScore,
)
from evomerge_common.errors import Unavailable
from evomerge_common.ports import Recorded
from evomerge_common.runtime.grpc_server import client_channel
from evomerge_common.runtime.ports_factory import Ports, connect_ports
from evomerge_common.runtime.settings import Settings
from evomerge_selector.domain import snapshot
from evomerge_selector.domain.tournament import EvolutionaryTournament

SUITE = {
    "tasks": [{"name": "a", "kind": "exact_match", "items": [{"prompt": str(i), "answer": "1"} for i in range(40)]}]
}


def answer(job: Job) -> Result:
    """What a worker would say, at once; fitness is smooth in the weights."""
    payload = job.payload
    if isinstance(payload, DownloadJob):
        model = Model(reference=payload.reference, digest=f"sha256:{payload.reference}", uri="file:///none",
                      architecture="llama", num_layers=8)  # fmt: skip
        return ModelReady(job_id=job.job_id, model=model)
    if isinstance(payload, MergeJob):
        return CandidateMerged(job_id=job.job_id, recipe_digest=payload.recipe_digest)
    if isinstance(payload, ExportJob):
        return ArtifactExported(job_id=job.job_id, recipe_digest=payload.recipe_digest)
    assert isinstance(payload, EvaluateJob)
    error, count = 0.0, 1
    for part in json.loads(payload.recipe_json)["slices"]:
        for goal, one in zip((0.7, 0.4, 0.5), part["inputs"], strict=False):
            weight = one.get("parameters", {}).get("weight", 0.0)
            value = weight[-1]["value"] if isinstance(weight, list) else weight
            error, count = error + (value - goal) ** 2, count + 1
    fitness = 1.0 / (1.0 + error / count)
    return CandidateEvaluated(job_id=job.job_id, recipe_digest=payload.recipe_digest, split=payload.split,
                              fitness=fitness, scores=(TaskScore(task="a", score=fitness),))  # fmt: skip


@contextlib.asynccontextmanager
async def workers(ports: Ports) -> AsyncIterator[None]:
    """Two of each kind."""

    over = asyncio.Event()

    async def work(kind: str) -> None:
        # Python 3.11's wait_for may swallow a cancellation that meets its answer, so the loop has an end of its own.
        while not over.is_set():
            try:
                delivery = await ports.queue.fetch(kind, 5.0)
                if delivery:
                    event = Event(run_id=delivery.job.run_id, payload=answer(delivery.job), time=time.time())
                    await ports.log.append_result(event, message_id=delivery.job.job_id)
                    await delivery.ack()
            except Unavailable:
                await asyncio.sleep(0.1)

    tasks = [asyncio.create_task(work(kind)) for kind in JOB_KINDS.values() for _ in range(2)]
    try:
        yield
    finally:
        over.set()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextlib.contextmanager
def selector_process(settings: Settings, folder: Path) -> Any:
    """A real selector; yields (process, its gRPC address)."""
    folder.mkdir(parents=True, exist_ok=True)
    port_file = folder / "selector.port"
    clean = {k: v for k, v in os.environ.items() if not k.startswith("EVOMERGE_")}
    env = {
        **clean,
        **settings.to_env(),
        "EVOMERGE_STATE_DIR": str(folder),
        "EVOMERGE_GRPC_ADDRESS": "127.0.0.1:0",
        "EVOMERGE_METRICS_ADDRESS": f"127.0.0.1:{_free_port()}",
    }
    with (folder / "selector.log").open("ab") as log:
        process = subprocess.Popen([sys.executable, "-m", "evomerge_selector"], env=env, stdout=log, stderr=log)
    try:
        end = time.monotonic() + 30
        while not (port_file.exists() and port_file.read_text().endswith("\n")):
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"no selector: {(folder / 'selector.log').read_text()[-2000:]}")
            time.sleep(0.05)
        yield process, f"127.0.0.1:{int(port_file.read_text())}"
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


async def start_run(address: str, settings: Settings, spec: dict[str, Any], request_id: str) -> str:
    """Starts a run through the API."""
    async with client_channel(address, settings) as channel:
        stub = selector_pb2_grpc.SelectorServiceStub(channel)
        request = selector_pb2.StartRunRequest(request_id=request_id, spec=json.dumps(spec))
        while True:  # it answers Unavailable until it has found the broker
            try:
                run: selector_pb2.Run = await stub.StartRun(request, timeout=60, wait_for_ready=True)
                return str(run.run_id)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                await asyncio.sleep(0.1)


def spec_of(candidates: int, seed: int = 1) -> dict[str, Any]:
    """A run of three models that nobody loads."""
    return {"models": ["org/a", "org/b", "org/c"], "base": "org/base", "suite": SUITE, "seed": seed,
            "search": {"evaluations": candidates, "in_flight": 8}}  # fmt: skip


async def load(candidates: int, folder: Path, broker: Broker) -> tuple[list[Recorded], dict[str, float]]:
    """One run to its end; its events and what it cost."""
    settings = Settings(nats_url=broker.url, artifact_store=str(folder / "artifacts"), state_dir=folder / "state")
    ports = await connect_ports(settings)
    events: list[Recorded] = []
    with selector_process(settings, folder / "one") as (process, address):
        async with workers(ports):
            began, peak, proposed = time.monotonic(), 0.0, 0
            run_id = await start_run(address, settings, spec_of(candidates), "load")
            async for recorded in ports.log.follow(run_id):
                events.append(recorded)
                if isinstance(recorded.event.payload, CandidateProposed):
                    proposed += 1
                    if proposed % 200 == 0:
                        peak = max(peak, psutil.Process(process.pid).memory_info().rss / 1e6)
                        rate = proposed / (time.monotonic() - began)
                        left = (candidates - proposed) / rate
                        sys.stderr.write(f"\r{proposed}/{candidates}, {rate:.0f} a second, {left:.0f} s left ")
                if isinstance(recorded.event.payload, TERMINAL):
                    break
            seconds = time.monotonic() - began
    began = time.monotonic()
    count = 0
    async for _ in ports.log.read(run_id):
        count += 1
    reading = time.monotonic() - began
    await ports.close()
    return events, {"seconds": seconds, "candidates_a_second": candidates / seconds, "selector_mb": peak,
                    "events": count, "log_read_seconds": reading}  # fmt: skip


def decision_times(events: list[Recorded]) -> dict[str, float]:
    """The log folded again, as the selector did, with a clock (of CPU time) around every question."""
    tournament = EvolutionaryTournament(events[0].event.run_id)
    times = []
    for recorded, following in pairwise(events):
        tournament.apply(recorded.event)
        if not following.event.is_result:
            began = time.thread_time()
            tournament.next_decision()
            times.append(time.thread_time() - began)
    asked = sorted(times)
    return {"decision_p50_ms": 1e3 * asked[len(asked) // 2], "decision_p99_ms": 1e3 * asked[len(asked) * 99 // 100],
            "decision_max_ms": 1e3 * asked[-1]}  # fmt: skip


def replay_times(events: list[Recorded]) -> dict[str, float]:
    """A fold of the events, and a decoded snapshot of nearly all of them."""
    began = time.perf_counter()
    tournament = EvolutionaryTournament(events[0].event.run_id)
    for recorded in events[:-20]:
        tournament.apply(recorded.event)
    folding = time.perf_counter() - began
    data = snapshot.encode(snapshot.pack(tournament), sequence=1, decision=1)
    began = time.perf_counter()
    assert snapshot.decode(data) is not None
    return {"fold_seconds": folding, "fold_seconds_of_100k": folding * 1e5 / len(events),
            "snapshot_seconds": time.perf_counter() - began, "snapshot_mb": len(data) / 1e6}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--candidates", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=Path("bench-selector"), help="folder for the figures (JSON)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="evomerge-selector-") as name:
        folder = Path(name)
        broker = Broker(folder / "nats")
        broker.start()
        try:
            events, figures = asyncio.run(load(args.candidates, folder, broker))
        finally:
            broker.stop()
    sys.stderr.write("\n")
    figures |= replay_times(events) | decision_times(events)
    figures["replay_100k_seconds"] = (figures["log_read_seconds"] + figures["fold_seconds"]) * 1e5 / len(events)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "selector.json").write_text(json.dumps(figures, indent=1), encoding="utf-8")
    for key, value in figures.items():
        print(f"{key:24} {value:.3f}" if isinstance(value, float) else f"{key:24} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
