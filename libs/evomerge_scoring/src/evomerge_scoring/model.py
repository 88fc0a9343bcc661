"""The ground floor of scoring: what is asked of a model, what it answers, and what a model is. No torch.

Each floor stands on those before it: model, loaded, prefix, forward, generation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

    from evomerge_merging import Plan

Progress = Callable[[Sequence[int]], None]
"""Called with the numbers of the rows or prompts that are done."""


@dataclass(frozen=True)
class Picture:
    """A text with an image in it, as the model's processor reads both.

    Attributes:
        text: with the image's token where the image stands.
        image: its file, as a data URL.
        rendered: the text comes from a chat template, so that its special tokens are in it already.

    """

    text: str
    image: str
    rendered: bool = False


Prompt = Sequence[int] | Picture
"""What a model continues: tokens, or a text with an image in it."""


@dataclass(frozen=True)
class Row:
    """What a model reads, and the queries that it answers: "at position p, how likely is token t?".

    Choices of one prompt share a row: it is a tree whose paths are the choices, and each token sees its own path only,
    at the position that it would have alone (tree attention, as in SpecInfer, arXiv:2305.09781).

    Attributes:
        ids: tokens read: those of a tree, depth first.
        queries: (place in `ids`, token) pairs: how likely is it that the token follows what ends there?
        ends: of each token, the end of its subtree: it is seen by the tokens before that place and after its own.
            Empty: the tree is one path.
        depths: of each token, the position that it would have in a row of its own path; empty as `ends`.
        source: tokens that an encoder reads, where `ids` are those of its decoder.
        picture: what `ids` are of, where an image is among it; such a row is read alone.

    """

    ids: tuple[int, ...]
    queries: tuple[tuple[int, int], ...]
    ends: tuple[int, ...] = ()
    depths: tuple[int, ...] = ()
    source: tuple[int, ...] = ()
    picture: Picture | None = None

    @classmethod
    def plain(cls, ids: Sequence[int], queries: Sequence[tuple[int, int]]) -> Row:
        """A row of one path."""
        return cls(tuple(ids), tuple(queries))

    @property
    def trunk(self) -> int:
        """How many tokens stand before the first fork."""
        return next((place for place, end in enumerate(self.ends) if end < len(self.ids)), len(self.ids))

    def behind(self, count: int) -> Row:
        """The same without its first tokens, of the trunk, which are read already."""
        queries = tuple((place - count, token) for place, token in self.queries)
        ends = tuple(end - count for end in self.ends[count:])
        return Row(self.ids[count:], queries, ends, tuple(depth - count for depth in self.depths[count:]))


@dataclass(frozen=True)
class Answer:
    """A row's queries answered, in their order.

    Attributes:
        logprobs: natural log-probability of each queried token.
        greedy: whether it is the likeliest of all tokens; empty unless asked for.

    """

    logprobs: list[float]
    greedy: list[bool] = field(default_factory=list)


@dataclass(frozen=True)
class Stop:
    """When a continuation ends: at one of the strings, an end token, or after `max_new_tokens`."""

    strings: tuple[str, ...]
    max_new_tokens: int

    @property
    def tail(self) -> int:
        """Last tokens among which a stop string would show up; a token may be a part of a character."""
        return 2 * max(map(len, self.strings), default=0) + 8


class ScoringModel(Protocol):
    """A loaded model.

    Attributes:
        context: tokens that it reads at most.
        tree: the longest row that choices may share (see `loaded.tree_limit`).
        masked: a masked language model (BERT and its kin).
        decoder_start: of an encoder with a decoder (T5 and its kin), the token that the decoder reads first; else None.
        sight: reads images, or says why it cannot (`pictures.Sight`).
        end_ids: tokens that end a generation.

    """

    tokenizer: Any
    tokenizer_digest: str
    context: int
    masked: bool
    decoder_start: int | None
    sight: Any
    end_ids: frozenset[int]

    @property
    def tree(self) -> int: ...
    @property
    def vocabulary(self) -> int: ...
    @property
    def parameters(self) -> int: ...
    @property
    def weight_bytes(self) -> int: ...
    def describe(self, threads: int) -> str:
        """Where and how it computed, such as "cpu float32 2 threads"; called when a candidate is scored."""
        ...

    def answers(
        self, rows: Sequence[Row], size: int, progress: Progress | None = None, *, greedy: bool = False
    ) -> list[Answer]:
        """How likely each row's queried tokens are; called with all rows of a task, `size` of them a batch at most.

        Raises:
            NonFiniteScore: the model answered NaN or infinity.
            OutOfMemory: not even one row fits.

        """
        ...

    def continuations(
        self, prompts: Sequence[Prompt], stop: Stop, size: int, progress: Progress | None = None
    ) -> list[list[int]]:
        """New tokens of each prompt, without the end token; a stop string may still be in them.

        Called with all prompts of a task, `size` of them a batch at most.

        Raises:
            NonFiniteScore: the model answered NaN or infinity.
            OutOfMemory: not even one prompt fits.

        """
        ...


class Backend(Protocol):
    """Holds one model at a time: transformers in this process (`resident.Resident`), or vLLM.

    Attributes:
        device: where it computes.
        dtype: in which the models that are loaded next compute: "auto", "float32" or "bfloat16"; the scorer sets it.

    """

    device: torch.device
    dtype: str

    def load_folder(self, folder: Path) -> ScoringModel:
        """Makes a model folder the one to score.

        Raises:
            ModelError: it is missing, no model, unsafe, or its tensors do not fit its config.

        """
        ...

    def load_plan(self, plan: Plan, *, threads: int = 2) -> ScoringModel:
        """Makes the model of a merge plan the one to score.

        Raises:
            ModelError: the merge cannot be made, or its result is no model.

        """
        ...

    def load_tensors(self, tensors: Mapping[str, torch.Tensor], config_folder: Path) -> ScoringModel:
        """Makes tensors in memory the model to score; config and tokenizer come from a folder.

        Raises:
            ModelError: the tensors do not fit the config.

        """
        ...
