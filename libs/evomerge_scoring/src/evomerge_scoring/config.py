"""What a model folder's config and tokenizer say to whoever scores it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge_models.files import read_json_object

if TYPE_CHECKING:
    import torch

_TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model",
    "chat_template*", "*processor_config.json")  # fmt: skip
_NO_EFFECT = ("_name_or_path", "transformers_version", "torch_dtype", "dtype")  # config keys that change no score
_CONTEXTS = ("max_decoder_position_embeddings", "max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")
_BOUND = ("forced_bos_token_id", "forced_eos_token_id", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens")
DEFAULT_CONTEXT = 2048


def text_config(config: Any) -> Any:
    """The part of a config that is of the model's text; of an encoder with a decoder, of the decoder, which answers."""
    return config.get_text_config(decoder=True) if config.is_encoder_decoder else config.get_text_config()


def config_key(folder: Path, dtype: torch.dtype) -> str:
    """Equal where the same module serves two folders: a digest of dtype and config."""
    data = json.loads((folder / "config.json").read_bytes())
    kept = {key: value for key, value in data.items() if key not in _NO_EFFECT}
    return hashlib.sha256(json.dumps([kept, str(dtype)], sort_keys=True).encode()).hexdigest()


def tokenizer_digest(folder: Path, model_type: str) -> str:
    """A digest of a folder's tokenizer.

    The same files make another tokenizer under another model type: transformers picks its class by it.
    """
    digest = hashlib.sha256()
    for path in sorted({path for pattern in _TOKENIZER_FILES for path in folder.glob(pattern)}):
        if path.is_file():
            digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
            digest.update(path.read_bytes())
    return f"{model_type}:{digest.hexdigest()}"


def context_of(config: Any, tokenizer: Any) -> int:
    """Tokens that a model reads at most."""
    text = text_config(config)
    found = next((int(getattr(text, key)) for key in _CONTEXTS if isinstance(getattr(text, key, None), int)), 0)
    if found and text.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet"):
        found -= (text.pad_token_id or 0) + 1  # their positions start after the padding id
    said = int(min(getattr(tokenizer, "model_max_length", 0) or 0, 10**9))
    if 0 < said < 10**9:
        found = min(found, said) if found else said
    return found if found > 1 else DEFAULT_CONTEXT


def end_ids(folder: Path, config: Any, tokenizer: Any) -> frozenset[int]:
    """End tokens as config, generation config and tokenizer name them."""
    named = [getattr(text_config(config), "eos_token_id", None), tokenizer.eos_token_id]
    named.append(_generation(folder).get("eos_token_id"))
    flat = [n for item in named for n in (item if isinstance(item, list) else [item])]
    return frozenset(n for n in flat if isinstance(n, int))


def decoder_start(folder: Path, config: Any) -> int | None:
    """The token that a decoder reads first, by transformers' own order; None where nothing names one."""
    text = text_config(config)
    named = (
        _generation(folder).get("decoder_start_token_id"),
        getattr(config, "decoder_start_token_id", None),
        getattr(text, "decoder_start_token_id", None),
        _generation(folder).get("bos_token_id"),
        getattr(text, "bos_token_id", None),
    )
    return next((token for token in named if isinstance(token, int)), None)


def bound_tokens(folder: Path) -> dict[str, Any]:
    """What a decoder must or must not say, by transformers' names, from its generation config, else its config.

    Nothing of how the likeliest text is looked for (beams, penalties, lengths): every model is asked greedily.
    """
    said = _generation(folder) or read_json_object(folder / "config.json")
    return {key: said[key] for key in _BOUND if said.get(key) is not None}


def _generation(folder: Path) -> Mapping[str, Any]:
    path = folder / "generation_config.json"
    return read_json_object(path) if path.is_file() else {}
