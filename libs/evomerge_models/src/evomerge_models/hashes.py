"""SHA-256 of files, remembered as long as a file looks untouched."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from evomerge_common.runtime.files import write_atomically

Key = tuple[int, int, int]

_SETTLED_NS = 2_000_000_000
"""A file written this recently may be written again without its time changing (coarse clocks): not remembered."""


def folder_digest(hashes: dict[str, str]) -> str:
    """SHA-256 (hex) over the sorted "name, NUL, SHA-256 of the file, newline": the identity of a model's files."""
    text = "".join(f"{name}\0{hashes[name]}\n" for name in sorted(hashes))
    return hashlib.sha256(text.encode()).hexdigest()


class HashCache:
    """File hashes kept in one JSON file, keyed by path, size, modification time and inode."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()

    def hashes(self, folder: Path, names: Iterable[str]) -> dict[str, str]:
        """Name → SHA-256 (hex); only files that changed since the last call are read."""
        files = {name: (folder / name).resolve() for name in names}
        before = {name: _key(path) for name, path in files.items()}
        known = self._load()
        found: dict[str, str] = {}
        for name, path in files.items():
            entry = known.get(str(path))
            if entry is not None and tuple(entry[:3]) == before[name]:
                found[name] = str(entry[3])
        unknown = [name for name in files if name not in found]
        if unknown:
            with ThreadPoolExecutor(min(4, len(unknown)), "hash") as pool:
                found |= zip(unknown, pool.map(lambda name: sha256_file(files[name]), unknown), strict=True)
            newest = time.time_ns() - _SETTLED_NS
            self._store(
                {
                    str(files[name]): [*before[name], found[name]]
                    for name in unknown
                    if before[name] == _key(files[name]) and before[name][1] < newest
                }
            )
        return found

    def _load(self) -> dict[str, list[int | str]]:
        try:
            data = json.loads(self._path.read_bytes())
        except (OSError, ValueError):
            return {}  # a cache: without it files are read again
        return data if isinstance(data, dict) else {}

    def _store(self, entries: dict[str, list[int | str]]) -> None:
        if not entries:
            return
        with self._lock:
            whole = {path: entry for path, entry in (self._load() | entries).items() if Path(path).exists()}
            write_atomically(self._path, json.dumps(whole).encode())


def sha256_file(path: Path) -> str:
    """SHA-256 (hex); reads in pieces and leaves the interpreter free meanwhile."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def git_blob_sha1(data: bytes) -> str:
    """The hash under which git, and so the hub, keeps a file that is not in LFS."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _key(path: Path) -> Key:
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ino
