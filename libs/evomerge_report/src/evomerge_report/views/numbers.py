"""Numbers of the views: rounded, and with the interval that a table of thousands can afford."""

from __future__ import annotations

import math
from collections.abc import Mapping

HALF_WIDTH = 1.959964
"""Standard errors on each side of a mean that a 95% interval of the normal distribution takes."""
Sums = tuple[int, float, float]
"""Items, sum and sum of squares of their scores."""


def rounded(value: float | None) -> float | None:
    """Rounds to six decimals; what is no finite number is None, since JSON has none."""
    return None if value is None or not math.isfinite(value) else round(value, 6)


def standard_error(tasks: Mapping[str, Sums], weights: Mapping[str, float]) -> float | None:
    """Estimates the standard error of a weighted mean of task means from the items' variance; tasks are strata.

    Args:
        tasks: task → items, sum, sum of squares.
        weights: task → weight; only the tasks' own count.

    Returns:
        None where no task has two items, or a weight is not known.

    """
    if not tasks or any(task not in weights or sums[0] < 2 for task, sums in tasks.items()):
        return None
    total = sum(weights[task] for task in tasks)
    if not total > 0:
        return None
    variance = 0.0
    for task, (count, sum_, squares) in tasks.items():
        unit = max(0.0, squares - sum_ * sum_ / count) / (count - 1)
        variance += (weights[task] / total) ** 2 * unit / count
    return math.sqrt(variance)
