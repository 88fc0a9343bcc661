"""A start that is broken off leaves nothing running: each service told to stop, the command killed, at any moment."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from evomerge_common.runtime.settings import PREFIX, SERVICES, Settings
from helpers.support import assert_eventually_sync

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

MARK = "TEST_START_AND_STOP"
STACK = """if True:
    import sys, time
    from pathlib import Path
    from evomerge_cli.stack.embedded import Stack

    if __name__ == "__main__":
        with Stack(Path(sys.argv[1])):
            print("up", flush=True)
            time.sleep(60)
"""


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield f"nats://127.0.0.1:{server.getsockname()[1]}"


def start(arguments: list[str], mark: str, folder: Path, settings: Settings | None = None) -> subprocess.Popen[bytes]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(PREFIX)}
    ours = {**settings.to_env(), f"{PREFIX}GRPC_ADDRESS": "127.0.0.1:0"} if settings else {}  # never the usual ports
    env = {**clean, **ours, MARK: mark}
    with (folder / "process.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, *arguments], env=env, cwd=folder, stdout=log, stderr=log, start_new_session=True
        )


def running(mark: str) -> list[str]:
    """The command lines of the processes that have the mark in their environment, and live."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found


def settings_of(service: str, folder: Path, nats: str) -> Settings:
    return Settings(
        nats_url=nats, metrics_address="127.0.0.1:0", http_address="127.0.0.1:0", state_dir=folder / service,
        artifact_store=str(folder / "artifacts"), model_store=folder / "models", warm=True,
    )  # fmt: skip


@pytest.mark.parametrize("seconds", [0.05, 0.3, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("broker", ["silent", "refused"])
def test_a_service_stops_while_it_starts(broker: str, seconds: float, silent: str, tmp_path: Path) -> None:
    nats = silent if broker == "silent" else "nats://127.0.0.1:9"
    mark = uuid.uuid4().hex
    services = {
        name: start(["-m", f"evomerge_{name}"], mark, tmp_path, settings_of(name, tmp_path, nats)) for name in SERVICES
    }
    time.sleep(seconds)
    told = time.monotonic()
    for process in services.values():
        process.send_signal(signal.SIGTERM)
    try:
        for name, process in services.items():
            try:
                code = process.wait(max(0.01, told + 5 - time.monotonic()))
            except subprocess.TimeoutExpired:
                pytest.fail(f"{name} did not stop in 5 s")
            assert code in {0, -signal.SIGTERM}, f"{name}: {(tmp_path / 'process.log').read_text()}"
        assert_eventually_sync(lambda: not running(mark), 5)
    finally:
        end(mark, *services.values())


def test_an_evaluator_stops_while_its_child_warms_up(tmp_path: Path) -> None:
    mark = uuid.uuid4().hex
    service = start(
        ["-m", "evomerge_evaluator"], mark, tmp_path, settings_of("evaluator", tmp_path, "nats://127.0.0.1:9")
    )
    log = tmp_path / "process.log"
    try:
        assert_eventually_sync(
            lambda: "waiting for NATS" in log.read_text() and any("spawn_main" in one for one in running(mark)), 60
        )
        service.send_signal(signal.SIGTERM)
        assert service.wait(5) == 0
        assert_eventually_sync(lambda: not running(mark), 5)
    finally:
        end(mark, service)


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
@pytest.mark.parametrize("seconds", [0.2, 0.5, 0.8, 1.2, 1.8, 2.5, 3.5, 5.0])
def test_a_killed_command_leaves_nothing(seconds: float, tmp_path: Path) -> None:
    mark = uuid.uuid4().hex
    command = start(["-c", STACK, str(tmp_path / "stack")], mark, tmp_path)
    try:
        time.sleep(seconds)
        command.kill()
        command.wait(5)
        assert_eventually_sync(lambda: not running(mark), 10)
    finally:
        end(mark, command)


def end(mark: str, *started: subprocess.Popen[bytes]) -> None:
    """Kills what has the mark, so that a test that fails leaves nothing either."""
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark:
                process.kill()
        except psutil.Error:
            continue
    for ours in started:
        ours.wait(10)
