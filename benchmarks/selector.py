"""The selector under load: a real process and a real broker, workers that answer at once.

Prints the throughput of a whole run, the selector's memory, the time that a decision takes (99 of 100) and how long the
replay of its log takes, with and without a snapshot. With `--replay N` besides: a run with a log of N events is in the
broker, and a selector that starts there takes it up. With `--in-memory FOLDS` neither broker nor processes: a run
played to its end, and each decision's fastest of so many folds, which the load of other processes does not move.

    evomerge bench selector --candidates 10000 --replay 100000 --out bench-selector
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import psutil

from evomerge.v1 import selector_pb2, selector_pb2_grpc
from evomerge_cli.stack.broker import Broker
from evomerge_common.adapters import codec
from evomerge_common.domain.messages import (
    TERMINAL,
    CandidateProposed,
    EvaluateJob,
    Event,
    Job,
    Result,
    RunStarted,
    TaskScore,
)
from evomerge_common.domain.spec import RunRequest
from evomerge_common.ports import Recorded
from evomerge_common.runtime.grpc_server import client_channel
from evomerge_common.runtime.ports_factory import Ports, connect_ports
from evomerge_common.runtime.settings import Settings
from evomerge_selector import fake_workers
from evomerge_selector.domain import snapshot
from evomerge_selector.domain.run import Run
from evomerge_selector.domain.summary import RunEntry

SUITE = {
    "tasks": [{"name": "a", "kind": "exact_match", "items": [{"prompt": str(i), "answer": "1"} for i in range(40)]}]
}


def score(job: EvaluateJob) -> tuple[float, list[TaskScore]]:
    """Smooth in the weights."""
    error, count = 0.0, 1
    for part in json.loads(job.recipe_json)["slices"]:
        for goal, one in zip((0.7, 0.4, 0.5), part["inputs"], strict=False):
            weight = one.get("parameters", {}).get("weight", 0.0)
            value = weight[-1]["value"] if isinstance(weight, list) else weight
            error, count = error + (value - goal) ** 2, count + 1
    fitness = 1.0 / (1.0 + error / count)
    return fitness, [TaskScore(task="a", score=fitness)]


def answer(job: Job) -> Result:
    return fake_workers.answer(job, score, layers=8)


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
        run = await _patiently(lambda: stub.StartRun(request, timeout=60, wait_for_ready=True))
        return str(run.run_id)


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
        async with fake_workers.workers(ports, answer, each=2):
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
    whole = await replay(ports, run_id)
    await ports.close()
    return events, {"seconds": seconds, "candidates_a_second": candidates / seconds, "selector_mb": peak, **whole}


async def replay(ports: Ports, run_id: str) -> dict[str, float]:
    """The log read from the broker and folded in one pass, as a selector without a snapshot does, and its next word."""
    began, count = time.perf_counter(), 0
    run = Run(run_id)
    async for recorded in ports.log.read(run_id):
        run.apply(recorded.event)
        count += 1
    run.next_decision()
    return {"events": count, "replay_seconds": time.perf_counter() - began}


async def write_log(ports: Ports, run_id: str, count: int) -> None:
    """`count` events of a run in its midst, appended as its selector and its workers would."""
    spec = RunRequest.from_dict(spec_of(count)).spec
    run, events, last, done = Run(run_id), 0, 0, set()
    await ports.kv.create("runs", run_id, RunEntry().to_bytes())

    async def say(payload: Any, job_id: str = "") -> None:
        nonlocal events, last
        event = Event(run_id=run_id, payload=payload, time=time.time())
        if job_id:
            await ports.log.append_result(event, message_id=job_id)
        else:
            last = await ports.log.append_decision(event, expected_last=last)
        run.apply(event)
        events += 1
        if events % 500 == 0:
            sys.stderr.write(f"\r{events}/{count} events ")

    await say(RunStarted(spec_json=spec.to_json()))
    while events < count:
        while (decision := run.next_decision()) is not None:
            await say(decision)
        for job in run.jobs():
            if job.job_id not in done:
                done.add(job.job_id)
                await say(answer(job), job.job_id)
        run.discarded.clear()


async def takeover(count: int, folder: Path, broker: Broker) -> dict[str, float]:
    """A selector that starts where a run has a log of `count` events, until it can tell of it."""
    settings = Settings(nats_url=broker.url, artifact_store=str(folder / "artifacts"), state_dir=folder / "state")
    ports, run_id = await connect_ports(settings), "run-0123456789ab"
    await write_log(ports, run_id, count)
    own = await replay(ports, run_id)
    await ports.close()
    began = time.perf_counter()
    with selector_process(settings, folder / "two") as (process, address):
        async with client_channel(address, settings) as channel:
            stub = selector_pb2_grpc.SelectorServiceStub(channel)
            run = await _patiently(lambda: stub.GetRun(selector_pb2.GetRunRequest(run_id=run_id), timeout=120))
        took = time.perf_counter() - began
        memory = psutil.Process(process.pid).memory_info().rss / 1e6
    return {"log_events": own["events"], "log_replay_seconds": own["replay_seconds"], "takeover_seconds": took,
            "takeover_candidates": float(run.evaluated), "takeover_mb": memory}  # fmt: skip


async def _patiently(ask: Callable[[], Awaitable[Any]]) -> Any:
    """Asks until there is an answer: it is Unavailable, or knows nothing, until the selector has found the broker."""
    while True:
        try:
            return await ask()
        except grpc.aio.AioRpcError as error:
            if error.code() not in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.NOT_FOUND}:
                raise
            await asyncio.sleep(0.05)


def decision_times(events: list[Recorded]) -> dict[str, float]:
    """The log folded again, as the selector did, with a clock (of CPU time) around every question."""
    run = Run(events[0].event.run_id)
    times, proposing = [], []
    for recorded, following in pairwise(events):
        run.apply(recorded.event)
        if not following.event.is_result:
            began = time.thread_time()
            run.next_decision()
            times.append(time.thread_time() - began)
            if isinstance(following.event.payload, CandidateProposed):
                proposing.append(times[-1])
    figures: dict[str, float] = {}
    for name, found in (("decision", sorted(times)), ("proposal", sorted(proposing))):
        figures[f"{name}_p50_ms"] = 1e3 * found[len(found) // 2]
        figures[f"{name}_p99_ms"] = 1e3 * found[len(found) * 99 // 100]
        figures[f"{name}_max_ms"] = 1e3 * found[-1]
    return figures


def in_memory(candidates: int, folds: int) -> dict[str, float]:
    """A whole run's decisions and folds, and the replay of its log from bytes to the next proposal."""
    events: list[Event] = []

    class Recording(Run):
        def apply(self, event: Event) -> None:
            events.append(event)
            super().apply(event)

    fake_workers.play(Recording("run-0123456789ab"), RunRequest.from_dict(spec_of(candidates)).spec, answer)
    best: list[float] = []
    folded: list[float] = []
    for _ in range(folds):
        run, times, began = Run(events[0].run_id), [], time.process_time()
        for event, following in pairwise(events):
            run.apply(event)
            if not following.is_result:
                asked = time.thread_time()
                run.next_decision()
                times.append(time.thread_time() - asked)
        folded.append(time.process_time() - began - sum(times))
        best = [min(pair) for pair in zip(best, times, strict=True)] if best else times
    best.sort()
    figures = {f"decision_p{name}_ms": 1e3 * best[int(len(best) * float(f"0.{name}"))] for name in ("50", "99")}
    figures |= {"events": len(events), "fold_cpu_seconds": min(folded)}
    return figures | {"replay_cpu_seconds": min(replay_time(events) for _ in range(folds))}


def replay_time(events: list[Event]) -> float:
    """CPU seconds to decode and fold a log up to the last proposal, without a snapshot, and to make that proposal."""
    last = max(place for place, event in enumerate(events) if isinstance(event.payload, CandidateProposed))
    data, expected = [codec.encode(event) for event in events[:last]], events[last].payload
    gc.collect()
    gc.freeze()  # what this script holds besides is no part of a selector's memory
    began, run = time.process_time(), Run(events[0].run_id)
    for one in data:
        run.apply(codec.decode(Event, one))
    decision = run.next_decision()
    seconds = time.process_time() - began
    gc.unfreeze()
    assert decision == expected
    return seconds


def snapshot_times(events: list[Recorded]) -> dict[str, float]:
    """A decoded snapshot of nearly all events."""
    run = Run(events[0].event.run_id)
    for recorded in events[:-20]:
        run.apply(recorded.event)
    data = snapshot.encode(snapshot.pack(run), sequence=1, decision=1)
    began = time.perf_counter()
    assert snapshot.decode(data) is not None
    return {"snapshot_seconds": time.perf_counter() - began, "snapshot_mb": len(data) / 1e6}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--candidates", type=int, default=10_000)
    parser.add_argument("--replay", type=int, default=0, metavar="N", help="replay a log of N events besides")
    parser.add_argument("--out", type=Path, default=Path("bench-selector"), help="folder for the figures (JSON)")
    parser.add_argument("--in-memory", type=int, default=0, metavar="FOLDS", help="decisions and folds alone")
    args = parser.parse_args()
    if args.in_memory:
        return _tell(in_memory(args.candidates, args.in_memory), args.out)
    with tempfile.TemporaryDirectory(prefix="evomerge-selector-") as name:
        folder = Path(name)
        broker = Broker(folder / "nats")
        broker.start()
        try:
            events, figures = asyncio.run(load(args.candidates, folder, broker))
            if args.replay:
                figures |= asyncio.run(takeover(args.replay, folder, broker))
        finally:
            broker.stop()
    sys.stderr.write("\n")
    figures |= snapshot_times(events) | decision_times(events)
    return _tell(figures, args.out)


def _tell(figures: dict[str, float], out: Path) -> int:
    out.mkdir(parents=True, exist_ok=True)
    (out / "selector.json").write_text(json.dumps(figures, indent=1), encoding="utf-8")
    for key, value in figures.items():
        print(f"{key:24} {value:.3f}" if isinstance(value, float) else f"{key:24} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
