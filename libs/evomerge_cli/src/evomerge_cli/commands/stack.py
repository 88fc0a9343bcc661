"""`evomerge up | down | status`: the local stack in the background."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from evomerge_cli.console import Console
from evomerge_cli.failure import FAILED, OK
from evomerge_cli.local_stack import is_alive, process_start, read_state, state_file
from evomerge_common.errors import InvalidInput, Unavailable, WorkerCrashed

START_SECONDS = 100.0
STOP_SECONDS = 30.0


def run(args: argparse.Namespace, console: Console) -> int:
    """Does one of the three: up, down, status."""
    return {"up": _up, "down": _down, "status": _status}[args.command](args, console)


def _up(args: argparse.Namespace, console: Console) -> int:
    from evomerge_cli.stack.process import tail

    if state := read_state():
        raise InvalidInput(f"a stack is up already (pid {state['pid']}); `evomerge down` stops it")
    folder = Path(args.folder).expanduser() if args.folder else state_file().parent / "stack"
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "up.log"
    what = [str(folder.absolute()), str(args.evaluators or 0)]
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "evomerge_cli.commands.stack", *what],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + START_SECONDS
    try:
        while not (state := read_state()):
            if process.poll() is not None:
                raise WorkerCrashed(f"the stack did not start; its log {log} ends:\n{tail(log)}")
            if time.monotonic() > deadline:
                raise Unavailable(f"the stack is not ready after {START_SECONDS:g} s; see {log}")
            time.sleep(0.1)
    except BaseException:
        process.terminate()
        process.wait(STOP_SECONDS)
        raise
    if not console.data(state):
        console.out(f"up: selector {state['addresses']['selector']}, live page http://{state['addresses']['page']}")
        console.out(f"logs in {folder / 'logs'}; `evomerge status` looks after it, `evomerge down` stops it")
    return OK


def _down(args: argparse.Namespace, console: Console) -> int:
    state = read_state()
    if not state:
        console.say("no stack is up")
        return OK
    pid, started = int(state["pid"]), state.get("started")
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while is_alive(pid, started):
        if time.monotonic() > deadline:
            raise Unavailable(f"the stack (pid {pid}) does not stop; its log is {state.get('folder')}/up.log")
        time.sleep(0.1)
    console.say("down")
    return OK


def _status(args: argparse.Namespace, console: Console) -> int:
    from evomerge_cli.stack.embedded import is_serving

    state = read_state()
    if not state:
        if not console.data({"up": False}):
            console.out("no stack is up")
        return FAILED
    # The supervisor's own file has the pids of now; ours has those of the start.
    folder = Path(state["folder"])
    processes = json.loads((folder / "stack.json").read_text())["processes"]
    services = {
        name: {
            "address": address,
            "pid": processes.get(name, 0),
            "serving": is_serving(address),
            "memory_mb": _memory(processes.get(name, 0)),
        }
        for name, address in state["addresses"].items()
        if name in processes
    }
    broker = processes.get("nats-server", 0)
    services["nats-server"] = {
        "address": state["addresses"]["nats"],
        "pid": broker,
        "serving": is_alive(broker, None),
        "memory_mb": _memory(broker),
    }
    healthy = all(s["serving"] for s in services.values())
    if not console.data({"up": True, "healthy": healthy, **state, "services": services}):
        rows = [
            [name, s["address"], str(s["pid"]), "serving" if s["serving"] else "NOT SERVING", f"{s['memory_mb']} MB"]
            for name, s in services.items()
        ]
        console.table(["service", "address", "pid", "state", "memory"], rows)
        console.out(f"live page http://{state['addresses']['page']}, logs in {folder / 'logs'}")
    return OK if healthy else FAILED


def _memory(pid: int) -> int:
    """Resident megabytes of a process and its children."""
    import psutil

    try:
        process = psutil.Process(pid)
        return int(sum(p.memory_info().rss for p in (process, *process.children(recursive=True)))) >> 20
    except psutil.Error:
        return 0


def serve(folder: Path, evaluators: int) -> int:
    """Runs what `up` leaves in the background: a stack until SIGTERM; 0 evaluators: as many as it takes itself."""
    import logging

    from evomerge_cli.failure import interrupt_on_signals
    from evomerge_cli.stack.embedded import Stack
    from evomerge_common.runtime.files import write_atomically

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    interrupt_on_signals()
    file = state_file()
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with Stack(folder, evaluators=evaluators or None, fixed_ports=True) as stack:
            state: dict[str, Any] = {
                "pid": os.getpid(),
                "started": process_start(os.getpid()),
                "folder": str(folder),
                "addresses": stack.addresses,
            }
            write_atomically(file, json.dumps(state, indent=2) + "\n")
            while True:
                stack.check()
                time.sleep(0.5)
    except KeyboardInterrupt:
        return OK
    finally:
        file.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(serve(Path(sys.argv[1]), int(sys.argv[2])))
