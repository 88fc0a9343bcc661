"""A model that transformers has loaded: its module, its tokenizer, and how to get logits of chosen positions alone."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from evomerge_scoring.config import text_config
from evomerge_scoring.devices import describe
from evomerge_scoring.pictures import Sight

TREE_TYPES = frozenset(
    ("gemma", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "granite", "llama", "mistral", "olmo2", "phi", "phi3",
     "qwen2", "qwen3", "smollm3", "stablelm", "starcoder2")
)  # fmt: skip
"""Kinds of model that take positions and a mask for each row, so that choices can share a prompt; each is tested."""

SCALED = ("dynamic", "longrope")
"""Kinds of rotary positions whose scale a forward pass of transformers writes into the module."""


def tree_limit(config: Any) -> int:
    """The longest row, in tokens, for which a mask of our own means the same to every layer; 0: never.

    A layer with a sliding window sees less than its mask allows, but only in rows longer than the window.
    """
    if config.model_type not in TREE_TYPES or config._attn_implementation not in ("sdpa", "eager"):
        return 0
    window = getattr(config, "sliding_window", None)
    return window if isinstance(window, int) else sys.maxsize


class Gather:
    """Lets a model's output layer compute logits of chosen positions alone, whatever the model's class.

    A hook picks the hidden states before the output layer, so whatever the model does to its logits afterwards (soft
    capping, scaling) still happens.
    """

    def __init__(self, module: Any) -> None:
        self._thread = threading.local()  # each thread asks a forward pass of its own
        head = module.get_output_embeddings()
        if head is not None:
            head.register_forward_pre_hook(self._hook)

    def _hook(self, _module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        chosen = getattr(self._thread, "chosen", None)
        if chosen is None or inputs[0].dim() != 3:
            return inputs
        return (inputs[0][chosen].unsqueeze(0), *inputs[1:])

    @contextmanager
    def positions(self, rows: torch.Tensor, columns: torch.Tensor) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
        """Within it, logits come as (1, N, vocabulary) for N (row, column) pairs; yields what makes them (N, …)."""

        def pick(logits: torch.Tensor) -> torch.Tensor:
            if logits.shape[0] == 1 and logits.shape[1] == len(rows):
                return logits[0]
            return logits[rows, columns]

        self._thread.chosen = (rows, columns)
        try:
            yield pick
        finally:
            self._thread.chosen = None


@dataclass
class LoadedModel:
    """A model in memory; `torch_model.TorchModel` asks it.

    Attributes:
        module: in eval mode, on its device; `gather` picks the positions whose logits it computes.
        context: tokens that it reads at most.
        masked: a masked language model (BERT and its kin).
        decoder_start: of an encoder with a decoder, the token that the decoder reads first; else None.
        sight: reads images.
        end_ids: tokens that end a generation.
        halved: batches so far that did not fit into memory: scores may differ in their last bits from those elsewhere.

    """

    module: Any
    gather: Gather
    tokenizer: Any
    tokenizer_digest: str
    context: int
    masked: bool
    decoder_start: int | None
    sight: Sight
    end_ids: frozenset[int]
    device: torch.device
    dtype: torch.dtype
    halved: int = 0

    @functools.cached_property
    def tree(self) -> int:
        """See `tree_limit`."""
        return 0 if self.decoder_start is not None else tree_limit(text_config(self.module.config))

    @property
    def lanes(self) -> int:
        """How many batches it may be asked at once: as many as torch has threads, on a CPU.

        Not where a forward pass writes into the module, nor for the types that no test asks so.
        """
        return torch.get_num_threads() if self.tree and self.device.type == "cpu" and not self._scaled else 1

    @functools.cached_property
    def _scaled(self) -> bool:
        return any(name in str(getattr(part, "rope_type", "")) for part in self.module.modules() for name in SCALED)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights in the dtype that the model is stored in."""
        stored = getattr(self.module.config, "dtype", None)
        return self.parameters * int((stored if isinstance(stored, torch.dtype) else torch.float32).itemsize)

    def describe(self, threads: int) -> str:
        """Where and how it computed."""
        return describe(self.device, self.dtype, threads) + (", batches halved" if self.halved else "")

    @property
    def parameters(self) -> int:
        """Numbers in its weights, tied ones once."""
        return sum(parameter.numel() for parameter in self.module.parameters())

    @functools.cached_property
    def vocabulary(self) -> int:
        return int(text_config(self.module.config).vocab_size)

    @functools.cached_property
    def padding(self) -> int:
        """The token that fills rows up, which nothing looks at: the tokenizer's, if it has a row, else the first."""
        own = self.tokenizer.pad_token_id
        return own if own is not None and 0 <= own < self.vocabulary else 0
