"""The stack of `evomerge up`: where it keeps itself, whether it lives, how to reach it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from evomerge_cli.run_folder import HIDDEN, RunFolder
from evomerge_common.errors import Unavailable
from evomerge_common.runtime.settings import Settings


def state_file() -> Path:
    """Returns the path ~/.local/state/evomerge/stack.json, or one under EVOMERGE_STATE_DIR or XDG_STATE_HOME."""
    if os.environ.get("EVOMERGE_STATE_DIR"):
        return Path(os.environ["EVOMERGE_STATE_DIR"]).expanduser() / "stack.json"
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "evomerge" / "stack.json"


def read_state() -> dict[str, Any]:
    """Reads what `up` wrote; empty when no stack is up (a file left by a killed one counts as none)."""
    try:
        state = dict(json.loads(state_file().read_text()))
    except (OSError, ValueError):
        return {}
    return state if is_alive(int(state.get("pid", 0)), state.get("started")) else {}


def process_start(pid: int) -> float | None:
    """Tells when a process started (Unix seconds); with the pid it tells one from a later one of the same number."""
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None


def is_alive(pid: int, started: float | None) -> bool:
    """Tells whether that very process still runs."""
    now = process_start(pid) if pid > 0 else None
    return now is not None and (started is None or abs(now - started) < 1.0)


def server_address(given: str | None) -> tuple[str, Settings]:
    """Finds the selector to talk to: the one given, else the one of `evomerge up`.

    Raises:
        Unavailable: neither.

    """
    if given:
        return given, Settings.from_env()
    state = read_state()
    if not state:
        raise Unavailable("no stack is up; start one with `evomerge up`, or give --server HOST:PORT")
    return str(state["addresses"]["selector"]), Settings()


def page_beside(selector: str) -> str:
    """Returns host:port of the live page that belongs to a selector; empty where it is not that of `evomerge up`."""
    addresses = read_state().get("addresses", {})
    return str(addresses.get("page", "")) if addresses.get("selector") == selector else ""


def stack_of(out: Path) -> tuple[str, str]:
    """Returns the selector's address and the run id of a run whose command is at work now; empty: none is there."""
    try:
        stack = json.loads((out / HIDDEN / "stack.json").read_text())
        state = RunFolder(out).state()
        if is_alive(int(stack["pid"]), None) and "run_id" in state:
            return str(stack["addresses"]["selector"]), str(state["run_id"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return "", ""
