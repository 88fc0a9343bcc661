"""What runs inside the sandbox's process: locks itself in, then runs the program. Standard library alone.

The filter is a seccomp BPF program (Linux, Documentation/userspace-api/seccomp_filter.rst): a list of system calls that
are refused. They are refused with an error, not a kill, so that a program may catch it as it would a full disk.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import resource
import struct
import sys

NO_SANDBOX = 97
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 1, 22, 38, 2
LOAD, JUMP_EQUAL, JUMP_AT_LEAST, JUMP_ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, KILL, REFUSE = 0x7FFF0000, 0x80000000, 0x00050000
NUMBER, ARCHITECTURE, ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data; arguments are 8 bytes each
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

# fmt: off
# Processes and threads, signals to others, sockets, changes to files, limits, namespaces, the kernel's other doors.
REFUSED = {
    "x86_64": (
        56, 57, 58, 59, 322, 62, 200, 234, 129, 297, 424, 434, 438, 101, 310, 311,
        41, 42, 43, 44, 46, 49, 50, 53, 288, 299, 307,
        76, 77, 82, 83, 84, 85, 86, 87, 88, 90, 91, 92, 93, 94, 132, 133, 188, 189, 190, 197, 198, 199, 235, 258, 259,
        260, 261, 263, 264, 265, 266, 268, 280, 285, 316, 452,
        160, 302, 141, 144, 142, 203, 135, 105, 106, 113, 114, 116, 117, 119, 122, 123,
        155, 161, 165, 166, 272, 308, 428, 429, 430, 431, 432, 442,
        29, 30, 31, 64, 68, 240, 246, 163, 167, 168, 169, 170, 171, 172, 173, 175, 176, 179, 164, 227, 248, 249, 250,
        298, 300, 303, 304, 313, 319, 320, 321, 323, 425, 426, 427, 444, 445, 446, 447,
    ),
    "aarch64": (
        220, 221, 281, 129, 130, 131, 138, 240, 424, 434, 438, 117, 270, 271,
        198, 199, 200, 201, 202, 203, 206, 211, 242, 243, 269,
        33, 34, 35, 36, 37, 38, 45, 46, 47, 5, 6, 7, 14, 15, 16, 52, 53, 54, 55, 88, 276, 452,
        164, 261, 140, 118, 119, 122, 92, 144, 145, 146, 147, 149, 143, 151, 152, 159,
        40, 39, 41, 51, 97, 268, 428, 429, 430, 431, 432, 442,
        194, 196, 195, 190, 186, 180, 104, 294, 89, 142, 161, 162, 170, 105, 106, 273, 60, 112, 217, 218, 219,
        241, 262, 264, 265, 279, 280, 282, 425, 426, 427, 444, 445, 446, 447,
    ),
}
ABSENT = {"x86_64": (435, 437), "aarch64": (435, 437)}  # clone3, openat2: a filter cannot see their flags
OPENS = {"x86_64": ((2, 1), (257, 2)), "aarch64": ((56, 2),)}  # open, openat: number and which argument holds the flags
AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# fmt: on


class Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def code(operation: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    """One instruction; `yes` and `no` are how many to skip."""
    return struct.pack("HBBI", operation, yes, no, value)


def build(machine: str) -> bytes:
    """The filter for a kind of machine."""
    refuse = code(RETURN, REFUSE | errno.EPERM)
    lines = [
        code(LOAD, ARCHITECTURE), code(JUMP_EQUAL, AUDIT[machine], 1), code(RETURN, KILL),
        code(LOAD, NUMBER),
        code(JUMP_AT_LEAST, 0x40000000, 0, 1), code(RETURN, KILL),  # x32's numbers
    ]  # fmt: skip
    for number in ABSENT[machine]:
        lines += [code(JUMP_EQUAL, number, 0, 1), code(RETURN, REFUSE | errno.ENOSYS)]
    for number in REFUSED[machine]:
        lines += [code(JUMP_EQUAL, number, 0, 1), refuse]
    for number, argument in OPENS[machine]:
        lines += [
            code(JUMP_EQUAL, number, 0, 4),
            code(LOAD, ARGUMENT + 8 * argument), code(JUMP_ANY_BIT, WRITING, 0, 1), refuse, code(RETURN, ALLOW),
        ]  # fmt: skip
    return b"".join([*lines, code(RETURN, ALLOW)])


def lock_in(seconds: float, memory: int) -> None:
    """From here on this process cannot do more than compute, read, and write to what is open."""
    machine = platform.machine()
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, 9, 0, 0, 0)
    cpu = max(1, round(seconds + 0.5))
    for limit, value in (
        (resource.RLIMIT_CPU, cpu), (resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 32), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_STACK, 64 << 20),
    ):  # fmt: skip
        resource.setrlimit(limit, (value, value))
    program = build(machine)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
        PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(Program(len(program) // 8, program)), 0, 0
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
        lock_in(request["seconds"], request["memory"])
    except (OSError, KeyError, AttributeError, ValueError):
        os._exit(NO_SANDBOX)
    word = request["word"].encode()
    names = {"__name__": "__main__", "__builtins__": __builtins__}
    exec(compile(request["program"], "program", "exec"), names)  # noqa: S102 - this is what it is for
    os.write(pipe, word)
    os._exit(0)


if __name__ == "__main__":
    main()
