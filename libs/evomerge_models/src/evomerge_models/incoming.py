"""Downloads under way in a model store.

.incoming/<name>/        the files so far; kept when the download is interrupted
.incoming/<name>.lock    held by whoever writes there
.incoming/<name>.bytes   how much it will be, from when it has asked for room until it ends
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from evomerge_common.runtime.files import lock_file, locked, remove


class Incoming:
    """The folders under a store's root."""

    def __init__(self, root: Path) -> None:
        self._root = root / ".incoming"

    def place(self, name: str) -> Path:
        """Where a download goes, or would."""
        return self._root / quote(name, safe="")

    @contextmanager
    def folder(self, name: str) -> Iterator[Path]:
        """A folder for one download, kept when it fails; a second process or thread waits for the first."""
        folder = self.place(name)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(_beside(folder, "lock")):
            folder.mkdir(exist_ok=True)
            try:
                yield folder
            finally:
                _beside(folder, "bytes").unlink(missing_ok=True)

    def expect(self, folder: Path, size: int) -> None:
        """Notes how many bytes will come into a folder that the caller writes."""
        _beside(folder, "bytes").write_text(str(size))

    def sizes(self, own: Path | None) -> tuple[int, list[tuple[Path, int]]]:
        """Counts the bytes that other processes and threads will need.

        Args:
            own: the folder that the caller writes, which is left out.

        Returns:
            The bytes of downloads under way, and what interrupted ones left: folder and bytes, the oldest first.

        """
        coming, left = 0, []
        folders = [path for path in self._root.glob("*") if path.is_dir() and path != own]
        for folder in sorted(folders, key=lambda path: (path.stat().st_mtime, path)):
            if self._is_written(folder):
                coming += _number(_beside(folder, "bytes"))
            else:
                left.append((folder, _bytes_in(folder)))
        return coming, left

    def drop(self, folder: Path) -> bool:
        """Removes what an interrupted download left, unless somebody goes on with it now; tells whether it did."""
        try:
            handle = lock_file(_beside(folder, "lock"), wait=False)
        except BlockingIOError:
            return False
        remove(folder)
        os.close(handle)
        return True

    @staticmethod
    def _is_written(folder: Path) -> bool:
        try:
            os.close(lock_file(_beside(folder, "lock"), wait=False))
        except BlockingIOError:
            return True
        return False


def _beside(folder: Path, ending: str) -> Path:
    return folder.with_name(f"{folder.name}.{ending}")


def _number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0  # it has not asked for room yet


def _bytes_in(folder: Path) -> int:
    return sum(512 * path.lstat().st_blocks for path in folder.rglob("*") if path.is_file())
