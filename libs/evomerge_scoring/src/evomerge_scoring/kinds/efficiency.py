"""Scoring of efficiency: what a model costs in tokens a second, parameters or bytes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

from evomerge_common.domain.messages import TaskScore
from evomerge_common.domain.task import Item, Task
from evomerge_common.errors import SuiteError
from evomerge_scoring.encode import Encoder
from evomerge_scoring.model import ScoringModel, Stop

PROMPT = "The train left the station at noon, and by the time that it reached the coast"
TOKENS = 32
REPEATS = 3
STEPS = 4
"""Of an octave: a speed counts in steps of 19%, so that the noise of measuring seldom decides between two models."""


class Cost:
    """One pseudo item: 1/2 at the task's `reference`, towards 1 as it gets cheaper.

    Parameters and bytes are the same on every machine. A speed is measured: its score follows from the nearest step,
    the metric's value is what was measured.
    """

    truncated = 0

    def __init__(self, task: Task, items: Sequence[Item], encoder: Encoder) -> None:
        self.task = task

    def score(self, model: ScoringModel, size: int, advance: Callable[[int], None]) -> TaskScore:
        """See `kinds.Prepared`; the metric's value is in tokens a second, parameters or bytes."""
        reference = float(self.task.options["reference"])
        if self.task.metric == "tokens_per_second":
            value = self._speed(model)
            steady = nearest_step(value)
            score = steady / (steady + reference)
        else:
            value = float(model.parameters if self.task.metric == "parameters" else model.weight_bytes)
            score = reference / (value + reference)
        advance(1)
        return TaskScore(
            task=self.task.name, score=score, metric=self.task.metric, metric_value=value, item_scores=(score,)
        )

    def _speed(self, model: ScoringModel) -> float:
        """Greedy generation of one text, after a warm-up: the best of three, since others only ever slow it down."""
        if model.masked:
            raise SuiteError(f"task {self.task.name!r}: a masked language model generates no tokens")
        ids = list(model.tokenizer(PROMPT, add_special_tokens=False)["input_ids"])[: max(1, model.context // 2)]
        count = min(TOKENS, model.context - len(ids))
        stop = Stop((), count)
        best = 0.0
        for repeat in range(REPEATS + 1):
            start = time.perf_counter()
            (made,) = model.continuations([ids], stop, 1)
            seconds = time.perf_counter() - start
            if repeat:  # an end token is a step too, though it is not kept
                best = max(best, min(len(made) + 1, count) / seconds)
        return best


def nearest_step(speed: float) -> float:
    """The nearest of the speeds 2^(n/4) tokens a second, n whole."""
    return float(2.0 ** (round(STEPS * math.log2(speed)) / STEPS))
