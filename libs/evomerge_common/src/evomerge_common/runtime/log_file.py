"""A log file of bounded size that several processes write: a service, the child process where its torch is, libraries.

Each of them writes to its own standard error. Whoever finds the file full renames it, and everybody moves to the new
one with their next line: no line is copied, cut or held back, so none is lost, however a process ends.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import sys
from pathlib import Path

from evomerge_common.runtime.files import lock_file

SET_ASIDE = 2
"""Files set aside, `.1` the latest."""
_MODE = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC


class SharedLogHandler(logging.StreamHandler):
    """Writes to standard error, which is `path` from now on.

    Args:
        path: the log file.
        size: bytes after which it is set aside; 0: never.

    """

    def __init__(self, path: Path, size: int) -> None:
        super().__init__(sys.stderr)
        self._path = path
        self._size = size
        path.parent.mkdir(parents=True, exist_ok=True)
        self._follow()

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one line; called by logging."""
        with contextlib.suppress(OSError):  # a log that cannot be set aside is written on
            if self._size and self._follow() >= self._size:
                self._set_aside()
                self._follow()
        super().emit(record)

    def _follow(self) -> int:
        """Has standard error go to the file that has the path now; returns that one's bytes."""
        ours = os.fstat(2)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(ours, self._path.stat()):
                return ours.st_size
        sys.stderr.flush()
        handle = os.open(self._path, _MODE, 0o644)
        try:
            both = os.path.samestat(ours, os.fstat(1))
            os.dup2(handle, 2)
            if both:
                os.dup2(handle, 1)
            return os.fstat(2).st_size
        finally:
            os.close(handle)

    def _set_aside(self) -> None:
        handle = lock_file(self._path)
        try:
            now = os.fstat(handle)
            if now.st_size < self._size or not os.path.samestat(now, self._path.stat()):
                return  # somebody else has just done it
            names = [self._path, *(self._path.with_name(f"{self._path.name}.{i + 1}") for i in range(SET_ASIDE))]
            for newer, older in reversed(list(itertools.pairwise(names))):
                with contextlib.suppress(FileNotFoundError):
                    newer.replace(older)
        finally:
            os.close(handle)
