"""efficiency: what a model costs. The other side of a search with several objectives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from evomerge_common.domain.kinds.kind import Kind
from evomerge_common.domain.task import Item, Task
from evomerge_common.errors import Path, SuiteError


class Efficiency(Kind):
    """One pseudo item, the model itself: 1/2 at the task's `reference`, towards 1 as it gets cheaper."""

    name = "efficiency"
    summary = "what the model costs; score 1/2 at `reference`: tokens_per_second, parameters or bytes"
    metrics = ("tokens_per_second", "parameters", "bytes")
    options: ClassVar[Mapping[str, Any]] = {"reference": None}
    own_items = True
    fixed_items = ({"id": "model"},)
    splits = False  # a model costs the same, whoever asks
    scored_by = "evomerge_scoring.kinds.efficiency:Cost"

    def read_options(self, data: Mapping[str, Any], path: Path) -> dict[str, Any]:
        """Refuses a reference that is no number above zero."""
        value = super().read_options(data, path)["reference"]
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e18:
            raise SuiteError(f"must be a number above zero, not {value!r}", (*path, "reference"))
        return {"reference": float(value)}

    def metric_value(self, task: Task, items: Sequence[Item], scores: Sequence[float]) -> float:
        """Says what a score of 0 to 1 is in tokens a second, parameters or bytes."""
        share = min(1.0 - 1e-9, max(1e-9, sum(scores) / len(scores)))
        reference = float(task.options["reference"])
        if task.metric == "tokens_per_second":
            return reference * share / (1.0 - share)
        return float(round(reference * (1.0 - share) / share))

    def measures_time(self, task: Task) -> bool:
        """Tells whether the metric is a speed; parameters and bytes are the same everywhere."""
        return task.metric == "tokens_per_second"


KIND = Efficiency()
