"""The k-th largest magnitude of a tensor that is read piece by piece: exact, without sorting it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

_SMALL = 1 << 18
_SAMPLE_EVERY, _SAMPLE_RUN = 32_768, 1_024


@dataclass(frozen=True)
class Cut:
    """Which elements are kept: all larger in magnitude than `threshold`, and of those that equal it those up to `last`.

    So the number kept is exact, and ties fall to the earlier elements.
    """

    threshold: float
    last: int

    def apply(self, values: torch.Tensor, start: int) -> torch.Tensor:
        """A piece that begins at element `start`, with zeros for what is not kept."""
        equal = min(max(self.last + 1 - start, 0), values.numel())
        # hardshrink keeps what is above its limit, in one vectorised pass: a limit just below the threshold keeps ties.
        just_below = torch.tensor(self.threshold, dtype=values.dtype).nextafter(torch.zeros((), dtype=values.dtype))
        if equal == values.numel():
            return functional.hardshrink(values, just_below.item())
        result = functional.hardshrink(values, self.threshold)
        if equal:
            result[:equal] = functional.hardshrink(values[:equal], just_below.item())
        return result


KEEP_ALL = Cut(0.0, -1)
KEEP_NONE = Cut(math.inf, -1)

Magnitudes = Callable[[int, int], Sequence[torch.Tensor]]
"""Elements [start, stop) → magnitudes of several tensors of one size."""


def cuts(read: Magnitudes, pieces: Iterable[tuple[int, int]], size: int, counts: Sequence[int]) -> list[Cut]:
    """For the i-th tensor, the cut that keeps its `counts[i]` largest magnitudes.

    Large tensors: a sample gives an interval that almost surely holds the k-th value; one pass counts what lies above
    and collects what lies inside. If the sample misled, everything is collected: slower, and the same answer.
    """
    ranges = list(pieces)
    found: dict[int, Cut] = {i: KEEP_NONE if k <= 0 else KEEP_ALL for i, k in enumerate(counts) if not 0 < k < size}
    open_ = [i for i in range(len(counts)) if i not in found]
    if open_:
        intervals = _intervals(read, size, counts, open_) if size > _SMALL else dict.fromkeys(open_, (-1.0, math.inf))
        while open_:
            found.update(_within(read, ranges, counts, {i: intervals[i] for i in open_}))
            open_ = [i for i in open_ if i not in found]
            intervals = dict.fromkeys(open_, (-1.0, math.inf))
    return [found[i] for i in range(len(counts))]


def _intervals(
    read: Magnitudes, size: int, counts: Sequence[int], wanted: Sequence[int]
) -> dict[int, tuple[float, float]]:
    sample: dict[int, list[torch.Tensor]] = {i: [] for i in wanted}
    for start in range(0, size, _SAMPLE_EVERY):
        values = read(start, min(start + _SAMPLE_RUN, size))
        for i in wanted:
            sample[i].append(values[i])
    result = {}
    for i in wanted:
        ordered = torch.cat(sample[i]).sort(descending=True).values
        place, margin = counts[i] / size * len(ordered), 0.01 * len(ordered) + 8
        above, below = int(place - margin), int(place + margin)
        result[i] = (
            # Just below: a value that many elements share may be both ends, and must be inside.
            ordered[below].nextafter(-torch.ones_like(ordered[below])).item() if below < len(ordered) else -1.0,
            ordered[above].item() if above > 0 else math.inf,
        )
    return result


def _within(
    read: Magnitudes,
    ranges: Sequence[tuple[int, int]],
    counts: Sequence[int],
    intervals: dict[int, tuple[float, float]],
) -> dict[int, Cut]:
    """The cuts whose thresholds lie in their intervals (low, high]."""
    above = dict.fromkeys(intervals, 0)
    inside: dict[int, list[torch.Tensor]] = {i: [] for i in intervals}
    for start, stop in ranges:
        values = read(start, stop)
        for i, (low, high) in intervals.items():
            piece = values[i].numpy()  # whose comparisons and boolean indexing are several times faster than torch's
            over_high = piece > high
            above[i] += int(np.count_nonzero(over_high))
            inside[i].append(torch.from_numpy(piece[(piece > low) ^ over_high]))
    result: dict[int, Cut] = {}
    ties: dict[int, tuple[float, int]] = {}
    for i in intervals:
        candidates = torch.cat(inside[i])
        k = counts[i] - above[i]
        if not 0 < k <= len(candidates):
            continue
        threshold = candidates.kthvalue(len(candidates) - k + 1).values.item()
        room = k - int((candidates > threshold).sum())
        if int((candidates == threshold).sum()) == room:
            result[i] = Cut(threshold, 2**62)
        else:
            ties[i] = (threshold, room)
    if ties:
        result.update(_tied(read, ranges, ties))
    return result


def _tied(read: Magnitudes, ranges: Sequence[tuple[int, int]], ties: dict[int, tuple[float, int]]) -> dict[int, Cut]:
    """Finds the last of the equal elements for which there is room."""
    result: dict[int, Cut] = {}
    room = {i: count for i, (_, count) in ties.items()}
    for start, stop in ranges:
        if len(result) == len(ties):
            break
        values = read(start, stop)
        for i in ties.keys() - result.keys():
            places = (values[i] == ties[i][0]).nonzero()[:, 0]
            if len(places) >= room[i]:
                result[i] = Cut(ties[i][0], start + int(places[room[i] - 1]))
            room[i] -= len(places)
    return result
