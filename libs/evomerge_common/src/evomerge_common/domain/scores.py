"""From item scores to a task's score."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from evomerge_common.domain.kinds import kind_of
from evomerge_common.domain.messages import TaskScore
from evomerge_common.domain.task import Item, Task

__all__ = ["task_score"]


def task_score(task: Task, items: Sequence[Item], values: Sequence[float]) -> TaskScore:
    """Puts item scores together with their mean and the metric in its own unit.

    Item scores travel as 32-bit numbers, so they are rounded first: mean and metric are then the same wherever they are
    computed, from fresh scores or from remembered ones.
    """
    count = len(values)
    rounded = struct.unpack(f"<{count}f", struct.pack(f"<{count}f", *values))
    mean = sum(rounded) / len(rounded)
    metric = kind_of(task.kind).metric_value(task, items, rounded)
    return TaskScore(task=task.name, score=mean, metric=task.metric, metric_value=metric, item_scores=rounded)
