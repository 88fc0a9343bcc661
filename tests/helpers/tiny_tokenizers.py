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


SENTENCEPIECE: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "llama bpe": ("LlamaTokenizer", "tokenizer.model", "bpe", {"byte_fallback": True}),
    "llama unigram": ("LlamaTokenizer", "tokenizer.model", "unigram", {}),
    "gemma": (
        "GemmaTokenizer", "tokenizer.model", "bpe",
        {"byte_fallback": True, "pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3},
    ),
    "t5": ("T5Tokenizer", "spiece.model", "unigram", {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}),
    "xlm-roberta": ("XLMRobertaTokenizer", "sentencepiece.bpe.model", "unigram", {}),
}  # fmt: skip
"""Name → transformers' class, its file, SentencePiece's kind of model and options."""


def make_sentencepiece(folder: Path, text: str = ENGLISH, size: int = 330, *, kind: str = "llama bpe") -> None:
    """Writes a SentencePiece model and tokenizer_config.json, and no tokenizer.json."""
    import io

    import sentencepiece

    name, file, model, options = SENTENCEPIECE[kind]
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text] * 4), model_writer=made, vocab_size=size, model_type=model, minloglevel=2,
        hard_vocab_limit=False, num_threads=1, **{"unk_id": 0, "bos_id": 1, "eos_id": 2, **options},
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("token*"):
        old.unlink()
    (folder / file).write_bytes(made.getvalue())
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name}))
