"""The supervisor's parts: free ports, restarts with growing pauses, children that die with their parent."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from evomerge_cli.stack.ports import free_ports, is_free
from evomerge_cli.stack.process import MAX_QUICK_DEATHS, SupervisedProcess
from evomerge_common.errors import WorkerCrashed
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
