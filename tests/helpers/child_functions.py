"""What the tests run in a child process: functions of a module, since they are pickled by name."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from evomerge_common.errors import RecipeError
from evomerge_common.runtime.spans import span

STATE = {"calls": 0, "start": 0}


def initialise(start: int) -> None:
    STATE["start"] = start


def broken_initialise() -> None:
    raise RecipeError("bad start")


def add(amount: int) -> int:
    STATE["calls"] += 1
    return STATE["start"] + amount


def calls() -> int:
    return STATE["calls"]


def pid() -> int:
    return os.getpid()


def sleep(seconds: float) -> str:
    time.sleep(seconds)
    return "slept"


def die(number: int = signal.SIGKILL) -> None:
    os.kill(os.getpid(), number)
    time.sleep(5)


def leave() -> None:
    os._exit(3)


def interrupted() -> str:
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.1)
    return "still here"


def fail(kind: str) -> None:
    if kind == "ours":
        raise RecipeError("unknown method 'tise'", ("slices", 0, "method"), file="r.yaml", line=3)
    if kind == "bug":
        raise KeyError("bug")
    raise Awkward("a", "b")


class Awkward(Exception):
    """Does not unpickle."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first}{second}")


def unpicklable() -> object:
    return lambda: None


def big(size: int) -> bytes:
    return b"x" * size


def touch_later(path: Path, seconds: float) -> None:
    time.sleep(seconds)
    path.touch()


def parent() -> int:
    return os.getppid()


def work_in_steps(fail: bool) -> int:
    with span("first"):
        pass
    with span("second", items=3):
        if fail:
            raise RecipeError("bad step")
    return os.getpid()
