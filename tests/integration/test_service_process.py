"""A service as its users meet it: a process, its port, its signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from evomerge_cli.stack.broker import Broker
from evomerge_common.runtime.settings import Settings
from helpers.support import assert_eventually_sync, python_process

SERVICE = """if True:
    import asyncio, os, sys
    from evomerge.v1 import selector_pb2, selector_pb2_grpc
    from evomerge_common.domain.messages import CandidateMerged
    from evomerge_common.errors import NotFound, SpecError
    from evomerge_common.runtime.service import Service, run_service
    from evomerge_common.runtime.worker import Worker

    class Selector(selector_pb2_grpc.SelectorServiceServicer):
        def __init__(self, ports):
            self.ports = ports

        async def GetRun(self, request, context):
            raise NotFound(f"no run {request.run_id!r}; `evomerge runs list` shows them")

        async def StartRun(self, request, context):
            raise SpecError("unknown key", ("search", "seeed"))

        async def WatchRun(self, request, context):
            yield selector_pb2.WatchRunResponse(sequence=1)
            await self.ports.stop.wait()

    async def bootstrap(settings, ports):
        async def handler(job):
            print("working", flush=True)
            await asyncio.sleep(60)
            return CandidateMerged(job_id=job.job_id)

        async def failing(stop):
            if os.environ.get("FAIL"):
                raise RuntimeError("background bug")

        async def close():
            print("closed", flush=True)

        servicer = Selector(ports)
        return Service(
            name="selector",
            servicers=[("evomerge.v1.SelectorService",
                        lambda s: selector_pb2_grpc.add_SelectorServiceServicer_to_server(servicer, s))],
            workers=[Worker(kind="merge", handler=handler, ports=ports, settings=settings)],
            background=[failing],
            closers=[close],
        )

    sys.exit(run_service("selector", bootstrap))
"""


def settings_for(broker: Broker, tmp_path: Path, metrics_address: str = "127.0.0.1:0", **more: Any) -> Settings:
    return Settings(
        metrics_address=metrics_address,  # never the usual port: a stack may be running on this machine
        nats_url=broker.url,
        artifact_store=str(tmp_path / "artifacts"),
        state_dir=tmp_path / "state",
        log_format="json",
        drain_timeout=0.2,
        **more,
    )


def port_of(tmp_path: Path) -> int:
    file = tmp_path / "state" / "selector.port"
    assert_eventually_sync(lambda: file.exists() and file.read_text().endswith("\n"), 30)
    return int(file.read_text())


def events(process: Any) -> list[str]:
    lines = process.output.read_text().splitlines()
    return [json.loads(line)["event"] if line.startswith("{") else line for line in lines]


def grpcurl(port: int, *args: str) -> subprocess.CompletedProcess[str]:
    binary = str(Path(sysconfig.get_path("scripts")) / "grpcurl")
    *options, method = args
    return subprocess.run(
        [binary, "-plaintext", *options, f"127.0.0.1:{port}", *method.split()],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def is_serving(port: int) -> bool:
    return '"SERVING"' in grpcurl(port, "grpc.health.v1.Health/Check").stdout


@pytest.mark.slow
def test_its_whole_life(broker: Broker, tmp_path: Path, unused_tcp_port: int) -> None:
    settings = settings_for(broker, tmp_path, metrics_address=f"127.0.0.1:{unused_tcp_port}")
    # state_dir/selector.port is written for port 0, which from_env gives only when it is said
    with python_process(SERVICE, settings, cwd=tmp_path, EVOMERGE_GRPC_ADDRESS="127.0.0.1:0") as process:
        port = port_of(tmp_path)
        assert_eventually_sync(lambda: is_serving(port), 30)

        assert grpcurl(port, "list").stdout.split() == [
            "evomerge.v1.SelectorService",
            "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection",
        ]
        assert "rpc StartRun" in grpcurl(port, "describe evomerge.v1.SelectorService").stdout
        one = grpcurl(port, "-d", '{"service": "evomerge.v1.SelectorService"}', "grpc.health.v1.Health/Check")
        assert '"SERVING"' in one.stdout
        missing = grpcurl(port, "-d", '{"run_id": "x"}', "evomerge.v1.SelectorService/GetRun").stderr
        assert "NotFound" in missing
        assert "no run 'x'" in missing
        bad = grpcurl(port, "evomerge.v1.SelectorService/StartRun").stderr
        assert "InvalidArgument" in bad
        assert "search.seeed" in bad
        assert "SpecError" in bad

        with urllib.request.urlopen(f"http://{settings.metrics_address}/metrics", timeout=5) as answer:
            metrics = answer.read().decode()
        assert 'evomerge_build_info{service="selector"' in metrics

        resident = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
        assert resident < 75, f"{resident:.0f} MB"

        publish_merge_job(broker)
        assert_eventually_sync(lambda: "working" in events(process))
        watch = subprocess.Popen(
            [str(Path(sysconfig.get_path("scripts")) / "grpcurl"), "-plaintext", f"127.0.0.1:{port}",
             "evomerge.v1.SelectorService/WatchRun"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert watch.stdout is not None
        assert watch.stdout.readline()  # the stream is open
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert time.monotonic() - started < 3
        watch.communicate(timeout=10)
        assert watch.returncode == 0  # the stream was ended, not cut
        said = events(process)
        assert said.index("stopping") < said.index("job given back: this service stops") < said.index("closed")
        assert said[-1] == "stopped"


def publish_merge_job(broker: Broker) -> None:
    code = f"""if True:
        import asyncio
        from evomerge_common.domain.messages import Job, MergeJob
        from evomerge_common.runtime.ports_factory import connect_ports
        from evomerge_common.runtime.settings import Settings

        async def main():
            ports = await connect_ports(Settings(nats_url={broker.url!r}, artifact_store="artifacts"))
            await ports.queue.publish(Job(job_id="service-process", run_id="r", payload=MergeJob()))
            await ports.close()

        asyncio.run(main())
    """
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=broker.folder)


@pytest.mark.slow
def test_it_waits_for_nats_not_serving_and_still_obeys(nats_server: Broker, tmp_path: Path) -> None:
    nats_server.stop()
    with python_process(
        SERVICE, settings_for(nats_server, tmp_path), cwd=tmp_path, EVOMERGE_GRPC_ADDRESS="127.0.0.1:0"
    ) as process:
        port = port_of(tmp_path)
        assert_eventually_sync(lambda: "NOT_SERVING" in grpcurl(port, "grpc.health.v1.Health/Check").stdout, 20)
        nats_server.start()
        assert_eventually_sync(lambda: is_serving(port), 30)
        nats_server.stop()
        started = time.monotonic()
        process.send_signal(signal.SIGINT)  # with the broker gone
        assert process.wait(15) == 0
        assert time.monotonic() - started < 6
    (tmp_path / "state" / "selector.port").unlink()
    with python_process(
        SERVICE, settings_for(nats_server, tmp_path), cwd=tmp_path, EVOMERGE_GRPC_ADDRESS="127.0.0.1:0"
    ) as process:
        port_of(tmp_path)
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)  # while it waits
        assert process.wait(10) == 0
        assert time.monotonic() - started < 3


def test_a_background_task_that_fails_ends_the_service(broker: Broker, tmp_path: Path) -> None:
    with python_process(SERVICE, settings_for(broker, tmp_path), cwd=tmp_path, FAIL="1") as process:
        assert process.wait(30) == 1
        assert "background bug" in process.output.read_text()
        assert "closed" in events(process)


def test_a_bad_setting_is_told_without_a_traceback(tmp_path: Path) -> None:
    with python_process(SERVICE, cwd=tmp_path, EVOMERGE_NATS_ULR="nats://x:1") as process:
        assert process.wait(30) == 2
        said = process.output.read_text()
    assert said.startswith("evomerge-selector: unknown setting EVOMERGE_NATS_ULR; did you mean 'EVOMERGE_NATS_URL'?")
    assert "Traceback" not in said


def test_a_store_that_nobody_serves_is_refused_at_start(tmp_path: Path) -> None:
    with python_process(SERVICE, cwd=tmp_path, EVOMERGE_ARTIFACT_STORE="s3://bucket/x") as process:
        assert process.wait(30) == 2
        said = process.output.read_text()
    assert said.startswith("evomerge-selector: EVOMERGE_ARTIFACT_STORE=s3://bucket/x: no store serves s3:// URIs")
    assert "Traceback" not in said
    assert not (tmp_path / "s3:").exists()
