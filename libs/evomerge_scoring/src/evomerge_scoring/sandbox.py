"""Runs programs that a model wrote: in a process of their own, with limits, without files, network and children.

Linux only: the kernel's seccomp filter (see `seccomp.py`) is what keeps a program inside. The limits are CPU seconds,
memory, wall time, open files; writing any file, starting any process or thread, and any socket are refused.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
import secrets
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from evomerge_common.errors import Unavailable
from evomerge_scoring.seccomp import build_filter

LAUNCHER = Path(__file__).with_name("sandboxed.py")
NO_SANDBOX = 97
"""Exit code of a launcher that could not lock itself in; it ran nothing."""
NO_SECCOMP = "this machine cannot lock a process in (Linux on x86_64 or aarch64, with seccomp): no code is run"
START_SECONDS = 5.0
"""Wall time beyond the program's own: the interpreter has to start, on a machine that may be busy."""


@dataclass(frozen=True)
class Verdict:
    """How a program ended: "passed", "failed" (an exception, a wrong exit, a limit) or "timeout"."""

    outcome: str

    @property
    def passed(self) -> bool:
        return self.outcome == "passed"


@dataclass(frozen=True)
class Sandbox:
    """Limits of each program: CPU seconds (and as many of wall time, with some to start), and bytes of memory."""

    seconds: float = 5.0
    memory_bytes: int = 512 << 20

    def run(self, program: str) -> Verdict:
        """Runs it to its end; it passes when its last line was reached.

        Raises:
            Unavailable: this machine cannot lock a process in.

        """
        word = secrets.token_hex(16)
        request = {
            "program": program, "word": word, "seconds": self.seconds, "memory": self.memory_bytes, "rules": _rules(),
        }  # fmt: skip
        reader, writer = os.pipe()
        with tempfile.TemporaryDirectory(prefix="evomerge-sandbox-") as folder:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-B", str(LAUNCHER), str(writer)],
                stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                pass_fds=(writer,), cwd=folder, env={}, start_new_session=True,
            )  # fmt: skip
            os.close(writer)
            try:
                process.communicate(json.dumps(request).encode(), timeout=self.seconds + START_SECONDS)
            except subprocess.TimeoutExpired:
                return Verdict("timeout")
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                with os.fdopen(reader, "rb") as file:
                    said = file.read(64)
        if process.returncode == NO_SANDBOX:
            raise Unavailable(NO_SECCOMP)
        if process.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
            return Verdict("timeout")
        return Verdict("passed" if said == word.encode() else "failed")


@functools.cache
def _rules() -> str:
    """The seccomp filter for this machine, in hex."""
    try:
        return build_filter(platform.machine()).hex()
    except KeyError:
        raise Unavailable(NO_SECCOMP) from None


@functools.cache
def check_sandbox() -> None:
    """Whether programs can be run here, found out with an empty one.

    Raises:
        Unavailable: they cannot.

    """
    verdict = Sandbox(seconds=10.0).run("pass")
    if not verdict.passed:
        raise Unavailable(f"the sandbox does not work on this machine: an empty program {verdict.outcome}")
