"""Folders that a process needs while it lives, and that are gone afterwards even when it was killed."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import time
from pathlib import Path

from evomerge_common.runtime.files import lock_folder, remove_if_abandoned

_YOUNG = 60.0
"""Seconds: a folder of that age may be one that another process has made and not locked yet."""
_owners: dict[Path, tuple[int, int]] = {}
"""Process and open handle of each: a forked child is no owner."""


def scratch_folder(prefix: str) -> Path:
    """Makes a new, empty folder among the temporary files, which stays until `drop` or the process's end.

    A lock on the folder says that somebody needs it. A kill lets the lock go, and the next call with this prefix
    removes what was left so.
    """
    for stale in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        if _age(stale) > _YOUNG:
            remove_if_abandoned(stale)
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    _owners[folder] = os.getpid(), lock_folder(folder)
    return folder


def drop(folder: Path) -> None:
    """Removes a folder that `scratch_folder` made in this process; one that is gone already is no error."""
    process, handle = _owners.pop(folder, (0, -1))
    if process == os.getpid():
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def _age(path: Path) -> float:
    """Seconds since the folder changed; 0 where it is gone."""
    try:
        return time.time() - path.lstat().st_mtime
    except OSError:
        return 0.0


@atexit.register
def _drop_all() -> None:
    for folder in list(_owners):
        drop(folder)
