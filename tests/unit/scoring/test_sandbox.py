"""The sandbox of programs that models write: what gets through, what does not, and the list that says so."""

from __future__ import annotations

import ctypes
import ctypes.util
import time
from pathlib import Path

import pytest

from evomerge_scoring.sandbox import Sandbox
from evomerge_scoring.seccomp import ALLOWED, FCNTL, IOCTL, MACHINES, NEW_CALLS, OPENS, build_filter


def test_programs_stay_in_the_sandbox(tmp_path: Path) -> None:
    """One at a time what a program must not do; each is checked inside by the error that it gets."""
    box = Sandbox(seconds=20, memory_bytes=256 << 20)
    target = tmp_path / "written"
    assert box.run("assert sum(range(10)) == 45\nimport math, re, json, collections").passed
    for program in (
        f"open({str(target)!r}, 'w')",
        "open('here', 'w')",
        "import os; os.unlink('/etc/hostname')",
        "import socket; socket.socket()",
        "import os; os.fork()",
        "import subprocess; subprocess.run(['true'])",
        "import threading; threading.Thread(target=print).start()",
        "import os; os.kill(os.getppid(), 9)",
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
        "x = bytearray(1 << 30)",
    ):
        caught = (
            f"try:\n    {program}\nexcept (OSError, RuntimeError, MemoryError, ValueError):\n    pass\nelse:\n    1/0"
        )
        assert box.run(caught).passed, program
        assert not box.run(program).passed, program
    for program in ("assert False", "def", "raise SystemExit(0)", "import os; os._exit(0)", "print('x' * 10**7); 1/0"):
        assert box.run(program).outcome == "failed", program
    assert not target.exists()


def test_a_hanging_program_is_ended() -> None:
    start = time.monotonic()
    assert Sandbox(seconds=0.5).run("while True: pass").outcome == "timeout"
    assert time.monotonic() - start < 15


@pytest.mark.parametrize(
    "program",
    [
        "import fcntl, os; r, w = os.pipe(); fcntl.fcntl(r, fcntl.F_SETOWN, os.getppid())",
        "import fcntl, os; r, w = os.pipe(); fcntl.fcntl(r, 10, 9)",
        "import fcntl, os, struct; r, w = os.pipe(); fcntl.ioctl(r, 0x8901, struct.pack('i', os.getppid()))",
        "import ctypes; assert ctypes.CDLL(None).prctl(4, 1, 0, 0, 0) == 0",
        "import os; os.memfd_create('x')",
        "import os; os.link('/etc/hostname', 'x')",
        "import os; os.open('.', os.O_TMPFILE | os.O_RDWR)",
        "import signal, os; signal.pidfd_send_signal(os.pidfd_open(os.getppid()), 9)",
    ],
)
def test_there_is_no_way_around(program: str) -> None:
    """A signal by way of a descriptor's owner, and other doors of the kernel."""
    assert not Sandbox(seconds=20).run(program).passed


@pytest.mark.parametrize(
    "program",
    [
        "import decimal, fractions, hashlib, itertools, random, statistics, string, datetime, functools, zoneinfo, ssl",
        "import os, tempfile, pathlib; assert pathlib.Path('/').is_dir() and os.listdir('.') == []",
        "import sqlite3; assert sqlite3.connect(':memory:').execute('select 1 + 1').fetchone() == (2,)",
        "import signal, time; signal.signal(signal.SIGALRM, lambda *_: None); signal.alarm(5); time.sleep(0.01)",
        "import os, select; r, w = os.pipe(); os.write(w, b'x'); assert select.select([r], [], [], 1)[0] == [r]",
        "import os; assert os.get_inheritable(os.dup(1)) is False and not os.isatty(1) and os.cpu_count()",
        "import ctypes, mmap, secrets, uuid; mmap.mmap(-1, 4096)[0:2] = b'ab'; uuid.uuid4()",
        "text = open('/proc/self/status').read(); assert 'Seccomp:\\t2' in text; print(text)",
    ],
)
def test_what_a_program_of_the_standard_library_needs_is_there(program: str) -> None:
    assert Sandbox(seconds=20).run(program).passed


def test_names_and_numbers_are_the_kernels() -> None:
    """By libseccomp's own tables, where it is installed."""
    name = ctypes.util.find_library("seccomp")
    if name is None:
        pytest.skip("no libseccomp here")
    library = ctypes.CDLL(name)
    every = {**ALLOWED, **{call: numbers for call, (numbers, _) in OPENS.items()}, "fcntl": FCNTL, "ioctl": IOCTL}
    for place, architecture in enumerate(MACHINES.values()):
        for call, numbers in every.items():
            found = library.seccomp_syscall_resolve_name_arch(ctypes.c_uint32(architecture), call.encode())
            assert numbers[place] == (found if found >= 0 else None), call
        new = [call for call, numbers in every.items() if (numbers[place] or 0) >= NEW_CALLS]
        assert set(new) == {"close_range", "faccessat2", "epoll_pwait2"}


@pytest.mark.parametrize("machine", MACHINES)
def test_a_filter_is_short_and_names_no_call_twice(machine: str) -> None:
    numbers = [numbers[list(MACHINES).index(machine)] for numbers in (*ALLOWED.values(), FCNTL, IOCTL)]
    known = [number for number in numbers if number is not None]
    assert len(set(known)) == len(known)
    assert len(build_filter(machine)) % 8 == 0
    assert len(build_filter(machine)) // 8 < 4096, "BPF_MAXINSNS"
    with pytest.raises(KeyError):
        build_filter("vax")
