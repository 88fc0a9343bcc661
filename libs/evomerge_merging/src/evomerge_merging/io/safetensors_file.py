"""Reads safetensors files that nobody vouches for.

Layout (https://github.com/huggingface/safetensors): 8 bytes little-endian header length, a JSON header of
{name: {dtype, shape, data_offsets}}, then the tensors' bytes, which must cover the rest without gap or overlap.
Everything that the header says is checked against the file before a byte of it is believed.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from evomerge_common.errors import UnsafeFile
from evomerge_merging.io.dtypes import TYPES, ElementType

if TYPE_CHECKING:
    import torch
else:
    from evomerge_merging.torch_later import torch

MAX_HEADER_BYTES = 100_000_000
MAX_DIMENSIONS = 16
_MAP_NORESERVE = 0x4000


@dataclass(frozen=True)
class TensorInfo:
    """What a header tells of a tensor; `start` and `stop` are byte offsets from the beginning of the file."""

    name: str
    shape: tuple[int, ...]
    dtype: ElementType
    start: int
    stop: int

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


class SafetensorsFile:
    """One open file. `tensors` is known at once; bytes are read when asked for.

    Raises:
        UnsafeFile: the header lies.

    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._map: mmap.mmap | None = None
        try:
            size = os.fstat(self._fd).st_size
            self.tensors, self.metadata = _parse(path, _header(path, self._fd, size), size)
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
            return torch.empty(info.shape, dtype=info.dtype.torch_dtype)
        if self._map is None:
            # Private and writable: torch asks for writable memory, and the file itself is never written.
            self._map = mmap.mmap(
                self._fd, 0, flags=mmap.MAP_PRIVATE | _MAP_NORESERVE, prot=mmap.PROT_READ | mmap.PROT_WRITE
            )
        if info.start % info.dtype.itemsize:
            data = bytearray(self._map[info.start : info.stop])
            return torch.frombuffer(data, dtype=info.dtype.torch_dtype).reshape(info.shape)
        return torch.frombuffer(self._map, dtype=info.dtype.torch_dtype, count=info.numel, offset=info.start).reshape(
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
        dtype = self.tensors[name].dtype.torch_dtype
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


def _header(path: Path, fd: int, size: int) -> bytes:
    if size < 8:
        raise UnsafeFile(f"{path} is no safetensors file: it has {size} bytes; download or copy the model again")
    length = int.from_bytes(os.pread(fd, 8, 0), "little")
    if length > MAX_HEADER_BYTES or length + 8 > size:
        raise UnsafeFile(
            f"{path} is no safetensors file or is cut short: its header claims {length} bytes of a file of {size}"
        )
    return os.pread(fd, length, 8)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} is given twice")
    return found


def _parse(path: Path, header: bytes, size: int) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    try:
        data = json.loads(header.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise UnsafeFile(f"{path} has a header that cannot be read ({error})") from error
    if not isinstance(data, dict):
        raise UnsafeFile(f"{path} has a header that is no object")
    metadata = data.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise UnsafeFile(f"{path} has metadata other than texts")
    origin = 8 + len(header)
    tensors = {name: _info(path, name, entry, origin, size) for name, entry in data.items()}
    end = origin
    for info in sorted(tensors.values(), key=lambda item: (item.start, item.stop)):
        if info.start != end:
            fault = "overlaps another" if info.start < end else "leaves a gap before it"
            raise UnsafeFile(f"{path}: tensor {info.name!r} {fault}; the file is damaged or made to deceive")
        end = info.stop
    if end != size:
        raise UnsafeFile(f"{path}: its tensors end at byte {end} of {size}; the file is damaged or cut short")
    return tensors, metadata


def _info(path: Path, name: str, entry: object, origin: int, size: int) -> TensorInfo:
    def lie(what: str) -> UnsafeFile:
        return UnsafeFile(f"{path}: tensor {name!r} {what}; the file is damaged or made to deceive")

    if not isinstance(entry, Mapping) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise lie("is not described by dtype, shape and data_offsets")
    dtype = TYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise lie(f"has the dtype {entry['dtype']!r}, which is none of {', '.join(TYPES)}")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _naturals(shape) or len(shape) > MAX_DIMENSIONS:
        raise lie(f"has no proper shape ({str(shape)[:80]})")
    if not _naturals(offsets) or len(offsets) != 2:
        raise lie("has no proper data_offsets")
    start, stop = offsets
    if start > stop or origin + stop > size:
        raise lie(f"claims bytes {start} to {stop} of {size - origin}")
    if math.prod(shape) * dtype.itemsize != stop - start:
        raise lie(f"has {stop - start} bytes, but its shape {shape} needs {math.prod(shape) * dtype.itemsize}")
    return TensorInfo(name, tuple(shape), dtype, origin + start, origin + stop)


def _naturals(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**62 for item in value)
