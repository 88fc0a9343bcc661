"""Which models a store parts with when it is full: those that were used longest ago and that nobody keeps."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Taken:
    """What takes room in a store.

    Attributes:
        bytes: that would be free without it; 0 of a link, and of a base with an adapter.
        used: when it was last used, Unix seconds.
        parts: of a base with an adapter: the names of both.

    """

    bytes: int
    used: float
    parts: tuple[str, ...] = ()


def choose(taken: Mapping[str, Taken], pinned: Collection[str], needed: int) -> list[str] | None:
    """Names what goes so that `needed` bytes are freed, in that order: the longest unused first.

    A base or an adapter goes together with the pairs that are made of it, and counts as used when one of them was; what
    is pinned keeps its parts.

    Args:
        taken: by name.
        pinned: names of what stays.
        needed: bytes.

    Returns:
        None where there is not so much to free.

    """
    pairs: dict[str, list[str]] = {}
    for name, one in taken.items():
        for part in one.parts:
            pairs.setdefault(part, []).append(name)
    stays = {*pinned, *(part for name in pinned if name in taken for part in taken[name].parts)}

    def used(name: str) -> float:
        return max(taken[one].used for one in (name, *pairs.get(name, ())))

    going: dict[str, None] = {}
    for name in sorted(taken, key=lambda name: (used(name), name)):
        if needed <= 0:
            break
        if name in stays or not taken[name].bytes:
            continue
        going |= dict.fromkeys((*pairs.get(name, ()), name))
        needed -= taken[name].bytes
    return list(going) if needed <= 0 else None
