"""JSON files that may be missing or unsound without harm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MAX_BYTES = 512_000_000


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object; empty when the file is missing, too large, or something else."""
    try:
        if path.stat().st_size > MAX_BYTES:
            return {}
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}
