"""What scoring is asked, and what it answers: plain values, so that a service holds them without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evomerge_common.domain.messages import TaskScore
from evomerge_common.domain.spec import AUTO
from evomerge_common.domain.suite import Suite


@dataclass(frozen=True, kw_only=True)
class ScoreRequest:
    """What to ask a model.

    Attributes:
        split: "search", "holdout" or "all".
        threads: intra-op threads of torch, at most; scores are bit-stable for one number of threads.
        suite_digest: of `suite`, where it is known already.
        dtype: in which to compute: "auto" (by device and model), "float32" or "bfloat16".
        places: task → which of the split's items, by place; tasks that it does not name are left out. None: all items.

    """

    suite: Suite
    split: str = "search"
    threads: int = 2
    suite_digest: str = ""
    dtype: str = AUTO
    places: Mapping[str, Sequence[int]] | None = None


@dataclass(frozen=True, kw_only=True)
class ScoreReport:
    """One model on one split of a suite.

    Attributes:
        fitness: weighted mean of the tasks' scores.
        scores: one a task, in the suite's order; item scores in the order of the split's items.
        seconds: loading and scoring.
        items: how many were scored.
        device: where and how, such as "cpu float32 2 threads": scores are bit-stable on one kind of device.
        truncated: items whose prompt was cut from the left to fit the context window.

    """

    fitness: float
    scores: tuple[TaskScore, ...]
    seconds: float
    items: int
    device: str
    truncated: int = 0


@dataclass(frozen=True, kw_only=True)
class GenerateResult:
    """A continuation. `text` is without the prompt."""

    text: str
    tokens: int
    seconds: float


@dataclass(frozen=True)
class DeviceInfo:
    """A device that could score; memory in bytes, 0 where nobody tells. `dtype` is "auto" for a large model on it."""

    name: str
    kind: str
    dtype: str
    memory_bytes: int = 0
    memory_used_bytes: int = 0
