"""Writes safetensors files whose header is known before the first tensor: any order, any thread."""

from __future__ import annotations

import ctypes
import errno
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from evomerge_common.errors import DiskFull
from evomerge_merging.io.dtypes import element_type
from evomerge_models.headers import TensorSpec, header_bytes

if TYPE_CHECKING:
    import torch
else:
    from evomerge_merging.torch_later import torch


class SafetensorsWriter:
    """One file, to be filled in place. `close` makes it durable; the caller renames it, or the folder it is in.

    Raises:
        DiskFull: no room left.

    """

    def __init__(self, path: Path, tensors: Sequence[TensorSpec], metadata: Mapping[str, str] | None = None) -> None:
        self.path = path
        self._dtypes = {name: dtype for name, _, dtype in tensors}
        header, self._starts = header_bytes(tensors, metadata or {})
        self.bytes = len(header) + sum(math.prod(shape) * dtype.itemsize for _, shape, dtype in tensors)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            self._pwrite(memoryview(header), 0)
            os.ftruncate(self._fd, self.bytes)
        except BaseException:
            self.abort()
            raise

    def write(self, name: str, start: int, values: torch.Tensor) -> None:
        """Puts elements from `start` on; `values` is flat, contiguous and of the tensor's own dtype."""
        if element_type(values.dtype) != self._dtypes[name]:
            raise TypeError(f"{name} is {self._dtypes[name]}, not {values.dtype}")
        if values.numel():
            self.write_raw(name, start, values.reshape(-1).view(torch.uint8).numpy())

    def write_raw(self, name: str, start: int, data: NDArray[np.uint8]) -> None:
        """Puts the bytes of elements from `start` on."""
        if data.size:
            self._pwrite(data.data, self._starts[name] + start * self._dtypes[name].itemsize)

    def close(self, *, durable: bool = True) -> None:
        """Writes it out to the disk and lets it go."""
        try:
            if durable:
                os.fsync(self._fd)
        except OSError as error:
            raise _disk_error(error, self.path) from error
        finally:
            self.abort()

    def abort(self) -> None:
        """Lets it go as it is."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _pwrite(self, data: memoryview, offset: int) -> None:
        done = 0
        while done < len(data):
            try:
                done += os.pwrite(self._fd, data[done:], offset + done)
            except OSError as error:
                raise _disk_error(error, self.path) from error
        _begin_writing(self._fd, offset, len(data))


def _writeback() -> Any:
    """The C function, or None where there is none."""
    function = getattr(ctypes.CDLL(None), "sync_file_range", None)  # of Linux
    if function is not None:
        function.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    return function


_SYNC_FILE_RANGE = _writeback()
_SYNC_FILE_RANGE_WRITE = 2


def _begin_writing(fd: int, offset: int, size: int) -> None:
    """Lets the disk begin with what is in the page cache, so that the sync at the end finds little left to do."""
    if _SYNC_FILE_RANGE is not None:
        _SYNC_FILE_RANGE(fd, offset, size, _SYNC_FILE_RANGE_WRITE)


def _disk_error(error: OSError, path: Path) -> OSError | DiskFull:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return DiskFull(f"no room left for {path}: free some space, or write to another disk")
    return error


def shard(tensors: Sequence[TensorSpec], max_bytes: int) -> list[list[TensorSpec]]:
    """Tensors in order, cut into files of at most `max_bytes` (one tensor alone may be larger)."""
    files: list[list[TensorSpec]] = []
    room = 0
    for spec in tensors:
        size = math.prod(spec[1]) * spec[2].itemsize
        if not files or size > room:
            files.append([])
            room = max_bytes
        files[-1].append(spec)
        room -= size
    return files or [[]]


def write_text(path: Path, text: str) -> None:
    """Writes a small file durably."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
