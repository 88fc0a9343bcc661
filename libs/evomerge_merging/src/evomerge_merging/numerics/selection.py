"""The k-th largest magnitude of a tensor that is read piece by piece: exact, without sorting it; and what is kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from evomerge_merging.numerics.random_words import MaskKey, keep, words

if TYPE_CHECKING:
    import torch
else:
    from evomerge_merging.torch_later import torch

_SMALL = 1 << 18
_SAMPLE_EVERY, _SAMPLE_RUN = 32_768, 1_024
_BINS, _BUCKETS = 1 << 16, 1 << 12
_FEW = 16
"""What is between the ends of an interval is a hundredth of a tensor; from a share of 1 / 16 on many are equals."""
Array = np.ndarray[Any, Any]


class Keep(Protocol):
    """Which elements of a tensor are kept."""

    def apply(self, values: torch.Tensor, start: int) -> torch.Tensor:
        """Puts zeros for what is not kept; called with each piece, from `start` on, which may be written into."""
        ...


@dataclass(frozen=True)
class Cut:
    """Which elements are kept: all larger in magnitude than `threshold`, and of those that equal it those up to `last`.

    So the number kept is exact, and ties fall to the earlier elements.
    """

    threshold: float
    last: int

    def apply(self, values: torch.Tensor, start: int) -> torch.Tensor:
        """Returns a piece that begins at element `start`, with zeros for what is not kept."""
        equal = min(max(self.last + 1 - start, 0), values.numel())
        # hardshrink keeps what is above its limit, in one vectorised pass: a limit just below the threshold keeps ties.
        just_below = torch.tensor(self.threshold, dtype=values.dtype).nextafter(torch.zeros((), dtype=values.dtype))
        if equal == values.numel():
            return torch.nn.functional.hardshrink(values, just_below.item())
        result = torch.nn.functional.hardshrink(values, self.threshold)
        if equal:
            result[:equal] = torch.nn.functional.hardshrink(values[:equal], just_below.item())
        return result


KEEP_ALL = Cut(0.0, -1)
KEEP_NONE = Cut(math.inf, -1)


@dataclass(frozen=True)
class Band:
    """Keeps what `outer` keeps less what `inner` keeps: the middle of the magnitudes."""

    outer: Cut
    inner: Cut

    def apply(self, values: torch.Tensor, start: int) -> torch.Tensor:
        """Returns a piece with zeros for what is not kept; exact, since each element is itself or zero in both."""
        return self.outer.apply(values, start) - self.inner.apply(values, start)


@dataclass(frozen=True)
class Bits:
    """Keeps the elements whose bit is set: one bit an element, eight to a byte."""

    packed: np.ndarray[Any, np.dtype[np.uint8]]

    def apply(self, values: torch.Tensor, start: int) -> torch.Tensor:
        """Puts zeros for what is not kept in a piece, which is written into."""
        skip = start % 8
        count = skip + values.numel()
        bits = np.unpackbits(self.packed[start // 8 : (start + values.numel() + 7) // 8], count=count)[skip:]
        piece = values.numpy()
        np.multiply(piece, bits.view(np.bool_), out=piece)
        return values


@dataclass(frozen=True)
class Drawn:
    """Keeps each element by itself with probability `density`, rounded to multiples of 1 / 65536: DARE's masks."""

    key: MaskKey
    density: float

    def apply(self, values: torch.Tensor, start: int) -> torch.Tensor:
        """Puts zeros for what is not kept in a piece, which is written into."""
        chosen = keep(words(self.key, start, start + values.numel(), 16), self.density)
        piece = values.numpy()
        np.multiply(piece, chosen, out=piece)
        return values


Magnitudes = Callable[[int, int], "Sequence[torch.Tensor] | Sequence[Array]"]
"""Elements [start, stop) → magnitudes of several tensors of one size."""


Scan = Callable[[int, int, Sequence[int], Sequence[float], Sequence[float]], tuple[Array, list[Array]]]
"""Elements [start, stop), tensors, their `low` and `high` → how many magnitudes lie above, and those in between."""


def cuts(
    read: Magnitudes,
    pieces: Iterable[tuple[int, int]],
    size: int,
    counts: Sequence[int],
    scan: Scan | None = None,
) -> list[Cut]:
    """Finds, for the i-th tensor, the cut that keeps its `counts[i]` largest magnitudes.

    A sample gives an interval that almost surely holds the k-th value; one pass counts what lies above and collects
    what lies inside. If the sample misled, a radix histogram narrows the interval down to the value: slower, the same
    answer, and little memory either way.
    """
    ranges = list(pieces)
    found: dict[int, Cut] = {i: KEEP_NONE if k <= 0 else KEEP_ALL for i, k in enumerate(counts) if not 0 < k < size}
    open_ = [i for i in range(len(counts)) if i not in found]
    if open_:
        found.update(_within(read, ranges, counts, _intervals(read, size, counts, open_), scan))
    misled = [i for i in open_ if i not in found]
    if misled:
        found.update(_within(read, ranges, counts, _narrowed(read, ranges, counts, misled), scan))
    return [found[i] for i in range(len(counts))]


Intervals = dict[int, tuple[float, float]]


def _intervals(read: Magnitudes, size: int, counts: Sequence[int], wanted: Sequence[int]) -> Intervals:
    if size <= _SMALL:
        return dict.fromkeys(wanted, (0.0, math.inf))
    samples: dict[int, list[Array]] = {i: [] for i in wanted}
    for start in range(0, size, _SAMPLE_EVERY):
        values = read(start, min(start + _SAMPLE_RUN, size))
        for i in wanted:
            samples[i].append(_array(values[i]))
    result = {}
    for i in wanted:
        sample = np.concatenate(samples.pop(i))
        place, margin = len(sample) * (1 - counts[i] / size), 0.005 * len(sample) + 8
        low, high = math.floor(place - margin), math.ceil(place + margin)
        sample.partition([max(low, 0), min(high, len(sample) - 1)])
        result[i] = (
            float(sample[low]) if low >= 0 else 0.0,
            float(sample[high]) if high < len(sample) else math.inf,
        )
    return result


def _scan(read: Magnitudes) -> Scan:
    def scan(
        start: int, stop: int, which: Sequence[int], low: Sequence[float], high: Sequence[float]
    ) -> tuple[Array, list[Array]]:
        values = read(start, stop)
        above, inside = np.zeros(len(which), np.int64), []
        for place, i in enumerate(which):
            piece = _array(values[i])
            over = piece > high[place]
            above[place] = np.count_nonzero(over)
            inside.append(piece[(piece >= low[place]) ^ over])
        return above, inside

    return scan


def _array(values: torch.Tensor | Array) -> Array:
    return values if isinstance(values, np.ndarray) else values.numpy()


def _within(
    read: Magnitudes,
    ranges: Sequence[tuple[int, int]],
    counts: Sequence[int],
    intervals: Intervals,
    scan: Scan | None,
) -> dict[int, Cut]:
    """The cuts whose thresholds lie in their intervals, ends included."""
    above = dict.fromkeys(intervals, 0)
    inside: dict[int, list[Found]] = {i: [] for i in intervals}
    which = list(intervals)
    low, high = [intervals[i][0] for i in which], [intervals[i][1] for i in which]
    for start, stop in ranges:
        over, between = (scan or _scan(read))(start, stop, which, low, high)
        for place, i in enumerate(which):
            above[i] += int(over[place])
            inside[i].append(_compact(between[place], stop - start))
    result: dict[int, Cut] = {}
    for i, found in inside.items():
        if not 0 < counts[i] - above[i] <= sum(int(numbers.sum()) for _, numbers in found):
            continue
        values, numbers = (np.concatenate(parts) for parts in zip(*found, strict=True))
        threshold, room = _nth_largest(values, numbers, counts[i] - above[i])
        result[i] = Cut(float(threshold), _last(read, ranges, i, found, threshold, room))
    return result


Found = tuple[Array, Array]
"""Values, and how often each was there."""


def _compact(values: Array, of: int) -> Found:
    """A sample misleads where a tensor has few distinct values; what many elements share is held once."""
    if len(values) > of // _FEW:
        return np.unique(values, return_counts=True)
    return values.copy(), np.ones(len(values), np.int64)


def _nth_largest(values: Array, numbers: Array, place: int) -> tuple[Any, int]:
    """The value at that place (from 1) in descending order, and how many of its equals have a place up to there."""
    low, high = float(values.min()), float(values.max())
    scale = (_BUCKETS - 1) / (high - low) if high > low else math.inf
    if len(values) > _BUCKETS and 0.0 < scale < math.inf:
        # Buckets of equal width are in the order of the values: only the one with that place is to be sorted.
        buckets = ((values - np.float64(low)) * scale).astype(np.int64)
        running = np.bincount(buckets, numbers, _BUCKETS)[::-1].cumsum()
        step = int(np.searchsorted(running, place))
        place -= int(running[step - 1]) if step else 0
        chosen = buckets == _BUCKETS - 1 - step
        values, numbers = values[chosen], numbers[chosen]
    order = np.argsort(values)[::-1]
    running = numbers[order].cumsum()
    threshold = values[order[np.searchsorted(running, place)]]
    return threshold, place - int(numbers[values > threshold].sum())


def _last(
    read: Magnitudes,
    ranges: Sequence[tuple[int, int]],
    i: int,
    found: Sequence[Found],
    threshold: float,
    room: int,
) -> int:
    """The place of the last element equal to the threshold for which there is room; beyond all if there is for all."""
    ties = [int(numbers[values == threshold].sum()) for values, numbers in found]
    if sum(ties) == room:
        return 2**62
    for (start, stop), number in zip(ranges, ties, strict=True):
        if number >= room:
            return start + int(np.flatnonzero(_array(read(start, stop)[i]) == threshold)[room - 1])
        room -= number
    raise AssertionError("fewer equal elements than were counted")


def _narrowed(
    read: Magnitudes, ranges: Sequence[tuple[int, int]], counts: Sequence[int], wanted: Sequence[int]
) -> Intervals:
    """The k-th values themselves: 16 bits a pass, from the most significant, of the bits of the floats (not negative,
    they order as integers do).
    """
    result: Intervals = {}
    for i in wanted:
        prefix, left = 0, counts[i]
        kind = _array(read(*ranges[0])[i]).dtype
        integer = np.dtype(f"u{kind.itemsize}")
        for shift in range(8 * kind.itemsize - 16, -1, -16):
            histogram = np.zeros(_BINS, np.int64)
            for start, stop in ranges:
                bits = _array(read(start, stop)[i]).view(integer) >> shift
                same = bits[bits >> 16 == prefix] if prefix or shift < 8 * kind.itemsize - 16 else bits
                histogram += np.bincount((same & (_BINS - 1)).astype(np.int64), minlength=_BINS)
            running = histogram[::-1].cumsum()
            place = int(np.searchsorted(running, left))
            left -= int(running[place - 1]) if place else 0
            prefix = (prefix << 16) | (_BINS - 1 - place)
        value = float(np.array(prefix, integer).view(kind))
        result[i] = (value, value)
    return result
