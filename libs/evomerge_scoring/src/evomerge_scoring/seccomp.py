"""What a program in the sandbox may ask of the kernel: a list of system calls by name; all others are refused.

The list becomes a seccomp filter, a BPF program that the kernel runs before each system call (Linux,
Documentation/userspace-api/seccomp_filter.rst). A refused call gets an error, it does not end the program, so that a
program may catch it as it would a full disk. Numbers are those of the kernel's tables (arch/x86/entry/syscalls/
syscall_64.tbl and include/uapi/asm-generic/unistd.h); None: that architecture has no such call.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Mapping

MACHINES: Mapping[str, int] = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""`platform.machine()` → the kernel's AUDIT_ARCH of it, in the order of the numbers below."""

Numbers = tuple[int | None, int | None]

# fmt: off
ALLOWED: Mapping[str, Numbers] = {
    # Reading, and writing to what is open already: the pipe to the parent and /dev/null. RLIMIT_FSIZE is 0 besides.
    "read": (0, 63), "readv": (19, 65), "pread64": (17, 67), "preadv": (295, 69), "preadv2": (327, 286),
    "write": (1, 64), "writev": (20, 66), "pwrite64": (18, 68), "pwritev": (296, 70), "pwritev2": (328, 287),
    "lseek": (8, 62), "close": (3, 57), "close_range": (436, 436), "dup": (32, 23), "dup2": (33, None),
    "dup3": (292, 24), "pipe": (22, None), "pipe2": (293, 59),
    # Looking at files and folders: `import` does. Opening them is among the calls whose arguments count, below.
    "stat": (4, None), "fstat": (5, 80), "lstat": (6, None), "newfstatat": (262, 79), "statx": (332, 291),
    "statfs": (137, 43), "fstatfs": (138, 44), "access": (21, None), "faccessat": (269, 48), "faccessat2": (439, 439),
    "readlink": (89, None), "readlinkat": (267, 78), "getdents": (78, None), "getdents64": (217, 61),
    "getcwd": (79, 17), "chdir": (80, 49), "fchdir": (81, 50), "umask": (95, 166), "fadvise64": (221, 223),
    "readahead": (187, 213),
    # Memory of its own, and code: `import` maps shared libraries. RLIMIT_AS bounds all of it.
    "brk": (12, 214), "mmap": (9, 222), "munmap": (11, 215), "mremap": (25, 216), "mprotect": (10, 226),
    "madvise": (28, 233), "msync": (26, 227),
    # Waiting for time to pass, or for something that is open.
    "poll": (7, None), "ppoll": (271, 73), "select": (23, None), "pselect6": (270, 72), "epoll_create": (213, None),
    "epoll_create1": (291, 20), "epoll_ctl": (233, 21), "epoll_wait": (232, None), "epoll_pwait": (281, 22),
    "epoll_pwait2": (441, 441), "eventfd": (284, None), "eventfd2": (290, 19), "nanosleep": (35, 101),
    "clock_nanosleep": (230, 115), "pause": (34, None), "sched_yield": (24, 124), "restart_syscall": (219, 128),
    # Clocks, and alarms that ring in its own process.
    "clock_gettime": (228, 113), "clock_getres": (229, 114), "gettimeofday": (96, 169), "time": (201, None),
    "times": (100, 153), "alarm": (37, None), "getitimer": (36, 102), "setitimer": (38, 103),
    # Its own signal handlers. Sending a signal is not here.
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "rt_sigpending": (127, 136),
    "rt_sigtimedwait": (128, 137), "rt_sigsuspend": (130, 133), "sigaltstack": (131, 132),
    # Locks inside the process, and what libc sets up for its one thread. Starting a thread is not here.
    "futex": (202, 98), "set_robust_list": (273, 99), "get_robust_list": (274, 100), "set_tid_address": (218, 96),
    "arch_prctl": (158, None), "rseq": (334, 293), "membarrier": (324, 283),
    # Who and where it is.
    "getpid": (39, 172), "gettid": (186, 178), "getppid": (110, 173), "getpgid": (121, 155), "getpgrp": (111, None),
    "getsid": (124, 156), "getuid": (102, 174), "geteuid": (107, 175), "getgid": (104, 176), "getegid": (108, 177),
    "getgroups": (115, 158), "getresuid": (118, 148), "getresgid": (120, 150), "uname": (63, 160),
    "sysinfo": (99, 179), "getrusage": (98, 165), "getrlimit": (97, 163), "getpriority": (140, 141),
    "getcpu": (309, 168), "sched_getaffinity": (204, 123),
    # Random numbers.
    "getrandom": (318, 278),
    # Its end.
    "exit": (60, 93), "exit_group": (231, 94),
}
"""Calls that are let through whatever their arguments."""

OPENS: Mapping[str, tuple[Numbers, int]] = {"open": ((2, None), 1), "openat": ((257, 56), 2)}
"""Calls that open a file, and which argument holds the flags: let through to read, refused to write or create."""
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

FCNTL: Numbers = (72, 25)
FCNTL_PLAIN = 8
"""Commands below this copy a descriptor, read or set its flags, or lock; F_SETOWN (8) and F_SETSIG (10) would have the
kernel send signals to other processes."""
FCNTL_ALSO = (1030, 1032)  # F_DUPFD_CLOEXEC, F_GETPIPE_SZ

IOCTL: Numbers = (16, 29)
"""No device is open: the answer is the one of a file that is none (`isatty` is False)."""

NEW_CALLS = 424
"""From this number on all architectures number alike, and all calls are newer than 2019: told that the kernel does not
have them, libc takes an older way (clone for clone3, openat for openat2), which this filter can judge."""
# fmt: on

_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER, _ARCHITECTURE, _ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data; arguments are 8 bytes each
_X32 = 0x40000000  # numbers of x86_64's other calling convention start here


def build_filter(machine: str) -> bytes:
    """The filter for a kind of machine: an array of struct sock_filter.

    Args:
        machine: as `platform.machine()` names it.

    Raises:
        KeyError: no such machine is known.

    """
    column = {name: place for place, name in enumerate(MACHINES)}[machine]
    allow, refuse = _line(_RETURN, _ALLOW), _line(_RETURN, _ERROR | errno.EPERM)
    lines = [
        _line(_LOAD, _ARCHITECTURE), _line(_JUMP_EQUAL, MACHINES[machine], 1), _line(_RETURN, _KILL),
        _line(_LOAD, _NUMBER), _line(_JUMP_AT_LEAST, _X32, 0, 1), _line(_RETURN, _KILL),
    ]  # fmt: skip
    for numbers in ALLOWED.values():
        lines += _when(numbers[column], [allow])
    for numbers, flags in OPENS.values():
        load = _line(_LOAD, _ARGUMENT + 8 * flags)
        lines += _when(numbers[column], [load, _line(_JUMP_ANY_BIT, WRITING, 0, 1), refuse, allow])
    commands = [_line(_LOAD, _ARGUMENT + 8), _line(_JUMP_AT_LEAST, FCNTL_PLAIN, 1), allow]
    for command in FCNTL_ALSO:
        commands += _when(command, [allow])
    lines += _when(FCNTL[column], [*commands, refuse])
    lines += _when(IOCTL[column], [_line(_RETURN, _ERROR | errno.ENOTTY)])
    lines += [_line(_JUMP_AT_LEAST, NEW_CALLS, 0, 1), _line(_RETURN, _ERROR | errno.ENOSYS), refuse]
    return b"".join(lines)


def _line(operation: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    """One instruction; `yes` and `no` are how many to skip."""
    return struct.pack("HBBI", operation, yes, no, value)


def _when(number: int | None, then: list[bytes]) -> list[bytes]:
    """Instructions for what was loaded, if it is this number; they must end in a return."""
    return [] if number is None else [_line(_JUMP_EQUAL, number, 0, len(then)), *then]
