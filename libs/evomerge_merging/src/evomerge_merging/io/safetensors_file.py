"""Reads the tensors of a safetensors file; its header is read and checked by `evomerge_models.headers`."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from evomerge_common.errors import UnsafeFile
from evomerge_merging.io.dtypes import torch_dtype
from evomerge_models.headers import read_header
from evomerge_models.quantised import check_plain

if TYPE_CHECKING:
    import torch
else:
    from evomerge_merging.torch_later import torch

_MAP_NORESERVE = 0x4000


class SafetensorsFile:
    """One open file. `tensors` is known at once; bytes are read when asked for.

    Raises:
        UnsafeFile: the header lies.
        QuantisedModel: codes and scales in place of weights.

    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._map: mmap.mmap | None = None
        try:
            header = read_header(path, self._fd)
            self.tensors, self.metadata = header.tensors, header.metadata
            check_plain({}, {name: info.dtype.name for name, info in self.tensors.items()}, str(path))
        except BaseException:
            os.close(self._fd)
            self._fd = -1
            raise

    def close(self) -> None:
        """Lets the file go; tensors of `tensor` stay valid, since they hold the mapping."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._map = None

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            self.close()

    def __enter__(self) -> SafetensorsFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def tensor(self, name: str) -> torch.Tensor:
        """The whole tensor, mapped (copy on write), not copied. Shape and dtype as stored."""
        info = self.tensors[name]
        if info.numel == 0:
            return torch.empty(info.shape, dtype=torch_dtype(info.dtype))
        if self._map is None:
            # Private and writable: torch asks for writable memory, and the file itself is never written.
            self._map = mmap.mmap(
                self._fd, 0, flags=mmap.MAP_PRIVATE | _MAP_NORESERVE, prot=mmap.PROT_READ | mmap.PROT_WRITE
            )
        if info.start % info.dtype.itemsize:
            data = bytearray(self._map[info.start : info.stop])
            return torch.frombuffer(data, dtype=torch_dtype(info.dtype)).reshape(info.shape)
        return torch.frombuffer(self._map, dtype=torch_dtype(info.dtype), count=info.numel, offset=info.start).reshape(
            info.shape
        )

    def rows(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        """Some rows of a tensor, copied; the pages that were mapped for it are let go, so that memory stays small.

        Raises:
            UnsafeFile: the file became shorter.

        """
        info = self.tensors[name]
        if os.fstat(self._fd).st_size < info.stop:
            raise UnsafeFile(f"{self.path} became shorter while it was read; download or copy the model again")
        result = self.tensor(name)[rows]
        if self._map is not None and info.numel:
            start = info.start // mmap.PAGESIZE * mmap.PAGESIZE
            self._map.madvise(mmap.MADV_DONTNEED, start, info.stop - start)
        return result

    def block(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Elements [start, stop) of the flattened tensor; see `raw`."""
        dtype = torch_dtype(self.tensors[name].dtype)
        if start >= stop:
            return torch.empty(0, dtype=dtype)
        return torch.from_numpy(self.raw(name, start, stop)).view(dtype)

    def place(self, name: str) -> tuple[int, int]:
        """The descriptor of the file and the tensor's first byte in it, for who reads it without Python."""
        return self._fd, self.tensors[name].start

    def raw(self, name: str, start: int, stop: int) -> NDArray[np.uint8]:
        """The bytes of elements [start, stop) of the flattened tensor, read with `pread`.

        In cache-sized pieces this is faster than touching mapped pages, keeps the file out of the process's resident
        memory, and tells a file truncated behind our back by an error rather than a bus error.

        Raises:
            UnsafeFile: the file became shorter.

        """
        info = self.tensors[name]
        wanted = (stop - start) * info.dtype.itemsize
        raw: NDArray[np.uint8] = np.empty(wanted, np.uint8)
        view = raw.data
        offset, done = info.start + start * info.dtype.itemsize, 0
        while done < wanted:
            count = os.preadv(self._fd, [view[done:]], offset + done)
            if count == 0:
                raise UnsafeFile(f"{self.path} became shorter while it was read; download or copy the model again")
            done += count
        return raw
