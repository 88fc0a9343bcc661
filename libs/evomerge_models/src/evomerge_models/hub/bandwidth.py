"""A limit on bytes a second that all connections of a process share."""

from __future__ import annotations

import threading
import time

READ_BYTES = 256 * 1024
"""Most that is read at once: what a killed process has read and not yet written is less than this."""
_LEAST_READ = 4096


class Bandwidth:
    """A token bucket: whoever has read bytes waits until so many may have come.

    Args:
        rate: bytes a second; 0: no limit.

    """

    def __init__(self, rate: int = 0) -> None:
        self._rate = rate
        self._lock = threading.Lock()
        self._due = 0.0
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
