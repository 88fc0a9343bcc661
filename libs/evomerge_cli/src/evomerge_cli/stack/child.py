"""`python -m evomerge_cli.stack.child PARENT_PID MODULE`: runs a service that ends when its parent does.
`… PARENT_PID --exec PROGRAM ARGS` becomes another program that does.

It is a launcher rather than a `preexec_fn`, which is unsafe in a process with threads.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys

from evomerge_common.runtime.parent import end_with_parent


def main() -> None:
    """Runs the module as if by `python -m`, or the program."""
    parent, module = int(sys.argv[1]), sys.argv[2]
    if module == "--exec":
        if sys.platform == "linux":  # the setting survives exec; elsewhere the program outlives a killed parent
            end_with_parent(parent, signal.SIGTERM)
        os.execvp(sys.argv[3], sys.argv[3:])
    end_with_parent(parent, signal.SIGTERM)
    sys.argv = [module, *sys.argv[3:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def forked(module: str, parent: int) -> None:
    """Runs the module as if by `python -m`, in a process that a fork server, the parent, has just forked."""
    os.setsid()  # a Ctrl-C in the terminal is for the command
    end_with_parent(parent, signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = [module]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
