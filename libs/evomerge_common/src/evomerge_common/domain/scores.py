"""From item scores to a task's score."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

from evomerge_common.domain.messages import TaskScore
from evomerge_common.domain.suite import Item, Task

__all__ = ["task_score"]


def task_score(task: Task, items: Sequence[Item], values: Sequence[float]) -> TaskScore:
    """Item scores with their mean and the metric in its own unit.

    Item scores travel as 32-bit numbers, so they are rounded first: mean and metric are then the same wherever they are
    computed, from fresh scores or from remembered ones.
    """
    count = len(values)
    rounded = struct.unpack(f"<{count}f", struct.pack(f"<{count}f", *values))
    mean = sum(rounded) / len(rounded)
    metric = mean
    if task.metric == "bits_per_byte":
        metric = _bits_per_byte(items, rounded)
    elif task.kind == "efficiency":
        metric = _cost(task, mean)
    return TaskScore(task=task.name, score=mean, metric=task.metric, metric_value=metric, item_scores=rounded)


def _cost(task: Task, score: float) -> float:
    """What a score of 0 to 1 says in tokens a second, parameters or bytes; it is 1/2 at the task's reference."""
    share = min(1.0 - 1e-9, max(1e-9, score))
    reference = float(task.options["reference"])
    if task.metric == "tokens_per_second":
        return reference * share / (1.0 - share)
    return float(round(reference * (1.0 - share) / share))


def _bits_per_byte(items: Sequence[Item], scores: Sequence[float]) -> float:
    """Of all documents together; an item's score is 2 to the power of minus its own bits a byte."""
    sizes = [len(str(item.content["text"]).encode()) for item in items]
    bits = [-math.log2(max(score, 1e-45)) * size for score, size in zip(scores, sizes, strict=True)]
    return sum(bits) / sum(sizes)
