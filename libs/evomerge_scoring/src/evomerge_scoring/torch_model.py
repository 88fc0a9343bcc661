"""A loaded model that answers: `model.ScoringModel` by transformers, in this process."""

from __future__ import annotations

from collections.abc import Sequence

from evomerge_scoring.forward import token_answers
from evomerge_scoring.generation import generate, rows_at_once
from evomerge_scoring.loaded import LoadedModel
from evomerge_scoring.model import Answer, Progress, Prompt, Row, Stop


class TorchModel(LoadedModel):
    """See `model.ScoringModel`."""

    def answers(
        self, rows: Sequence[Row], size: int, progress: Progress | None = None, *, greedy: bool = False
    ) -> list[Answer]:
        """See `forward.token_answers`."""
        return token_answers(self, rows, size, progress, greedy=greedy)

    def continuations(
        self, prompts: Sequence[Prompt], stop: Stop, size: int, progress: Progress | None = None
    ) -> list[list[int]]:
        """See `generation.generate`."""
        return generate(self, prompts, stop, rows_at_once(self, prompts, stop, size), progress)
