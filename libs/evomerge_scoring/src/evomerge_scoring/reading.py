"""How a model reads, and which class of transformers does it: its own mappings of model types say so, no list of ours.

`transformers.models.auto` is imported at the first question: it takes seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evomerge_common.errors import ModelError

CAUSAL, MASKED, ENCODED = "causal", "masked", "encoder-decoder"
"""A text up to a token tells the next; the text around a masked token tells it; a prompt is read by an encoder."""

_WRAPPERS = ("AutoModelForImageTextToText", "AutoModelForMultimodalLM", "AutoModelForSeq2SeqLM")
_ANSWERING = ("AutoModelForCausalLM", *_WRAPPERS, "AutoModelForMaskedLM")
"""Auto classes whose models answer with tokens of a text; where two have a model, the first says how it reads."""


@dataclass(frozen=True)
class Reading:
    """The class of transformers that makes a config's model, and how it reads: `CAUSAL`, `MASKED` or `ENCODED`."""

    model_class: Any
    how: str


def reading_of(config: Any) -> Reading:
    """Finds what answers for a model: the class that its config names, else the one that its type is mapped to.

    Args:
        config: as transformers reads it.

    Raises:
        ModelError: transformers maps no class to it that answers with tokens of a text.

    """
    import transformers

    found: dict[str, Reading] = {}
    by_wrapper = ENCODED if config.is_encoder_decoder else CAUSAL
    for auto in _ANSWERING:
        mapping = getattr(transformers, auto)._model_mapping
        if type(config) not in mapping:
            continue
        classes = mapping[type(config)]
        how = by_wrapper if auto in _WRAPPERS else MASKED if "Masked" in auto else CAUSAL
        for one in classes if isinstance(classes, tuple | list) else (classes,):
            if one.__name__ not in found or (how == MASKED and not (config.is_encoder_decoder or _is_decoder(config))):
                found[one.__name__] = Reading(one, how)
    named = next((found[name] for name in config.architectures or () if name in found), None)
    if named is not None:
        return _checked(named, config, found)
    # A headless save, or one for another purpose: an encoder is asked as an encoder.
    wanted = ENCODED if config.is_encoder_decoder else CAUSAL if _is_decoder(config) else MASKED
    whole = next((one for one in found.values() if one.how == wanted), next(iter(found.values()), None))
    if whole is None:
        raise ModelError(
            f"transformers maps no class to the model type {config.model_type!r} that answers with a text, so such a "
            "model cannot be scored and cannot continue a text; `evomerge merge` merges it by a recipe"
        )
    return whole


def _checked(named: Reading, config: Any, found: Mapping[str, Reading]) -> Reading:
    """Refuses an encoder in a language model's class: it reads both ways, and has seen the token that it is asked."""
    masked = next((one.model_class.__name__ for one in found.values() if one.how == MASKED), "")
    if named.how == CAUSAL and masked and not _is_decoder(config):
        raise ModelError(
            f"its config names {named.model_class.__name__}, but is_decoder is false: such a model sees the "
            f"tokens that it would be asked about; name {masked} as its architecture, or set is_decoder to true if it "
            "was trained so"
        )
    return named


def _is_decoder(config: Any) -> bool:
    return bool(getattr(config, "is_decoder", False))
