"""Numbers of the views: rounded, and with the interval that a table of thousands can afford."""

from __future__ import annotations

import math
from collections.abc import Mapping

HALF_WIDTH = 1.959964
"""Standard errors on each side of a mean that a 95% interval of the normal distribution takes."""


def rounded(value: float | None) -> float | None:
    """Rounds to six decimals; what is no finite number is None, since JSON has none."""
    return None if value is None or not math.isfinite(value) else round(value, 6)


def standard_error(variances: Mapping[str, float | None], weights: Mapping[str, float]) -> float | None:
    """Estimates the standard error of a weighted mean of task means; tasks are strata.

    Args:
        variances: task → variance of its mean.
        weights: task → weight; only the tasks' own count.

    Returns:
        None where there is no task, or a variance or weight is not known.

    """
    total = variance = 0.0
    for task, one in variances.items():
        weight = weights.get(task)
        if weight is None or one is None:
            return None
        total += weight
        variance += weight * weight * one
    return math.sqrt(variance) / total if total > 0 else None
