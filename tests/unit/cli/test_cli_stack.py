"""The supervisor's parts: free ports, restarts with growing pauses, children that die with their parent."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from evomerge_cli.console import Console
from evomerge_cli.failure import FAILED, guarded
from evomerge_cli.stack.broker import Broker, logging_to
from evomerge_cli.stack.child import forked
from evomerge_cli.stack.embedded import Stack
from evomerge_cli.stack.ports import free_ports, is_free
from evomerge_cli.stack.process import MAX_QUICK_DEATHS, SupervisedProcess
from evomerge_cli.stack.room import PATIENCE, RESERVE, Room
from evomerge_common.errors import DiskFull, WorkerCrashed
from evomerge_common.runtime.fork_server import fork
from evomerge_common.runtime.fork_server import start as start_fork_server
from helpers.support import assert_eventually_sync


def test_ports_are_free_and_different() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert not is_free(port)
        ports = free_ports(8, preferred=(port, 0))
        assert len(set(ports)) == 8
        assert port not in ports
        assert all(is_free(p) for p in ports)


def supervised(tmp_path: Path, code: str) -> SupervisedProcess:
    return SupervisedProcess("worker", [sys.executable, "-c", code], env=dict(os.environ), log=tmp_path / "worker.log")


def test_a_killed_child_is_started_again(tmp_path: Path) -> None:
    process = supervised(tmp_path, "import time; time.sleep(60)")
    process.start()
    try:
        first = process.pid
        assert first
        assert not process.supervise()
        os.kill(first, signal.SIGKILL)
        assert_eventually_sync(process.supervise)
        assert process.pid not in {0, first}
        assert process.restarts == 1
    finally:
        process.terminate()
        process.wait(time.monotonic() + 5)
    assert process.pid == 0


def test_a_child_that_keeps_dying_is_given_up_with_its_last_words(tmp_path: Path) -> None:
    now = 0.0
    code = "import sys; print('the port is taken'); sys.exit(7)"
    process = SupervisedProcess(
        "worker", [sys.executable, "-c", code], env=dict(os.environ), log=tmp_path / "worker.log", clock=lambda: now
    )
    process.start()

    def look_after_it() -> bool:
        nonlocal now
        now += 1.0
        process.supervise()
        return False

    with pytest.raises(WorkerCrashed, match="exit code 7") as failed:
        assert_eventually_sync(look_after_it, 20.0)
    assert "the port is taken" in str(failed.value)
    assert process.restarts == MAX_QUICK_DEATHS - 1


def test_a_child_that_does_not_stop_is_killed(tmp_path: Path) -> None:
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    )
    process = supervised(tmp_path, code)
    process.start()
    assert_eventually_sync(lambda: b"deaf" in (tmp_path / "worker.log").read_bytes())
    pid = process.pid
    process.terminate()
    process.wait(time.monotonic() + 0.2)
    assert not psutil.pid_exists(pid)


@pytest.mark.parametrize("arguments", [["evomerge_cli_sleeper"], ["--exec", "sh", "-c", "echo up; exec sleep 60"]])
@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_children_die_with_a_parent_that_is_killed(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "evomerge_cli_sleeper.py").write_text("import time; print('up', flush=True); time.sleep(60)\n")
    parent_code = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-P', '-m', 'evomerge_cli.stack.child', str(os.getpid()),"
        f" *{arguments!r}], env={{**os.environ, 'PYTHONPATH': {str(tmp_path)!r}}})\n"
        "print(child.pid, flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", parent_code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        assert parent.stdout.readline() == b"up\n"
        parent.kill()
    assert_eventually_sync(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_a_child_of_a_parent_that_is_gone_ends_at_once() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "evomerge_cli.stack.child", "1", "this"], timeout=20, check=False, capture_output=True
    )
    assert done.returncode == 0


def test_too_little_room_is_said_in_seconds_and_a_moment_of_it_is_forgiven(tmp_path: Path) -> None:
    free, now = RESERVE - 1, 100.0
    room = Room(tmp_path, tmp_path / "nats.log", free=lambda _: free, clock=lambda: now)
    room.check()
    now += PATIENCE / 2
    free = RESERVE
    room.check()
    free, now = 17, now + PATIENCE
    room.check()
    now += PATIENCE
    with pytest.raises(DiskFull, match=r"17 bytes are left.*free some space and run the same command again"):
        room.check()


@pytest.mark.parametrize("words", ["write 1.blk: no space left on device", "resource limits exceeded for server"])
def test_what_the_broker_says_of_its_full_store_counts_even_if_there_is_room_again(tmp_path: Path, words: str) -> None:
    log = tmp_path / "nats.log"
    log.write_text(f"[ERR] {words}\n")  # of an earlier stack
    room = Room(tmp_path, log, free=lambda _: 10**9)
    room.check()
    with log.open("a") as file:
        file.write("[INF] Server is ready\n")
    room.check()
    with log.open("a") as file:
        file.write(f"[ERR] JetStream {words}\n")
    with pytest.raises(DiskFull, match="the disk of"):
        room.check()


def test_a_stack_without_room_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 4096})
    monkeypatch.setattr("evomerge_cli.stack.room.shutil.disk_usage", lambda _: usage)
    with pytest.raises(DiskFull, match="4,096 bytes are left"), Stack(tmp_path / "stack"):
        raise AssertionError("it has started")
    assert not (tmp_path / "stack" / "nats" / "jetstream").exists()


def test_a_full_disk_is_no_bug(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> int:
        raise OSError(errno.ENOSPC, "No space left on device", "/x/events.jsonl")

    assert guarded(command, Console()) == FAILED
    said = capsys.readouterr().err
    assert "error: no room is left on the disk for /x/events.jsonl: free some" in said
    assert "Traceback" not in said


@pytest.mark.skipif(sys.platform != "linux", reason="fork servers are for Linux")
def test_a_forked_service_is_supervised_like_a_started_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "forked_service.py").write_text(
        "import os, time; print(os.environ['WORD'], flush=True); time.sleep(60)"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    server, name = start_fork_server(["json"]) or (None, "")
    assert server is not None
    process = SupervisedProcess(
        "worker", [], env={}, log=tmp_path / "worker.log",
        fork=lambda log: fork(forked, None, ("forked_service",), server=name, environ={"WORD": "said"}, output=log),
    )  # fmt: skip
    try:
        process.start()
        first = process.pid
        assert_eventually_sync(lambda: process.log.read_text() == "said\n")
        assert (os.getsid(first), psutil.Process(first).ppid()) == (first, server.pid)
        os.kill(first, signal.SIGKILL)
        assert_eventually_sync(process.supervise)
        assert process.pid not in {0, first}
        process.terminate()
        process.wait(time.monotonic() + 5)
        assert process.pid == 0
    finally:
        server.kill()
        server.wait()


def test_the_brokers_log_stays_short_as_well(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "nats.log"
    log.parent.mkdir()
    broker = Broker(tmp_path / "nats", extra_config=logging_to(log, 8_000) + "debug: true\n")
    broker.start()
    try:
        for _ in range(400):  # each leaves a few lines
            socket.create_connection(("127.0.0.1", broker.port)).close()
    finally:
        broker.stop()
    files = list(log.parent.iterdir())
    assert log in files
    assert 2 <= len(files) <= 3
    assert sum(file.stat().st_size for file in files) < 3 * 9_000
