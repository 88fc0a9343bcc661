"""A process that ends when its parent does, however the parent ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

_PR_SET_PDEATHSIG = 1
_WATCH_SECONDS = 0.5


def end_with_parent(parent: int, number: signal.Signals) -> None:
    """Has this process sent a signal when its parent ends; ends it at once where the parent has ended already.

    On Linux the kernel sends it, also after `kill -9` of the parent, also while this process is stuck in native code,
    and also after this process became another program by exec. It sends it when the *thread* that started this
    process ends: a parent starts such children in a thread that lives as long as they may. Elsewhere a thread of this
    process watches for the parent's end.

    Args:
        parent: the process id of the parent, as the parent itself knows it.
        number: the signal.

    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number)
    else:
        threading.Thread(target=_watch, args=(parent, number), name="parent-watch", daemon=True).start()
    if os.getppid() != parent:
        os._exit(0)


def _watch(parent: int, number: signal.Signals) -> None:
    while os.getppid() == parent:
        time.sleep(_WATCH_SECONDS)
    os.kill(os.getpid(), number)
