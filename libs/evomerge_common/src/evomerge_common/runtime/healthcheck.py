"""`python -m evomerge_common.runtime.healthcheck`: exit code 0 when the service on this machine says SERVING.

For a container's HEALTHCHECK. Reads the service's own settings; asks the plaintext health port where one is set.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from evomerge_common.errors import EvoMergeException
from evomerge_common.runtime.settings import Settings

SECONDS = 4.0
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]", "": "127.0.0.1"}  # noqa: S104 - compared, not bound


def main(environ: Mapping[str, str] | None = None) -> int:
    """Asks once; returns the exit code."""
    environ = os.environ if environ is None else environ
    try:
        settings = Settings.from_env(environ, service=environ.get("SERVICE", ""))
    except EvoMergeException as error:
        sys.stderr.write(f"{error}\n")
        return 2
    if settings.tls_cert and not settings.health_address:
        sys.stderr.write("with TLS, probes need a plaintext port: set EVOMERGE_HEALTH_ADDRESS=127.0.0.1:50050\n")
        return 2
    host, _, port = (settings.health_address or settings.grpc_address).rpartition(":")
    address = f"{_EVERYWHERE.get(host, host)}:{port}"
    try:
        with grpc.insecure_channel(address) as channel:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=SECONDS)
    except grpc.RpcError as error:
        sys.stderr.write(f"{address}: {error.code().name}\n")
        return 1
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    sys.stdout.write(f"{address}: {status}\n")
    return 0 if answer.status == health_pb2.HealthCheckResponse.SERVING else 1


if __name__ == "__main__":
    sys.exit(main())
