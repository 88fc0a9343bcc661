"""A file on its way: the bytes so far, and on the disk beside them how far each piece of it is.

<folder>/.parts/<name>         the bytes, each at its place
<folder>/.parts/<name>.pieces  which file it is, and a count of each piece's bytes: a killed process goes on from there

A count is written after its bytes. A power cut may keep the one and lose the other: the hash at the end tells.
"""

from __future__ import annotations

import hashlib
import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from evomerge_common.errors import DiskFull, is_disk_full
from evomerge_models.hub.files import RemoteFile

PARTS = ".parts"
_PIECE_BYTES, _LARGE_PIECE_BYTES, _LARGE = 16 << 20, 64 << 20, 1 << 30
_COUNT = struct.Struct("<Q")
_HASH_BYTES = 1 << 20


class Part:
    """A file of a download. Each piece is written by one thread at a time.

    Attributes:
        pieces: (start, stop) of each, in order.
        done: how many bytes of each piece are there.

    """

    def __init__(self, file: RemoteFile, folder: Path) -> None:
        self.file = file
        self._whole = folder / file.name
        self._bytes_path = folder / PARTS / file.name
        self._counts_path = folder / PARTS / f"{file.name}.pieces"
        self._lock = threading.Lock()
        self._handles: tuple[int, int] | None = None
        self._cut(_LARGE_PIECE_BYTES if file.size >= _LARGE else _PIECE_BYTES)
        if self._whole.is_file() and self._whole.stat().st_size == file.size:
            self._bytes_path = self._whole
            self.done = [stop - start for start, stop in self.pieces]
        else:
            self.done = self._counts()

    @property
    def bytes_done(self) -> int:
        """Counts the bytes that are there."""
        return sum(self.done)

    def write(self, piece: int, data: bytes) -> None:
        """Appends to a piece.

        Raises:
            DiskFull: there is no room.

        """
        bytes_handle, counts_handle = self._open()
        place, rest = self.pieces[piece][0] + self.done[piece], memoryview(data)
        with self._room():
            while rest:
                count = os.pwrite(bytes_handle, rest, place)
                place, rest = place + count, rest[count:]
            self.done[piece] += len(data)
            os.pwrite(counts_handle, _COUNT.pack(self.done[piece]), self._place(piece))

    def restart(self, *, in_one_piece: bool = False) -> None:
        """Forgets every byte; nobody may be writing."""
        self.close()
        for path in (self._whole, self._bytes_path, self._counts_path):
            path.unlink(missing_ok=True)
        self._bytes_path = self._counts_path.with_name(self.file.name)
        if in_one_piece:
            self._cut(max(1, self.file.size))
        self.done = [0] * len(self.pieces)

    def finish(self) -> None:
        """Gives the file its name; where the download goes on later it is hashed again."""
        if self._bytes_path == self._whole:
            self.close()
            return
        self._open()
        self.close()
        with self._room():
            self._whole.parent.mkdir(parents=True, exist_ok=True)
            self._bytes_path.rename(self._whole)
        self._counts_path.unlink(missing_ok=True)

    def close(self) -> None:
        """Closes the files; the next write opens them again."""
        with self._lock:
            for handle in self._handles or ():
                os.close(handle)
            self._handles = None

    # ---- the hash ----

    def hasher(self) -> hashlib._Hash:
        """Makes the hash that the hub tells: SHA-256, or git's SHA-1 of a file that is not in LFS."""
        if self.file.sha256 or not self.file.blob:
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self.file.size, usedforsecurity=False)

    def feed(self, digest: hashlib._Hash, piece: int) -> None:
        """Adds a piece to the hash: straight after it came, while it lies in memory."""
        handle = self._open()[0] if self._bytes_path != self._whole else os.open(self._whole, os.O_RDONLY)
        try:
            start, stop = self.pieces[piece]
            buffer = bytearray(_HASH_BYTES)
            while start < stop:
                count = os.preadv(handle, [memoryview(buffer)[: stop - start]], start)
                if not count:
                    return  # it is shorter than it was: the hash will differ
                digest.update(memoryview(buffer)[:count])
                start += count
        finally:
            if self._bytes_path == self._whole:
                os.close(handle)

    def problem(self, digest: hashlib._Hash) -> str:
        """Says how the hash differs from what the hub tells; "": it does not."""
        found = digest.hexdigest()
        if self.file.sha256:
            return "" if found == self.file.sha256 else f"its SHA-256 is {found}, the hub says {self.file.sha256}"
        if self.file.blob and found != self.file.blob:
            return f"its git hash is {found}, the hub says {self.file.blob}"
        return ""

    # ---- on the disk ----

    def _cut(self, size: int) -> None:
        self.pieces = [(at, min(at + size, self.file.size)) for at in range(0, self.file.size, size)]
        identity = f"{self.file.sha256 or self.file.blob} {self.file.size} {size}"
        self._head = hashlib.sha256(identity.encode()).digest()

    def _place(self, piece: int) -> int:
        return len(self._head) + _COUNT.size * piece

    def _counts(self) -> list[int]:
        nothing = [0] * len(self.pieces)
        try:
            data = self._counts_path.read_bytes()
            if data[: len(self._head)] != self._head or self._bytes_path.stat().st_size != self.file.size:
                return nothing
            counts = [count for (count,) in _COUNT.iter_unpack(data[len(self._head) :])]
        except (OSError, struct.error):
            return nothing
        fits = len(counts) == len(nothing)
        fits = fits and all(c <= stop - start for c, (start, stop) in zip(counts, self.pieces, strict=True))
        return counts if fits else nothing

    @contextmanager
    def _room(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if is_disk_full(error):
                raise DiskFull(f"the disk filled up while {self.file.name} was downloaded; free some room") from error
            raise

    def _open(self) -> tuple[int, int]:
        with self._lock, self._room():
            if self._handles is None:
                self._bytes_path.parent.mkdir(parents=True, exist_ok=True)
                flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
                handle = os.open(self._bytes_path, flags, 0o644)
                counts = os.open(self._counts_path, flags, 0o644)
                self._handles = (handle, counts)
                os.ftruncate(handle, self.file.size)
                os.pwrite(counts, self._head + b"".join(map(_COUNT.pack, self.done)), 0)
                os.ftruncate(counts, self._place(len(self.pieces)))
            return self._handles


def bytes_there(files: tuple[RemoteFile, ...], folder: Path) -> int:
    """Counts what an earlier try left of a download."""
    return sum(Part(file, folder).bytes_done for file in files)
