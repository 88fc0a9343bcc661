"""`docker compose up`, a run from grpcurl, its numbers in Prometheus; and what the containers may do."""

from __future__ import annotations

import json
import threading
import time
import urllib.parse
import urllib.request
from typing import Any

import pytest

from evomerge_common.runtime.settings import SERVICES
from helpers.containers import BIN, Stack, grpcurl, run, sums, write_models

pytestmark = [pytest.mark.containers, pytest.mark.timeout(1200)]

PORTS = {"Downloader": 50051, "Merger": 50052, "Selector": 50054, "Reporter": 50055}


def prometheus(query: str) -> list[dict[str, Any]]:
    url = f"http://127.0.0.1:9090/api/v1/query?query={urllib.parse.quote(query)}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        result: list[dict[str, Any]] = json.load(answer)["data"]["result"]
    return result


def inspect(stack: Stack, service: str) -> dict[str, Any]:
    container = stack.compose("ps", "-q", service).split()[0]
    found: dict[str, Any] = json.loads(run("docker", "inspect", container))[0]
    return found


@pytest.mark.parametrize("name", PORTS)
def test_grpcurl_sees_every_published_service(stack: Stack, name: str) -> None:
    listed = run(BIN / "grpcurl", "-plaintext", f"127.0.0.1:{PORTS[name]}", "list").split()
    assert f"evomerge.v1.{name}Service" in listed


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_runs_without_root_and_cannot_write_its_image(stack: Stack, service: str) -> None:
    found = inspect(stack, service)
    assert found["Config"]["User"] == "10001:10001"
    assert found["HostConfig"]["ReadonlyRootfs"] is True
    assert found["HostConfig"]["CapDrop"] == ["ALL"]
    assert "no-new-privileges:true" in found["HostConfig"]["SecurityOpt"]
    published = [port for ports in found["NetworkSettings"]["Ports"].values() for port in ports or ()]
    assert all(port["HostIp"] == "127.0.0.1" for port in published)
    assert stack.compose("exec", "-T", service, "id", "-u").strip() == "10001"


def test_idle_memory(stack: Stack) -> None:
    containers = stack.compose("ps", "-q", *SERVICES).split()
    lines = run("docker", "stats", "--no-stream", "--format", "{{.Name}} {{.MemUsage}}", *containers).splitlines()
    print("\n".join(lines))
    for line in lines:
        used = line.split()[1]
        assert used.endswith(("KiB", "MiB")), f"an idle service holds torch: {line}"
        assert float(used[:-3]) < 200, line


def test_a_run_from_grpcurl_to_its_champion(stack: Stack) -> None:
    names = write_models(stack.models)
    spec = {
        "models": [f"/models/{name}" for name in names],
        "seed": 3,
        "search": {"evaluations": 12, "population": 4, "methods": ["linear", "slerp"]},
        "suite": {"tasks": [sums()], "holdout": 0.4},
    }
    seen: list[dict[str, Any]] = []
    watching = threading.Event()

    def watch_fitness(run_id: str) -> None:
        while not watching.is_set():
            seen.extend(prometheus(f'evomerge_run_best_fitness{{run_id="{run_id}"}}'))
            time.sleep(1)

    started = grpcurl(50054, "evomerge.v1.SelectorService/StartRun", {"request_id": "one", "spec": json.dumps(spec)})[0]
    thread = threading.Thread(target=watch_fitness, args=(started["run_id"],))
    thread.start()
    try:
        events = grpcurl(50054, "evomerge.v1.SelectorService/WatchRun", {"run_id": started["run_id"]}, timeout=400)
        time.sleep(6)  # one more scrape: the numbers of an ended run stay for a minute
    finally:
        watching.set()
        thread.join(30)
    kinds = [key for event in events for key, value in event["event"].items() if isinstance(value, dict)]
    print({kind: kinds.count(kind) for kind in dict.fromkeys(kinds)})
    assert kinds[-1] == "run_finished", events[-1]
    final = grpcurl(50054, "evomerge.v1.SelectorService/GetRun", {"run_id": started["run_id"]})[0]
    assert final["status"] == "RUN_STATUS_FINISHED"
    assert final["champion_digest"]
    assert seen, "Prometheus never held evomerge_run_best_fitness"
    assert float(seen[-1]["value"][1]) == pytest.approx(final["best_fitness"], rel=1e-6)
    for path, word in (("runs", "EvoMerge"), ("api/runs", started["run_id"])):
        with urllib.request.urlopen(f"http://127.0.0.1:8080/{path}/{started['run_id']}", timeout=10) as page:
            assert word in page.read().decode()
