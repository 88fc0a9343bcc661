"""Files that are counted while the hub's client sends them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import FileIO
from typing import Any

from evomerge_models.hub.push_plan import LocalFile

Progress = Callable[[int, int], None]
"""Called with (bytes sent or found there, bytes in all)."""


class Counter:
    """Bytes read for sending, over all files; a file that is read again after an error counts once."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._total, self._progress = total, progress
        self._read: dict[str, int] = {}
        self._lock = threading.Lock()
        self._stopped = False

    def stop(self) -> None:
        """Has every file that is being sent end with an error at its next read."""
        self._stopped = True

    def read(self, name: str, position: int) -> None:
        """Takes note that a file is read up to a position."""
        if self._stopped:
            raise OSError("the push was stopped")
        with self._lock:
            self._read[name] = max(position, self._read.get(name, 0))
            if self._progress is not None:
                self._progress(sum(self._read.values()), self._total)


class _CountedFile(FileIO):
    def __init__(self, path: str, name: str, counter: Counter) -> None:
        super().__init__(path, "rb")
        self._place, self._counter = name, counter

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(-1 if size is None else size)
        self._counter.read(self._place, self.tell())
        return data or b""


def additions(hub: Any, files: Sequence[LocalFile], counter: Counter) -> list[Any]:
    """The client's operations, whose files are counted while they are sent."""

    class Addition(hub.CommitOperationAdd):
        @contextmanager
        def as_file(self, with_tqdm: bool = False) -> Iterator[Any]:
            if not with_tqdm or not isinstance(self.path_or_fileobj, str):
                with super().as_file() as file:
                    yield file
                return
            with _CountedFile(self.path_or_fileobj, self.path_in_repo, counter) as file:
                yield file

    return [Addition(path_in_repo=file.name, path_or_fileobj=file.content) for file in files]
