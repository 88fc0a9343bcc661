"""What the process that writes to trackers is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Order:
    """Where to write.

    Attributes:
        sinks: NAME or NAME=PLACE each.
        folder: the run's output folder.
        notes: the file that says what each tracker has.

    """

    sinks: Sequence[str]
    folder: str
    notes: str
