"""What runs inside the sandbox's process: locks itself in, then runs the program. Standard library alone.

Limits and the seccomp filter (see `seccomp.py`) come with the request.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import sys

NO_SANDBOX = 97
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 1, 22, 38, 2
INSTRUCTION = 8
"""Bytes of a struct sock_filter."""


class Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def lock_in(seconds: float, memory: int, rules: bytes) -> None:
    """From here on this process cannot do more than compute, read, and write to what is open."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, 9, 0, 0, 0)
    cpu = max(1, round(seconds + 0.5))
    for limit, value in (
        (resource.RLIMIT_CPU, cpu), (resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 32), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_STACK, 64 << 20),
    ):  # fmt: skip
        resource.setrlimit(limit, (value, value))
    program = Program(len(rules) // INSTRUCTION, rules)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
        PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0
    ):
        raise OSError(ctypes.get_errno(), "seccomp")
    try:
        os.close(os.open("evomerge", os.O_WRONLY | os.O_CREAT, 0o600))
    except PermissionError:
        return
    raise OSError("the filter does not filter")


def main() -> None:
    """Reads the request from stdin, locks itself in, runs the program, says the word."""
    pipe = int(sys.argv[1])
    request = json.loads(sys.stdin.buffer.read())
    try:
        lock_in(request["seconds"], request["memory"], bytes.fromhex(request["rules"]))
    except (OSError, KeyError, AttributeError, ValueError):
        os._exit(NO_SANDBOX)
    word = request["word"].encode()
    names = {"__name__": "__main__", "__builtins__": __builtins__}
    exec(compile(request["program"], "program", "exec"), names)  # noqa: S102 - this is what it is for
    os.write(pipe, word)
    os._exit(0)


if __name__ == "__main__":
    main()
