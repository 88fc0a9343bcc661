"""A model that stays in memory: the next candidate of the same config only swaps its tensors in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from evomerge_common.errors import ModelError
from evomerge_scoring.backend import LoadingBackend
from evomerge_scoring.config import bound_tokens, config_key, context_of, decoder_start, end_ids, tokenizer_digest
from evomerge_scoring.devices import choose_dtype
from evomerge_scoring.loaded import Gather
from evomerge_scoring.loading_errors import model_errors
from evomerge_scoring.module import LOCAL, fresh_module, swap_weights
from evomerge_scoring.pictures import Sight, load_sight
from evomerge_scoring.reading import ENCODED, MASKED, reading_of
from evomerge_scoring.sees_ahead import check_causal
from evomerge_scoring.tensors import Weights
from evomerge_scoring.torch_model import TorchModel

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


class Resident(LoadingBackend[TorchModel]):
    """Holds one module and one tokenizer, and replaces of them only what the next candidate needs.

    Attributes:
        copied: tensors that swaps copied.

    """

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.copied = 0
        self._key = ""
        self._origin = ""  # identity of the files that all tensors in the module are of, but `_changed`
        self._changed: frozenset[str] = frozenset()
        self._module: Any = None
        self._gather: Gather | None = None
        self._tokenizer: Any = None
        self._sight = Sight()
        self._tokenizer_digest = ""

    def _load(self, folder: Path, weights: Weights) -> TorchModel:
        with model_errors(folder):
            config = AutoConfig.from_pretrained(folder, **LOCAL)
            # What is quantised was refused before; words that are left over make transformers quantise anew.
            vars(config).pop("quantization_config", None)
            reading = reading_of(config)
            dtype = choose_dtype(self.device, parameters=weights.parameters, wanted=self.dtype)
            key = config_key(folder, dtype)
            if not (key == self._key and self._swap(weights)):
                self._forget()
                self._module = fresh_module(reading.model_class, config, weights, dtype, self.device)
                if reading.how != MASKED:
                    check_causal(self._module, encoder_decoder=reading.how == ENCODED)
                self._gather = Gather(self._module)
                self._key = key
                self.loads += 1
            # `generate` fills in from it what it is not told: the same for a folder, a plan and a swap
            self._module.generation_config = GenerationConfig(**bound_tokens(folder) if reading.how == ENCODED else {})
            self._origin, self._changed = weights.origin, weights.changed
            tokenizer = self._load_tokenizer(folder, config.model_type)
            start = decoder_start(folder, config) if reading.how == ENCODED else None
            if reading.how == ENCODED and start is None:
                raise ModelError("neither its config nor its generation config names the token its decoder starts with")
        assert self._gather is not None
        return TorchModel(
            module=self._module,
            gather=self._gather,
            tokenizer=tokenizer,
            tokenizer_digest=self._tokenizer_digest,
            context=context_of(config, tokenizer),
            masked=reading.how == MASKED,
            decoder_start=start,
            sight=self._sight,
            end_ids=end_ids(folder, config, tokenizer),
            device=self.device,
            dtype=dtype,
        )

    def _forget(self) -> None:
        self._module = self._gather = None
        self._key = ""
        self._origin, self._changed = "", frozenset()

    def _swap(self, weights: Weights) -> bool:
        """Whether the module that is there could take the weights."""
        if weights.sources is None:
            return False
        known = weights.origin and weights.origin == self._origin
        there = weights.unchanged - self._changed if known else frozenset()
        self._origin = ""  # until all are in place
        copied = swap_weights(self._module, weights, there)
        if copied is None:
            return False
        self.swaps += 1
        self.copied += copied
        return True

    def _load_tokenizer(self, folder: Path, model_type: str) -> Any:
        digest = tokenizer_digest(folder, model_type)
        if digest != self._tokenizer_digest:
            self._tokenizer_digest = ""
            self._tokenizer = AutoTokenizer.from_pretrained(folder, **LOCAL)
            self._sight = load_sight(folder)
            self._tokenizer_digest = digest
        return self._tokenizer
