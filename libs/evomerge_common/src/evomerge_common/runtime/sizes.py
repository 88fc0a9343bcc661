"""Numbers of bytes as people write them."""

from __future__ import annotations

import re

from evomerge_common.errors import InvalidInput

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])(I?))?B?")


def byte_size(text: str) -> int:
    """Reads a number of bytes: 2GB (decimal), 500MiB (binary), 1000000.

    Raises:
        InvalidInput: it is none.

    """
    match = _SIZE.fullmatch(text.strip().upper())
    if match is None:
        raise InvalidInput(f"must be a size such as 2GB or 500MiB, not {text!r}")
    power = "KMGT".index(match[2]) + 1 if match[2] else 0
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)
