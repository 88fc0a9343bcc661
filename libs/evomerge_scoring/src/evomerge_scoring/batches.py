"""Which rows share a batch: from the rows' lengths alone, so that a score never depends on who computes it.

Greedy decoding is the exception: its rows change hands as answers end, see `generation`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence


def compose(lengths: Sequence[int], size: int, *, fits: Callable[[int, int], bool] | None = None) -> list[list[int]]:
    """Row numbers in batches: longest first (so that memory runs out early or never), neighbours of like length.

    Args:
        lengths: tokens of each row.
        size: rows a batch, at most.
        fits: whether a batch of (rows, tokens of its longest row) is allowed; one row always is.

    """
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    batches: list[list[int]] = []
    for row in order:
        batch = batches[-1] if batches else []
        if not batch or len(batch) >= size or (fits and not fits(len(batch) + 1, lengths[batch[0]])):
            batches.append([row])
        else:
            batch.append(row)
    return batches


def share(rows: int, size: int, lanes: int) -> int:
    """Rows a batch, at most `size`, so that each of several lanes gets as many batches as the others."""
    if lanes < 2:
        return size
    rounds = -(-rows // (size * lanes))
    return max(1, -(-rows // max(1, rounds * lanes)))


def pack(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Row numbers that fit side by side into `width` tokens: first fit, longest first; from the lengths alone."""
    bins: list[list[int]] = []
    room: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        place = next((place for place, left in enumerate(room) if lengths[row] <= left), len(bins))
        if place == len(bins):
            bins.append([])
            room.append(width)
        bins[place].append(row)
        room[place] -= lengths[row]
    return bins
