"""The header of a safetensors file that nobody vouches for: the one reader of it, without torch.

Layout (https://github.com/huggingface/safetensors): 8 bytes little-endian header length, a JSON header of
{name: {dtype, shape, data_offsets}}, then the tensors' bytes, which must cover the rest without gap or overlap.
Everything that the header says is checked against the file before a byte of it is believed. What the safetensors
library refuses is refused; where this reader is stricter, `tests/helpers/headers.py` says so, case by case.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evomerge_common.errors import UnsafeFile
from evomerge_models.dtypes import TYPES, ElementType

MAX_HEADER_BYTES = 100_000_000
"""The limit of the format itself."""
MAX_DIMENSIONS = 16
LENGTH_BYTES = 8
_MAX_NATURAL = 2**62
_MAX_BITS = 2**64
"""A product of sizes that reaches it overflows where the library computes it, also if a later size is zero."""
_AGAIN = "; the file is cut short, damaged or made to deceive: save it anew, or fetch it again"


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


@dataclass(frozen=True)
class Header:
    """A file's tensors by name, in the header's order, and its free texts."""

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str] = field(default_factory=dict)


def read_header(path: Path, fd: int | None = None) -> Header:
    """Reads and checks the header of a safetensors file; no tensor is read.

    Args:
        path: of the file; how errors call it.
        fd: the file, open for reading, where the caller goes on reading from it; its position stays.

    Raises:
        UnsafeFile: it is no safetensors file, or its header does not fit the file.

    """
    if fd is None:
        with path.open("rb") as file:
            return read_header(path, file.fileno())
    size = os.fstat(fd).st_size
    length = header_length(path, size, os.pread(fd, LENGTH_BYTES, 0))
    return parse_header(path, size, os.pread(fd, length, LENGTH_BYTES))


def header_length(path: Path, size: int, beginning: bytes) -> int:
    """Reads how long the header behind the first eight bytes is.

    Args:
        path: of the file; how errors call it.
        size: of the file in bytes.
        beginning: its first eight bytes, or as many as there are; more do no harm.

    Raises:
        UnsafeFile: the file has no room for it, or nobody needs one so long.

    """
    length = int.from_bytes(beginning[:LENGTH_BYTES], "little") if size >= LENGTH_BYTES else -1
    if not 0 <= length <= min(size - LENGTH_BYTES, MAX_HEADER_BYTES):
        claim = f"its header claims {length} bytes of a file of {size}" if length >= 0 else f"it has {size} bytes"
        raise UnsafeFile(f"{path} is no safetensors file: {claim}{_AGAIN}")
    return length


def parse_header(path: Path, size: int, raw: bytes) -> Header:
    """Reads and checks a header, wherever its bytes came from; see `read_header`.

    Args:
        path: of the file; how errors call it.
        size: of the file in bytes.
        raw: the header, without the eight bytes before it.

    Raises:
        UnsafeFile: it is none, or does not fit the file.

    """
    data = _object(path, raw)
    metadata = data.pop("__metadata__", None) or {}
    origin = LENGTH_BYTES + len(raw)
    tensors = {name: _tensor(path, name, entry, origin, size) for name, entry in data.items()}
    _check_cover(path, tensors, origin, size)
    return Header(tensors, metadata)


def _object(path: Path, raw: bytes) -> dict[str, Any]:
    """The header's JSON, with metadata of texts, if it has any."""
    try:
        # Python reads -0 as a whole number; the library, as JSON has it, does not.
        data = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique, parse_int=_natural if b"-0" in raw else None)
        if not isinstance(data, dict):
            raise UnsafeFile(f"{path} has a header that is no JSON object{_AGAIN}")
        metadata = data.get("__metadata__")
        if metadata is not None and not (
            isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
        ):
            raise UnsafeFile(f"{path} has metadata other than texts{_AGAIN}")
        for text in (*data, *(metadata or {}), *(metadata or {}).values()):
            text.encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise UnsafeFile(f"{path} has a header that cannot be read as JSON ({error}){_AGAIN}") from error
    return data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} is given twice")
    return found


def _natural(text: str) -> int:
    if text == "-0":
        raise ValueError("-0 is no whole number")
    return int(text)


def _tensor(path: Path, name: str, entry: object, origin: int, size: int) -> TensorInfo:
    def lie(what: str) -> UnsafeFile:
        return UnsafeFile(f"{path}: tensor {name!r} {what}{_AGAIN}")

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
    bits = _bits(shape, dtype)
    if bits != (stop - start) * 8:
        raise lie(f"has {stop - start} bytes, but its shape {shape} needs {bits / 8:g}")
    return TensorInfo(name, tuple(shape), dtype, origin + start, origin + stop)


def _bits(shape: list[int], dtype: ElementType) -> float:
    """Bits of a tensor; infinite where they overflow on the way."""
    bits = 1
    for size in (*shape, dtype.bits):
        bits *= size
        if bits >= _MAX_BITS:
            return math.inf
    return bits


def _naturals(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < _MAX_NATURAL for item in value)


def _check_cover(path: Path, tensors: Mapping[str, TensorInfo], origin: int, size: int) -> None:
    """The tensors must follow each other without gap or overlap, from the header to the end of the file."""
    end = origin
    for info in sorted(tensors.values(), key=lambda item: (item.start, item.stop)):
        if info.start != end:
            fault = "overlaps another" if info.start < end else "leaves a gap before it"
            raise UnsafeFile(f"{path}: tensor {info.name!r} {fault}{_AGAIN}")
        end = info.stop
    if end != size:
        raise UnsafeFile(f"{path}: its tensors end at byte {end} of {size}{_AGAIN}")


TensorSpec = tuple[str, tuple[int, ...], ElementType]
"""Name, shape and element type of a tensor to write."""


def header_bytes(tensors: Sequence[TensorSpec], metadata: Mapping[str, str]) -> tuple[bytes, dict[str, int]]:
    """Makes the beginning of a file, and tells each tensor's byte offset in the file.

    Wide elements come first, so that every tensor is aligned to its element.
    """
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    starts: dict[str, int] = {}
    at = 0
    for name, shape, dtype in sorted(tensors, key=lambda item: (-item[2].itemsize, item[0])):
        stop = at + math.prod(shape) * dtype.itemsize
        entries[name] = {"dtype": dtype.name, "shape": list(shape), "data_offsets": [at, stop]}
        starts[name], at = at, stop
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    start = LENGTH_BYTES + len(text)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text, {name: start + at for name, at in starts.items()}
