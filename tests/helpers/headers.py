"""Safetensors headers that lie, or that a reader may take for lies: what is in them, and what becomes of them."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Case:
    """One file.

    `stricter` says why it is refused although the safetensors library takes it; "" where both judge alike. `packed`: a
    sound header of codes, which is refused as quantised.
    """

    header: Any
    data: bytes = b""
    sound: bool = False
    stricter: str = ""
    packed: bool = False

    def write(self, path: Path) -> Path:
        text = self.header if isinstance(self.header, bytes) else json.dumps(self.header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + self.data)
        return path


def entry(**change: Any) -> dict[str, Any]:
    """Two float32 numbers at the beginning of the data."""
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **change}


def _raw(text: str) -> bytes:
    return text.replace("ONE", '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}').encode("utf-8", "surrogatepass")


_A = json.dumps({"a": entry()}).encode()
_TEXTS_ONLY = "every name once, in the free texts too: nobody knows which value was meant"
_PLAIN_ENTRY = "an entry says its dtype, shape and data_offsets by name, and nothing else"
_TORCH = "more than torch and numpy can hold"

CASES: dict[str, Case] = {
    # sound
    "one tensor": Case({"a": entry()}, b"0" * 8, sound=True),
    "no tensor": Case({}, sound=True),
    "spaces around": Case(b" \n" + _A + b"   ", b"0" * 8, sound=True),
    "metadata of texts": Case({"__metadata__": {"format": "pt"}, "a": entry()}, b"0" * 8, sound=True),
    "metadata that is null": Case({"__metadata__": None, "a": entry()}, b"0" * 8, sound=True),
    "not in the order of the bytes": Case({"b": entry(data_offsets=[8, 16]), "a": entry()}, b"0" * 16, sound=True),
    "a tensor that lies crooked": Case(
        {"a": entry(dtype="U8", shape=[1], data_offsets=[0, 1]), "b": entry(data_offsets=[1, 9])}, b"0" * 9, sound=True
    ),
    "an empty tensor at the end": Case(
        {"a": entry(), "z": entry(shape=[0], data_offsets=[8, 8])}, b"0" * 8, sound=True
    ),
    "float8 of another kind": Case({"a": entry(dtype="F8_E4M3FNUZ", shape=[8])}, b"0" * 8, sound=True),
    "four bits": Case({"a": entry(dtype="F4", shape=[16])}, b"0" * 8, sound=True, packed=True),
    "six bits": Case({"a": entry(dtype="F6_E2M3", shape=[4], data_offsets=[0, 3])}, b"0" * 3, sound=True, packed=True),
    # no JSON object
    "not JSON": Case(b"{nonsense"),
    "nothing": Case(b""),
    "not UTF-8": Case(b'{"\xff": 1}'),
    "half a surrogate pair": Case(_raw('{"\\ud800":ONE}'), b"0" * 4),
    "a byte order mark": Case(b"\xef\xbb\xbf" + _A, b"0" * 8),
    "zeros after": Case(_A + b"\0\0", b"0" * 8),
    "a control character": Case(_raw('{"a\n":ONE}'), b"0" * 4),
    "a list": Case([]),
    "deeply nested": Case(b"[" * 200_000),
    # twice
    "a name twice": Case(_raw('{"a":ONE,"a":ONE}'), b"0" * 4, stricter=_TEXTS_ONLY),
    "a name twice, in two places": Case(
        _raw('{"a":ONE,"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}'), b"0" * 8
    ),
    "a dtype twice": Case(_raw('{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}'), b"0" * 4),
    "metadata twice": Case(_raw('{"__metadata__":{"a":"b"},"__metadata__":{"a":"b"},"b":ONE}'), b"0" * 4),
    "a text twice": Case(_raw('{"__metadata__":{"a":"b","a":"c"},"b":ONE}'), b"0" * 4, stricter=_TEXTS_ONLY),
    # metadata
    "metadata of numbers": Case({"__metadata__": {"a": 1}}),
    "metadata that is a text": Case({"__metadata__": "x", "a": entry()}, b"0" * 8),
    "metadata that is a tensor": Case({"__metadata__": entry(), "a": entry()}, b"0" * 8),
    # entries
    "an unknown field": Case({"a": entry(extra=1)}, b"0" * 8, stricter=_PLAIN_ENTRY),
    "an entry as a list": Case({"a": ["F32", [2], [0, 8]]}, b"0" * 8, stricter=_PLAIN_ENTRY),
    "an entry that is a number": Case({"a": 3}),
    "a tensor without a place": Case({"a": {"dtype": "F32", "shape": [2]}}, b"0" * 8),
    "unknown dtype": Case({"a": entry(dtype="F31")}, b"0" * 8),
    "a dtype in small letters": Case({"a": entry(dtype="f32")}, b"0" * 8),
    "dtype no word": Case({"a": entry(dtype=[])}, b"0" * 8),
    "half a byte": Case({"a": entry(dtype="F4", shape=[3], data_offsets=[0, 2])}, b"0" * 2),
    "too few bytes for the shape": Case({"a": entry(shape=[3])}, b"0" * 8),
    "too many bytes for the shape": Case({"a": entry(shape=[1])}, b"0" * 8),
    "negative size": Case({"a": entry(shape=[-2])}, b"0" * 8),
    "minus zero": Case(_raw('{"a":{"dtype":"F32","shape":[-0],"data_offsets":[0,0]}}')),
    "size as bool": Case({"a": entry(shape=[True, 2])}, b"0" * 8),
    "size as float": Case({"a": entry(shape=[2.0])}, b"0" * 8),
    "size as text": Case({"a": entry(shape="2")}, b"0" * 8),
    "no number": Case(_raw('{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}'), b"0" * 8),
    "overflowing shape": Case({"a": entry(shape=[2**61, 2**61], data_offsets=[0, 0])}),
    "overflow before a zero": Case({"a": entry(shape=[2**61, 2**61, 0], data_offsets=[0, 0])}),
    "a huge size beside a zero": Case({"a": entry(shape=[2**63, 0], data_offsets=[0, 0])}, stricter=_TORCH),
    "many dimensions": Case({"a": entry(shape=[1] * 40, data_offsets=[0, 4])}, b"0" * 4, stricter=_TORCH),
    # places
    "backwards": Case({"a": entry(data_offsets=[8, 0])}, b"0" * 8),
    "beyond the end": Case({"a": entry(data_offsets=[8, 16])}, b"0" * 8),
    "before the beginning": Case({"a": entry(data_offsets=[-8, 0])}, b"0" * 8),
    "three offsets": Case({"a": entry(data_offsets=[0, 4, 8])}, b"0" * 8),
    "one offset": Case({"a": entry(data_offsets=[0])}, b"0" * 8),
    "overlap": Case({"a": entry(), "b": entry(data_offsets=[4, 12])}, b"0" * 12),
    "the same bytes": Case({"a": entry(), "b": entry()}, b"0" * 8),
    "an empty tensor inside another": Case({"a": entry(), "z": entry(shape=[0], data_offsets=[4, 4])}, b"0" * 8),
    "gap": Case({"a": entry(), "b": entry(data_offsets=[12, 20])}, b"0" * 20),
    "gap before the first": Case({"a": entry(data_offsets=[4, 12])}, b"0" * 12),
    "bytes left over": Case({"a": entry()}, b"0" * 12),
    "bytes without a tensor": Case({}, b"0" * 8),
    "cut short": Case({"a": entry()}, b"0" * 7),
}
