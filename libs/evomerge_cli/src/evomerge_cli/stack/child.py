"""`python -m evomerge_cli.stack.child PARENT_PID MODULE`: runs a service that dies when its parent does.
`… PARENT_PID --exec PROGRAM ARGS` becomes another program that does.

Even `kill -9` of the parent leaves nothing behind: Linux sends the signal itself (PR_SET_PDEATHSIG); elsewhere a
thread watches the parent's pid. It is a launcher rather than a `preexec_fn`, which is unsafe in a process with threads.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys
import threading
import time

PR_SET_PDEATHSIG = 1
WATCH_SECONDS = 0.5


def die_with_parent(parent: int) -> None:
    """Asks for SIGTERM when the parent ends; ends at once if it has ended already."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    else:
        threading.Thread(target=_watch, args=(parent,), name="parent-watch", daemon=True).start()
    if os.getppid() != parent:
        sys.exit(0)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(WATCH_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """Runs the module as if by `python -m`, or the program."""
    parent, module = int(sys.argv[1]), sys.argv[2]
    if module == "--exec":
        if sys.platform == "linux":  # the setting survives exec; elsewhere the program outlives a killed parent
            die_with_parent(parent)
        os.execvp(sys.argv[3], sys.argv[3:])
    die_with_parent(parent)
    sys.argv = [module, *sys.argv[3:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
