"""Folders that a process needs while it lives, and that are gone afterwards even when it was killed."""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path

_YOUNG = 60.0
"""Seconds: a folder of that age may be one that another process has made and not locked yet."""
_held: dict[Path, tuple[int, int]] = {}
"""Process and open handle of each: a forked child is no owner."""


def scratch_folder(prefix: str) -> Path:
    """A new, empty folder among the temporary files, until `drop` or the process's end.

    A lock on the folder says that somebody needs it. A kill lets the lock go, and the next call with this prefix
    removes what was left so.
    """
    for stale in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        if _age(stale) > _YOUNG:
            remove_if_abandoned(stale)
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    handle = os.open(folder, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    _held[folder] = os.getpid(), handle
    return folder


def drop(folder: Path) -> None:
    """Removes a folder that `scratch_folder` made in this process; one that is gone already is no error."""
    process, handle = _held.pop(folder, (0, -1))
    if process == os.getpid():
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def remove_if_abandoned(folder: Path) -> None:
    """Removes a folder that no process holds a lock on."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except OSError:
        pass
    finally:
        os.close(handle)


def _age(path: Path) -> float:
    try:
        return time.time() - path.lstat().st_mtime
    except OSError:
        return 0.0


@atexit.register
def _drop_all() -> None:
    for folder in list(_held):
        drop(folder)
