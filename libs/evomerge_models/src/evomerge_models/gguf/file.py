"""Reads GGUF files that nobody vouches for: every count, length and offset is checked before it is believed.

Layout: "GGUF", version, number of tensors, number of metadata entries, the entries, the tensors' descriptions, padding
to `general.alignment`, then the tensors' bytes. Versions 2 and 3, little-endian.
"""

from __future__ import annotations

import itertools
import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray

from evomerge_common.errors import ModelError, UnsafeFile

MAX_HEADER_BYTES = 512_000_000
MAX_ELEMENTS = 16_000_000
"""Of all metadata arrays together; the largest vocabularies have 262,144 tokens and half a million merges."""
MAX_TENSORS = 1_000_000
MAX_NAME_BYTES = 64
_READ_AHEAD = 1 << 22
_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_NATIVE: dict[GGMLQuantizationType, str] = {
    GGMLQuantizationType.F32: "<f4",
    GGMLQuantizationType.F16: "<f2",
    GGMLQuantizationType.BF16: "<u2",
    GGMLQuantizationType.F64: "<f8",
    GGMLQuantizationType.I8: "<i1",
    GGMLQuantizationType.I16: "<i2",
    GGMLQuantizationType.I32: "<i4",
    GGMLQuantizationType.I64: "<i8",
}


@dataclass(frozen=True)
class GgufTensor:
    """One tensor: `shape` in the order of torch and numpy (rows first), `start` in bytes from the file's beginning."""

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    start: int
    bytes: int

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def is_quantised(self) -> bool:
        """Whether its elements share scales in blocks."""
        return self.type not in _NATIVE


class GgufFile:
    """One open file: `metadata` (key → number, text, bool or list) and `tensors` (name → description).

    Raises:
        UnsafeFile: it is cut short, or its header lies.
        ModelError: a version or a tensor type that is not read.

    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.size = os.fstat(self._fd).st_size
            cursor = _Cursor(path, self._fd, self.size)
            self.version, tensor_count, entry_count = _start(cursor)
            self.metadata, self.value_types = _metadata(cursor, entry_count)
            self.tensors = _tensors(cursor, tensor_count, self._alignment())
        except BaseException:
            self.close()
            raise

    def _alignment(self) -> int:
        value = self.metadata.get("general.alignment", 32)
        if type(value) is not int or not 1 <= value <= 1 << 20 or value & (value - 1):
            raise UnsafeFile(f"{self.path}: general.alignment is {value!r}, not a power of two; fetch the file again")
        return value

    def close(self) -> None:
        """Lets the file go."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> GgufFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def architecture(self) -> str:
        """`general.architecture`; "" when it is missing."""
        value = self.metadata.get("general.architecture", "")
        return value if isinstance(value, str) else ""

    def raw(self, name: str, start_row: int = 0, stop_row: int | None = None) -> NDArray[np.uint8]:
        """The stored bytes of some rows (all of them: a flat array); a row is the last dimension.

        Raises:
            UnsafeFile: the file became shorter.

        """
        tensor = self.tensors[name]
        rows = tensor.numel // tensor.shape[-1]
        row_bytes = tensor.bytes // rows
        stop = rows if stop_row is None else stop_row
        data = np.empty((stop - start_row) * row_bytes, np.uint8)
        view, done, offset = data.data, 0, tensor.start + start_row * row_bytes
        while done < len(data):
            count = os.preadv(self._fd, [view[done:]], offset + done)
            if count == 0:
                raise UnsafeFile(f"{self.path} became shorter while it was read; copy or download it again")
            done += count
        return data

    def values(self, name: str, start_row: int = 0, stop_row: int | None = None) -> NDArray[Any]:
        """Some rows as numbers, shape (rows, last dimension): float32 where quantised, else as stored.

        BF16 comes as its bit patterns, uint16, since numpy has no such type.

        Raises:
            UnsafeFile: the file became shorter.

        """
        tensor = self.tensors[name]
        data = self.raw(name, start_row, stop_row)
        native = _NATIVE.get(tensor.type)
        if native is not None:
            return data.view(native).reshape(-1, tensor.shape[-1])
        block, size = GGML_QUANT_SIZES[tensor.type]
        rows = data.reshape(-1, tensor.shape[-1] // block * size)
        found: NDArray[np.float32] = dequantize(rows, tensor.type)
        return found


class _Cursor:
    """Goes through the header; reads ahead, and never beyond the file or `MAX_HEADER_BYTES`."""

    def __init__(self, path: Path, fd: int, size: int) -> None:
        self.path, self.size = path, size
        self._fd = fd
        self.data = bytearray()
        self.at = 0
        self.elements = 0

    def refuse(self, why: str) -> UnsafeFile:
        return UnsafeFile(f"{self.path}: {why}; the file is cut short, damaged or made to deceive: fetch it again")

    def need(self, count: int, what: str) -> None:
        """Makes `count` bytes from here available."""
        end = self.at + count
        if end <= len(self.data):
            return
        if end > self.size:
            raise self.refuse(f"{what} needs {count} bytes at byte {self.at} of {self.size}")
        if end > MAX_HEADER_BYTES:
            raise self.refuse(f"its header goes beyond {MAX_HEADER_BYTES} bytes")
        while len(self.data) < end:
            piece = os.pread(self._fd, max(_READ_AHEAD, end - len(self.data)), len(self.data))
            if not piece:
                raise self.refuse(f"{what} ends at byte {len(self.data)}")
            self.data += piece

    def scalar(self, code: str, what: str) -> Any:
        size = struct.calcsize("<" + code)
        self.need(size, what)
        if code == "?" and self.data[self.at] > 1:
            raise self.refuse(f"{what} is a truth value of {self.data[self.at]}")
        (value,) = struct.unpack_from("<" + code, self.data, self.at)
        self.at += size
        return value

    def text(self, what: str, limit: int | None = None) -> str:
        length = self.scalar("Q", what)
        if limit is not None and length > limit:
            raise self.refuse(f"{what} has {length} bytes, more than {limit}")
        self.need(length, what)
        raw = bytes(self.data[self.at : self.at + length])
        self.at += length
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            return raw.decode("utf-8", "replace")  # byte tokens of some vocabularies are no text

    def count(self, what: str, least: int) -> int:
        """A number of things of at least `least` bytes each."""
        number: int = self.scalar("Q", what)
        self.elements += number
        if number > (self.size - self.at) // least or self.elements > MAX_ELEMENTS:
            raise self.refuse(f"{what} claims {number} elements in the {self.size - self.at} bytes that are left")
        return number


def _start(cursor: _Cursor) -> tuple[int, int, int]:
    cursor.need(24, "the beginning")
    if cursor.data[:4] != b"GGUF":
        raise UnsafeFile(f"{cursor.path} is no GGUF file: it begins with {bytes(cursor.data[:4])!r}")
    cursor.at = 4
    version = cursor.scalar("I", "the version")
    if version not in {2, 3}:
        kind = "big-endian" if version & 0xFFFF == 0 and version else f"version {version}"
        raise ModelError(f"{cursor.path} is {kind} GGUF; versions 2 and 3, little-endian, are read: convert it anew")
    tensors, entries = cursor.scalar("Q", "the number of tensors"), cursor.scalar("Q", "the number of entries")
    if tensors > min(MAX_TENSORS, cursor.size // 32):
        raise cursor.refuse(f"it claims {tensors} tensors in {cursor.size} bytes")
    if entries > cursor.size // 13:
        raise cursor.refuse(f"it claims {entries} metadata entries in {cursor.size} bytes")
    return version, tensors, entries


def _metadata(cursor: _Cursor, count: int) -> tuple[dict[str, Any], dict[str, str]]:
    found: dict[str, Any] = {}
    types: dict[str, str] = {}
    for _ in range(count):
        key = cursor.text("a metadata key", 65_535)
        if key in found:
            raise cursor.refuse(f"metadata {key!r} is given twice")
        kind = cursor.scalar("I", f"the type of {key!r}")
        found[key], types[key] = _value(cursor, kind, key)
    return found, types


def _value(cursor: _Cursor, kind: int, key: str) -> tuple[Any, str]:
    if kind == _STRING:
        return cursor.text(key), "text"
    if kind == _ARRAY:
        element = cursor.scalar("I", f"the element type of {key!r}")
        if element == _STRING:
            return _texts(cursor, key), "texts"
        if element not in _SCALARS:
            raise cursor.refuse(f"metadata {key!r} is a list of unknown type {element}")
        code = _SCALARS[element]
        size = struct.calcsize("<" + code)
        number = cursor.count(key, size)
        cursor.need(number * size, key)
        values = np.frombuffer(bytes(cursor.data[cursor.at : cursor.at + number * size]), "<" + code).tolist()
        cursor.at += number * size
        return values, f"list of {code}"
    if kind not in _SCALARS:
        raise cursor.refuse(f"metadata {key!r} has the unknown type {kind}")
    return cursor.scalar(_SCALARS[kind], key), _SCALARS[kind]


def _texts(cursor: _Cursor, key: str) -> list[str]:
    return [cursor.text(key) for _ in range(cursor.count(key, 8))]


def _tensors(cursor: _Cursor, count: int, alignment: int) -> dict[str, GgufTensor]:
    described: list[tuple[str, tuple[int, ...], GGMLQuantizationType, int, int]] = []
    names: set[str] = set()
    for _ in range(count):
        name = cursor.text("a tensor's name", MAX_NAME_BYTES)
        if name in names:
            raise cursor.refuse(f"tensor {name!r} is given twice")
        names.add(name)
        dimensions = cursor.scalar("I", f"the shape of {name!r}")
        if not 1 <= dimensions <= 4:
            raise cursor.refuse(f"tensor {name!r} has {dimensions} dimensions")
        shape = tuple(reversed([cursor.scalar("Q", f"the shape of {name!r}") for _ in range(dimensions)]))
        if not all(1 <= one < 1 << 40 for one in shape) or math.prod(shape) >= 1 << 48:
            raise cursor.refuse(f"tensor {name!r} has the shape {shape}")
        number, offset = cursor.scalar("I", f"the type of {name!r}"), cursor.scalar("Q", f"the place of {name!r}")
        try:
            kind = GGMLQuantizationType(number)
        except ValueError:
            raise ModelError(
                f"{cursor.path}: tensor {name!r} has type {number}, which is not known here; update the gguf package"
            ) from None
        block, size = GGML_QUANT_SIZES[kind]
        if shape[-1] % block:
            raise cursor.refuse(f"tensor {name!r} has rows of {shape[-1]}, not blocks of {block}")
        if offset % alignment:
            raise cursor.refuse(f"tensor {name!r} begins at {offset}, which is not aligned to {alignment}")
        described.append((name, shape, kind, offset, math.prod(shape) // block * size))
    origin = -(-cursor.at // alignment) * alignment
    spans = sorted((offset, offset + length, name) for name, _, _, offset, length in described)
    for (_, end, first), (begin, _, second) in itertools.pairwise(spans):
        if begin < end:
            raise cursor.refuse(f"tensors {first!r} and {second!r} overlap")
    if spans and origin + spans[-1][1] > cursor.size:
        raise cursor.refuse(f"tensor {spans[-1][2]!r} ends at byte {origin + spans[-1][1]} of {cursor.size}")
    return {
        name: GgufTensor(name, shape, kind, origin + offset, length) for name, shape, kind, offset, length in described
    }
