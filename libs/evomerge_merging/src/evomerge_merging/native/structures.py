"""What kernels.c is given: the same layout in memory."""

from __future__ import annotations

import ctypes

BFLOAT16, FLOAT32, FLOAT16 = range(3)
CUT_SHORT, NO_MEMORY, ERROR_SHIFT = 4, 8, 8
KEEP_EVERYTHING, KEEP_CUT, KEEP_BAND, KEEP_BITS, KEEP_DRAWN = range(5)
MOST_INPUTS = 16


class Elements(ctypes.Structure):
    """Elements of a source or of the output, from a piece's first on: in memory, or in a file from a byte on."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("type", ctypes.c_int64),
        ("file", ctypes.c_int64),
        ("offset", ctypes.c_int64),
    ]


class Keep(ctypes.Structure):
    """What of a task vector is kept."""

    _fields_ = [
        ("kind", ctypes.c_int64),
        ("outer_last", ctypes.c_int64),
        ("inner_last", ctypes.c_int64),
        ("bits", ctypes.c_void_p),
        ("outer", ctypes.c_float),
        ("inner", ctypes.c_float),
        ("key", ctypes.c_uint32 * 4),
        ("limit", ctypes.c_int64),
    ]
