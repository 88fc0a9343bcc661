"""The selector's image by itself, with a broker that testcontainers starts."""

from __future__ import annotations

import time
from collections.abc import Iterator

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from testcontainers.core.container import DockerContainer
from testcontainers.core.network import Network

from helpers.containers import ROOT, run

pytestmark = [pytest.mark.containers, pytest.mark.timeout(600)]
NATS, SELECTOR = "evomerge-ci-nats", "evomerge-selector"


@pytest.fixture
def selector() -> Iterator[DockerContainer]:
    images, dockerfile = ROOT / ".ci" / "images", ROOT / "services" / "Dockerfile"
    run("docker", "build", "-q", "-t", NATS, "-f", images / "nats.Dockerfile", images, timeout=300)
    named = ["-t", SELECTOR, "--build-arg", "SERVICE=selector"]
    run("docker", "build", "-q", *named, "-f", dockerfile, ROOT, timeout=300)
    with (
        Network() as network,
        DockerContainer(NATS).with_command("-js").with_network(network).with_network_aliases("nats"),
        DockerContainer(SELECTOR)
        .with_network(network)
        .with_env("EVOMERGE_NATS_URL", "nats://nats:4222")
        .with_exposed_ports(50051) as selector,
    ):
        yield selector


def test_the_selector_is_healthy_over_grpc_and_ends_on_sigterm(selector: DockerContainer) -> None:
    address = f"{selector.get_container_host_ip()}:{selector.get_exposed_port(50051)}"
    assert _health(address) == health_pb2.HealthCheckResponse.SERVING
    container = selector.get_wrapped_container()
    container.stop(timeout=20)
    assert container.wait()["StatusCode"] == 0, selector.get_logs()


def _health(address: str, seconds: float = 60.0) -> int:
    end, status = time.monotonic() + seconds, health_pb2.HealthCheckResponse.UNKNOWN
    request = health_pb2.HealthCheckRequest(service="evomerge.v1.SelectorService")
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        while time.monotonic() < end and status != health_pb2.HealthCheckResponse.SERVING:
            try:
                status = stub.Check(request, timeout=5).status
            except grpc.RpcError:
                status = health_pb2.HealthCheckResponse.UNKNOWN
            time.sleep(0.2)
    return int(status)
