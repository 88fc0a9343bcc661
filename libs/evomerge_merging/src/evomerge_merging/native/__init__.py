"""Native kernels for the common methods on a CPU, where a C compiler was there at installation: see kernels.c.

`library()` is None without them, and torch does the same work in more time.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

from evomerge_merging.native.structures import Elements, Keep

_POINTER = ctypes.POINTER
_LONG, _FLOAT, _ADDRESS, _KEY = ctypes.c_int64, ctypes.c_float, ctypes.c_void_p, _POINTER(ctypes.c_uint32)
_SIGNATURES: dict[str, list[object]] = {
    "weighted_sum": [_POINTER(Elements), _LONG, _ADDRESS, _LONG, _POINTER(Elements)],
    "inner_products": [_POINTER(Elements), _POINTER(Elements), _LONG, _ADDRESS],
    "task_vectors": [
        _POINTER(Elements), _POINTER(Elements), _LONG, _POINTER(Keep), _ADDRESS, _ADDRESS, _FLOAT, _FLOAT, _LONG, _LONG,
        _LONG, _LONG, _POINTER(Elements),
    ],
    "magnitudes": [_POINTER(Elements), _POINTER(Elements), _LONG, _ADDRESS],
    "scan": [
        _POINTER(Elements), _POINTER(Elements), _LONG, _LONG, _ADDRESS, _ADDRESS, _ADDRESS, _LONG, _ADDRESS,
        _POINTER(_ADDRESS), _ADDRESS,
    ],
    "thinned_sums": [_POINTER(Elements), _POINTER(Elements), _LONG, _POINTER(Keep), _LONG, _LONG, _ADDRESS],
    "rank_flags": [
        _POINTER(Elements), _POINTER(Elements), _LONG, _LONG, _KEY, _LONG, _LONG, _LONG, _ADDRESS, _ADDRESS, _ADDRESS,
    ],
    "words": [_KEY, _LONG, _LONG, _ADDRESS],
}  # fmt: skip


@functools.cache
def library() -> ctypes.CDLL | None:
    """The kernels, or None when they were not built (no C compiler) or are of another machine."""
    for path in sorted(Path(__file__).parent.glob("_kernels*")):
        try:
            found = ctypes.CDLL(str(path))
            for name, arguments in _SIGNATURES.items():
                function = getattr(found, f"evomerge_{name}")
                function.argtypes, function.restype = arguments, ctypes.c_int
        except (OSError, AttributeError):
            continue
        return found
    return None
