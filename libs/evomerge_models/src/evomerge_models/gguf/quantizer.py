"""llama.cpp's llama-quantize, which makes the K-quants."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from evomerge_common.domain.gguf_types import K_TYPES, PLAIN_TYPES, TYPES
from evomerge_common.errors import InvalidInput, did_you_mean


def check_type(name: str) -> str:
    """A GGUF type in small letters.

    Raises:
        InvalidInput: no such type, or llama-quantize, which makes it, is not on this machine.

    """
    kind = name.lower()
    if kind not in TYPES:
        raise InvalidInput(f"GGUF has no type {name!r} here; {did_you_mean(kind, TYPES)}")
    if kind in K_TYPES:
        find_quantizer(kind)
    return kind


def find_quantizer(kind: str) -> str:
    """The program's path: on PATH, or beside this Python.

    Raises:
        InvalidInput: it is on neither.

    """
    beside = Path(sys.executable).with_name("llama-quantize")
    found = shutil.which("llama-quantize") or (str(beside) if beside.exists() else "")
    if not found:
        raise InvalidInput(
            f"{kind} is made by llama.cpp's llama-quantize, which is not on the PATH: install it, or choose one of "
            f"{', '.join(PLAIN_TYPES)}"
        )
    return found
