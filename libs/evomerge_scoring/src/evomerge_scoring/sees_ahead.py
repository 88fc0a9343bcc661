"""A look at a model that has just been loaded: does what it says of a token depend on the tokens behind it?

Then no likelihood of a text from left to right can be had of it: it has seen what it is asked. Asked of the model, not
of its name: encoders in language models' clothing, prefix models and sparse attention of some settings all show it.
"""

from __future__ import annotations

from typing import Any

import torch

from evomerge_common.errors import ModelError
from evomerge_scoring.config import text_config
from evomerge_scoring.forward import output_of

TOKENS, BEHIND = 48, 8
"""Tokens of the two texts, at most, and how many at their end differ."""
ALLOWED, ALLOWED_ROUNDED = 0.02, 0.2
"""Of the logits' standard deviation, in float32 and in fewer bits: rounding stays far below, seeing ahead far above."""


def check_causal(module: Any, *, encoder_decoder: bool) -> None:
    """Refuses a model that answers otherwise where only later tokens differ.

    Raises:
        ModelError: it does, or cannot read a text alone.

    """
    text = text_config(module.config)
    most = getattr(text, "max_position_embeddings", None)
    count = min(TOKENS, most) if isinstance(most, int) and most >= 2 * BEHIND else TOKENS
    words = _plain_tokens(module.config, int(text.vocab_size))
    ids = words[torch.randint(len(words), (2, count), generator=torch.Generator().manual_seed(0))]
    ids[1, : count - BEHIND] = ids[0, : count - BEHIND]
    ids = ids.to(next(module.parameters()).device)

    def said(texts: torch.Tensor) -> torch.Tensor:
        read = {"input_ids": texts}
        if encoder_decoder:
            read = {"input_ids": ids[:1].expand(len(texts), -1), "decoder_input_ids": texts}
        found: torch.Tensor = output_of(module, {**read, "use_cache": False}).logits[:, : count - BEHIND].float()
        return found

    with torch.inference_mode():
        whole = said(ids)
        differs, allowed = (whole[1] - whole[0]).abs().amax(), ALLOWED
        if next(module.parameters()).dtype == torch.float32:  # in fewer bits, texts of other lengths differ by rounding
            differs = torch.maximum(differs, (said(ids[:1, : count - BEHIND])[0] - whole[0]).abs().amax())
        else:
            allowed = ALLOWED_ROUNDED
    if float(differs) > allowed * float(whole[0].std()):
        raise ModelError(
            f"what transformers' {type(module).__name__} of this config says of a token depends on the tokens behind "
            "it, so it has no likelihood of a text and cannot be scored; `evomerge merge` merges it"
        )


def _plain_tokens(config: Any, vocabulary: int) -> torch.Tensor:
    """Token ids that stand for themselves: not an image, an end, padding."""
    special: set[int] = set()
    for part in (config, text_config(config)):
        for name, value in part.to_dict().items():
            if name.endswith(("_token_id", "_token_index", "_token_ids")):
                special.update(value if isinstance(value, list | tuple) else [value])
    return torch.tensor([token for token in range(vocabulary) if token not in special] or [0])
