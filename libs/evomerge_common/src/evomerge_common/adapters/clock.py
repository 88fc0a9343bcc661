"""The machine's clock."""

from __future__ import annotations

import asyncio
import time


class SystemClock:
    """Unix time and real waiting."""

    def now(self) -> float:
        """Returns Unix seconds."""
        return time.time()

    async def sleep(self, seconds: float) -> None:
        """Waits for some seconds."""
        await asyncio.sleep(seconds)
