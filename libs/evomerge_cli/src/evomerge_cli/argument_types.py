"""Values on the command line. Each function raises ArgumentTypeError, which argparse tells with the flag's name."""

from __future__ import annotations

import argparse

from evomerge_common.errors import InvalidInput
from evomerge_common.runtime.sizes import byte_size


def positive(text: str) -> int:
    """Reads a whole number of at least 1."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return number


def size(text: str) -> int:
    """Reads a number of bytes: 2GB (decimal), 500MiB (binary), 1000000."""
    try:
        found = byte_size(text)
    except InvalidInput:
        found = 0
    if found < 1:
        raise argparse.ArgumentTypeError(f"must be a size such as 2GB or 500MiB, not {text!r}")
    return found


def rate(text: str) -> float:
    """Reads a share from 0 up to, not including, 1."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0.0 <= number < 1.0:
        raise argparse.ArgumentTypeError(f"must be a number from 0 up to, not including, 1; not {text!r}")
    return number
