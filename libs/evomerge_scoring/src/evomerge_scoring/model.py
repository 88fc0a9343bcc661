"""What scoring needs of a model, whatever computes it: transformers in this process, or vLLM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from evomerge_scoring.forward import Answer, Row
    from evomerge_scoring.generation import Stop

Progress = Callable[[Sequence[int]], None]
"""Called with the numbers of the rows or prompts that are done."""


class ScoringModel(Protocol):
    """A loaded model.

    Attributes:
        context: tokens that it reads at most.
        tree: the longest row that choices may share (see `encode.tree_limit`).
        masked: a masked language model (BERT and its kin).
        end_ids: tokens that end a generation.

    """

    tokenizer: Any
    tokenizer_digest: str
    context: int
    masked: bool
    end_ids: frozenset[int]

    @property
    def tree(self) -> int: ...
    @property
    def vocabulary(self) -> int: ...
    @property
    def parameters(self) -> int: ...
    @property
    def weight_bytes(self) -> int: ...
    def describe(self, threads: int) -> str: ...
    def answers(
        self, rows: Sequence[Row], size: int, progress: Progress | None = None, *, greedy: bool = False
    ) -> list[Answer]: ...
    def continuations(
        self, prompts: Sequence[Sequence[int]], stop: Stop, size: int, progress: Progress | None = None
    ) -> list[list[int]]: ...
