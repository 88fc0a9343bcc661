"""What a parameter of a recipe comes to for one tensor: gradients over depth and filters by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def value_at(setting: Any, tensor: str, depth: float) -> Any:
    """Returns what a setting comes to for a tensor; None where it says nothing of it.

    Args:
        setting: a number (bool, word), a gradient (numbers at evenly spaced depths, interpolated; truths change at
            theirs), or a list of {filter, value} of which the first whose filter is part of the tensor's name counts
            ("*" or none: any).
        tensor: its name in the output.
        depth: from 0 (first layer) to 1 (last).

    """
    if not isinstance(setting, list):
        return setting
    if not setting:
        return None
    if not isinstance(setting[0], Mapping):
        place = depth * (len(setting) - 1)
        low = min(int(place), len(setting) - 1)
        high = min(low + 1, len(setting) - 1)
        if isinstance(setting[low], bool | str):
            return setting[low]
        return setting[low] + (setting[high] - setting[low]) * (place - low) if low != high else setting[low]
    for entry in setting:
        wanted = entry.get("filter")
        if wanted in (None, "*") or wanted in tensor:
            found = value_at(entry.get("value"), tensor, depth)
            if found is not None:
                return found
    return None
