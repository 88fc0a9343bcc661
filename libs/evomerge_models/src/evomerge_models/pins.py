"""Who keeps which entries of a model store: a person, a run while it is active, a process while it lives.

.pins/<digest>/<owner>   `user`, `run-<id>` or `process-<number>`; the file is empty
.pins/<owner>.lock       held by that process as long as it lives, however it ends
"""

from __future__ import annotations

import atexit
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import quote, unquote

from evomerge_common.runtime.files import lock_file

USER = "user"
_RUN, _PROCESS = "run-", "process-"
RUN_SECONDS = 7 * 24 * 3600.0
"""A run that no downloader has seen for so long is taken for dead."""


def run_owner(run_id: str) -> str:
    """Names the owner that a run is."""
    return f"{_RUN}{run_id}"


class Pins:
    """The pins under a store's root. What is written here is read by every process that has the store."""

    def __init__(self, root: Path) -> None:
        self._root = root / ".pins"

    def add(self, name: str, owner: str) -> None:
        """Pins an entry; again, for a run: says that it is still active."""
        path = self._root / name / quote(owner, safe="")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    def remove(self, name: str, owner: str) -> bool:
        """Takes a pin away; tells whether there was one."""
        try:
            (self._root / name / quote(owner, safe="")).unlink()
        except FileNotFoundError:
            return False
        with suppress(OSError):  # others keep it too
            (self._root / name).rmdir()
        return True

    def release(self, owner: str) -> list[str]:
        """Takes all of an owner's pins away; returns the entries that it had."""
        names = [path.parent.name for path in self._root.glob(f"*/{quote(owner, safe='')}")]
        return [name for name in names if self.remove(name, owner)]

    def owners(self, name: str) -> list[str]:
        """Lists who keeps an entry now, sorted; what dead processes and runs left is removed."""
        found = []
        for path in sorted((self._root / name).glob("*")):
            owner = unquote(path.name)
            if self._is_alive(owner, path):
                found.append(owner)
            else:
                self.remove(name, owner)
        return found

    def runs(self) -> list[str]:
        """Lists the runs that keep anything, by id."""
        found = {unquote(path.name) for path in self._root.glob(f"*/{_RUN}*")}
        return sorted(owner.removeprefix(_RUN) for owner in found)

    def refresh(self, owner: str) -> None:
        """Says that a run is still active."""
        for path in self._root.glob(f"*/{quote(owner, safe='')}"):
            with suppress(FileNotFoundError):
                os.utime(path)

    @contextmanager
    def of_process(self) -> Iterator[str]:
        """Gives an owner whose pins end with the block, or with this process."""
        owner = f"{_PROCESS}{uuid.uuid4().hex}"
        self._root.mkdir(parents=True, exist_ok=True)
        handle = lock_file(self._lock(owner))
        try:
            yield owner
        finally:
            self.release(owner)
            self._lock(owner).unlink(missing_ok=True)
            os.close(handle)

    def of_this_process(self) -> str:
        """Makes an owner whose pins end with this process."""
        kept = ExitStack()
        atexit.register(kept.close)
        return kept.enter_context(self.of_process())

    def _lock(self, owner: str) -> Path:
        return self._root / f"{owner}.lock"

    def _is_alive(self, owner: str, path: Path) -> bool:
        try:
            if owner.startswith(_RUN):
                return time.time() - path.stat().st_mtime < RUN_SECONDS
            if not owner.startswith(_PROCESS):
                return True
            handle = os.open(self._lock(owner), os.O_RDONLY)
        except FileNotFoundError:
            return False
        os.close(handle)
        try:
            handle = lock_file(self._lock(owner), wait=False)
        except BlockingIOError:
            return True
        self._lock(owner).unlink(missing_ok=True)
        os.close(handle)
        return False
