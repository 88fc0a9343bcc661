"""Files that are whole or not there, and locks that end with their process."""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def write_atomically(path: Path, data: bytes | str) -> None:
    """Writes a file: all of it or nothing, also after a power cut. Its folder is made if it is missing.

    Args:
        path: the file; one that is there is replaced.
        data: the content; text is written as UTF-8.

    """
    with replacing(path) as fresh, fresh.open("wb") as file:
        file.write(data.encode() if isinstance(data, str) else data)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a name beside `path` for a new file, and renames the file to `path` when it is complete.

    Where the caller raises, what it wrote is removed and `path` stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = unique_sibling(path)
    try:
        yield fresh
        sync(fresh)
        fresh.replace(path)
        sync(path.parent)
    finally:
        fresh.unlink(missing_ok=True)


def unique_sibling(path: Path) -> Path:
    """Makes a hidden name beside `path` that nobody else uses: `.<name>.partial-<pid>-<thread>-<time>`."""
    return path.with_name(f".{path.name}.partial-{os.getpid()}-{threading.get_ident()}-{time.monotonic_ns()}")


def sync(path: Path | str) -> None:
    """Has the disk write down a file, or which names a folder holds."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Has the disk write down everything in a folder; links are left alone."""
    for parent, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(parent, name)
            if not os.path.islink(path):
                sync(path)
        sync(parent)


def remove(path: Path) -> None:
    """Removes a link, a file or a whole folder; nothing happens when it is gone."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Gives an empty folder beside `path` to write in, and renames it to `path` when it is complete.

    Where the caller raises, everything is as it was, missing parents of `path` too. Of a process that was killed
    meanwhile the next call for the same `path` removes what is left.
    """
    path = path.absolute()
    missing = [parent for parent in path.parents if not parent.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    for stale in path.parent.glob(f".{path.name}.partial-*"):
        remove_if_abandoned(stale)
    fresh = unique_sibling(path)
    fresh.mkdir()
    handle = lock_folder(fresh)  # says that this folder is in work
    try:
        yield fresh
        os.fsync(handle)
        fresh.rename(path)
        sync(path.parent)
    except BaseException:
        remove(fresh)
        for parent in missing:
            with suppress(OSError):
                parent.rmdir()
        raise
    finally:
        os.close(handle)


def remove_if_abandoned(folder: Path) -> None:
    """Removes a folder that no process holds a lock on."""
    try:
        handle = lock_folder(folder, wait=False)
    except OSError:
        return
    try:
        remove(folder)
    finally:
        os.close(handle)


def lock_file(path: Path, *, wait: bool = True) -> int:
    """Locks a file, which is made if it is missing; see `_lock`."""
    return _lock(path, os.O_RDWR | os.O_CREAT, wait)


def lock_folder(path: Path, *, wait: bool = True) -> int:
    """Locks a folder that is there, no link to one; see `_lock`."""
    return _lock(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, wait)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock of a file, waiting for whoever has it."""
    handle = lock_file(path)
    try:
        yield
    finally:
        os.close(handle)


def _lock(path: Path, flags: int, wait: bool) -> int:
    """Returns the handle that holds the lock: it goes when that is closed, or with the process, however it ends.

    Some network file systems take a lock and keep nobody out.

    Raises:
        BlockingIOError: another holds it, and `wait` is off.
        OSError: the file cannot be opened.

    """
    handle = os.open(path, flags | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BaseException:
        os.close(handle)
        raise
    return handle
