"""Several objectives at once, all to be maximised: fronts, crowding, the knee, the volume that a front covers.

Points are tuples of equal length. Deb et al. 2002 (NSGA-II) for sorting and crowding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Point = tuple[float, ...]


def dominates(a: Point, b: Point) -> bool:
    """Tells whether `a` is at least as good everywhere and better somewhere."""
    return a != b and all(x >= y for x, y in zip(a, b, strict=True))


def front(points: Sequence[Point]) -> list[int]:
    """Finds the points that no other dominates, as ascending indices; equal points are all in. O(n log n + n·front)."""
    order = sorted(range(len(points)), key=lambda i: (-sum(points[i]), i))
    found: list[int] = []
    for i in order:  # whoever dominates has the higher sum, so it has been seen
        if not any(dominates(points[j], points[i]) for j in found):
            found.append(i)
    return sorted(found)


def fronts(points: Sequence[Point]) -> list[list[int]]:
    """Sorts by domination: the front, then the front of the rest, and so on."""
    left = list(range(len(points)))
    layers = []
    while left:
        layer = [left[i] for i in front([points[i] for i in left])]
        layers.append(layer)
        gone = set(layer)
        left = [i for i in left if i not in gone]
    return layers


def crowding(points: Sequence[Point]) -> list[float]:
    """Returns each point's crowding distance among these: the sum of its neighbours' gaps, infinite at the ends."""
    distance = [0.0] * len(points)
    for objective in range(len(points[0]) if points else 0):
        order = sorted(range(len(points)), key=lambda i: (points[i][objective], i))
        low, high = points[order[0]][objective], points[order[-1]][objective]
        distance[order[0]] = distance[order[-1]] = math.inf
        if high > low:
            for before, here, after in zip(order, order[1:], order[2:], strict=False):
                distance[here] += (points[after][objective] - points[before][objective]) / (high - low)
    return distance


def knee(points: Sequence[Point]) -> int:
    """Finds the index of the point nearest to the ideal, each objective scaled to 0 … 1; the first of equals.

    Raises:
        ValueError: no points.

    """
    if not points:
        raise ValueError("an empty front has no knee")
    members = front(points)
    spans = [(min(v), max(v)) for v in zip(*(points[i] for i in members), strict=True)]

    def gap(i: int) -> float:
        return math.hypot(
            *((high - x) / (high - low) if high > low else 0.0 for x, (low, high) in zip(points[i], spans, strict=True))
        )

    return min(members, key=lambda i: (gap(i), i))


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """Returns the volume between points and a reference that they should dominate; exact: slices the last objective.

    Fine for a few objectives and some hundred points: the cost grows with the number of objectives.
    """
    inside = [p for p in points if all(x > r for x, r in zip(p, reference, strict=True))]
    if not inside:
        return 0.0
    members = [inside[i] for i in front(inside)]
    if len(reference) == 1:
        return max(p[0] for p in members) - reference[0]
    levels = sorted({p[-1] for p in members})
    total, floor = 0.0, reference[-1]
    for level in levels:
        slab = [p[:-1] for p in members if p[-1] >= level]
        total += (level - floor) * hypervolume(slab, reference[:-1])
        floor = level
    return total
