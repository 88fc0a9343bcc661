"""The room on the disk that an embedded stack lives on: without some, neither broker nor services can note anything."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

from evomerge_common.errors import DiskFull

RESERVE = 256 * 1024
"""Bytes below which nobody can be expected to work: a few events, and the logs that say why."""
PATIENCE = 2.0
"""Seconds for which there may be less: a merge that fails gives its room back at once."""
REFUSALS = (b"no space left on device", b"resource limits exceeded")
"""How nats-server says that its store is full. It writes that into its log, answers nobody, and never recovers."""


class Room:
    """Watches the disk of a stack's folder, and what the broker says of it.

    Args:
        folder: where the stack keeps everything.
        broker_log: what nats-server writes into.
        free: tells the bytes left of a folder's disk.

    """

    def __init__(
        self,
        folder: Path,
        broker_log: Path,
        *,
        free: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._log = broker_log
        self._free = free
        self._clock = clock
        self._read = broker_log.stat().st_size if broker_log.exists() else 0  # not what an earlier stack said
        self._short_since: float | None = None

    def check(self, *, patience: float = PATIENCE) -> None:
        """Looks once; costs microseconds.

        Raises:
            DiskFull: there has been too little room for `patience` seconds, or the broker has run out of it.

        """
        free, now = self._free(self._folder), self._clock()
        if self._broker_is_full():
            raise self._error(free)
        if free >= RESERVE:
            self._short_since = None
            return
        self._short_since = now if self._short_since is None else self._short_since
        if now - self._short_since >= patience:
            raise self._error(free)

    def _error(self, free: int) -> DiskFull:
        return DiskFull(
            f"the disk of {self._folder} is full: {free:,} bytes are left, too few for the broker's store and logs; "
            "free some space and run the same command again: it goes on from here"
        )

    def _broker_is_full(self) -> bool:
        try:
            size = self._log.stat().st_size
            if size == self._read:
                return False
            with self._log.open("rb") as file:
                file.seek(self._read if size > self._read else 0)
                text = file.read()
        except OSError:
            return False
        self._read = size
        return any(words in text for words in REFUSALS)
