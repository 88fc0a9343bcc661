"""Small tokenizers of several kinds, trained on the spot, beside tiny models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ENGLISH = "the cat sat on the mat and the other cat sat on the other mat while the dog ran around the garden"
GERMAN = "der hund lief durch den garten und die katze sass auf der matte der andere hund schlief"


def make_tokenizer(
    folder: Path,
    text: str = ENGLISH,
    size: int = 60,
    *,
    kind: str = "bpe",
    special: tuple[str, ...] = ("<s>", "</s>"),
    added: tuple[str, ...] = (),
    template: str = "",
) -> int:
    """Writes tokenizer.json and tokenizer_config.json; special tokens first, `added` ones last. Returns its size."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer: Any
    if kind == "bpe":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Whitespace(), decoders.BPEDecoder()
        trainer: Any = trainers.BpeTrainer(vocab_size=size, special_tokens=list(special), show_progress=False)
    elif kind == "byte-level":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer, tokenizer.decoder = (
            pre_tokenizers.ByteLevel(add_prefix_space=False),
            decoders.ByteLevel(),
        )
        trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=list(special), show_progress=False)
    elif kind == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=size, special_tokens=[*special, "<unk>"], unk_token="<unk>", show_progress=False
        )
    else:
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.decoder = decoders.WordPiece()
        tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
        trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=[*special, "[UNK]"], show_progress=False)
    tokenizer.train_from_iterator([text], trainer)
    if added:
        tokenizer.add_special_tokens(list(added))
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**config, **({"chat_template": template} if template else {})})
    )
    count: int = tokenizer.get_vocab_size()
    return count


def tokens_of(folder: Path) -> dict[str, int]:
    """Token → id, as the tokenizers library reads the folder's tokenizer.json."""
    from tokenizers import Tokenizer

    found: dict[str, int] = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
    return found
