"""When this command was given."""

from __future__ import annotations

import os
import time
from pathlib import Path

_LOADED = time.time()
_STARTED_FIELD = 22  # of /proc/PID/stat, from 1 on: clock ticks since the machine's start


def given_at() -> float:
    """Returns when this process began, in Unix seconds, to a hundredth; without /proc, when this module was loaded."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[_STARTED_FIELD - 3])  # the name ends the second field
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return _LOADED
    return time.time() - age
