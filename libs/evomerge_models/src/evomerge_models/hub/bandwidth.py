"""A limit on bytes a second that all connections of a process share."""

from __future__ import annotations

import threading
import time

READ_BYTES = 256 * 1024
"""Most that is read at once: what a killed process has read and not yet written is less than this."""
CONNECTIONS = 4
_BUSY = 25_000_000
"""Bytes a second that one connection is good for: with a limit, no more are opened than it takes. What the hub's system
and ours hold of a connection that is read slowly is lost when the process is killed."""
_LEAST_READ = 4096


class Bandwidth:
    """A token bucket: whoever has read bytes waits until so many may have come.

    Args:
        rate: bytes a second; 0: no limit.

    Attributes:
        connections: how many a download opens.
        read_bytes: most that is to be read at once.

    """

    def __init__(self, rate: int = 0) -> None:
        self._rate = rate
        self._lock = threading.Lock()
        self._due = 0.0
        self.connections = CONNECTIONS if rate == 0 else max(1, min(CONNECTIONS, rate // _BUSY))
        self.read_bytes = max(_LEAST_READ, min(READ_BYTES, rate // 20)) if rate else READ_BYTES

    def spend(self, count: int) -> None:
        """Waits until `count` more bytes are within the limit; called after each read."""
        if not self._rate:
            return
        with self._lock:
            now = time.monotonic()
            self._due = max(self._due, now) + count / self._rate
            wait = self._due - now
        time.sleep(wait)
