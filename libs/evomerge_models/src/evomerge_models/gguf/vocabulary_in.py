"""A GGUF file's vocabulary as tokenizer.json, tokenizer_config.json, chat template and generation_config.json."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge_common.errors import ModelError, UnsafeFile
from evomerge_models.gguf.pretokenizers import by_name

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""`tokenizer.ggml.token_type`."""
SPACE = "▁"
_DEFAULT_PRE = {"gpt2": "gpt-2", "qwen2": "qwen2", "qwen3": "qwen2", "phi3": "gpt-2"}
_SPECIAL = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad", "mask": "mask", "seperator": "sep",
            "cls": "cls"}  # fmt: skip
MAX_PIECE = 256


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a file's metadata."""

    model: str
    tokens: list[str]
    types: list[int]
    scores: list[float]
    merges: list[str]
    special: dict[str, int]
    metadata: Mapping[str, Any]

    def token(self, name: str) -> str | None:
        """Text of a special token ("bos", "eos", "unk", "pad", "mask", "sep", "cls")."""
        index = self.special.get(name)
        return None if index is None else self.tokens[index]

    def flag(self, name: str, default: bool) -> bool:
        """`tokenizer.ggml.<name>`."""
        value = self.metadata.get(f"tokenizer.ggml.{name}", default)
        return value if isinstance(value, bool) else default


def read_vocabulary(metadata: Mapping[str, Any], where: str) -> Vocabulary:
    """The vocabulary, checked for agreement with itself.

    Raises:
        UnsafeFile: lists of different lengths, ids out of range.
        ModelError: it has none, or one of a kind that is not read.

    """
    model, tokens = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens or not all(isinstance(one, str) for one in tokens):
        raise ModelError(f"{where} has no vocabulary; convert the model again with its tokenizer")
    if model not in {"gpt2", "llama", "bert"}:
        raise ModelError(f"{where} has a tokenizer of kind {model!r}; gpt2 (byte-level), llama and bert are read")
    lists: dict[str, list[Any]] = {}
    for key, default in (("token_type", NORMAL), ("scores", 0.0)):
        value = metadata.get(f"tokenizer.ggml.{key}", [default] * len(tokens))
        if not isinstance(value, list) or len(value) != len(tokens):
            raise UnsafeFile(f"{where}: tokenizer.ggml.{key} does not have one entry for each of {len(tokens)} tokens")
        lists[key] = value
    merges = metadata.get("tokenizer.ggml.merges", [])
    if not isinstance(merges, list) or not all(isinstance(one, str) and " " in one[1:] for one in merges):
        raise UnsafeFile(f"{where}: tokenizer.ggml.merges are no pairs of pieces")
    special: dict[str, int] = {}
    for theirs, ours in _SPECIAL.items():
        value = metadata.get(f"tokenizer.ggml.{theirs}_token_id")
        if value is None or value in {0xFFFFFFFF, -1}:
            continue
        if type(value) is not int or not 0 <= value < len(tokens):
            raise UnsafeFile(f"{where}: the {ours} token is {value!r} of {len(tokens)} tokens")
        special[ours] = value
    return Vocabulary(model, tokens, lists["token_type"], lists["scores"], merges, special, metadata)


def write_tokenizer(metadata: Mapping[str, Any], architecture: str, folder: Path, where: str) -> None:
    """Puts the tokenizer's files into `folder`.

    Raises:
        UnsafeFile, ModelError: see `read_vocabulary`; a pre-tokenizer that is not known.

    """
    words = read_vocabulary(metadata, where)
    build = {"gpt2": _byte_level, "llama": _sentencepiece, "bert": _wordpiece}[words.model]
    data = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": _added(words),
        **build(words, architecture, where),
    }  # fmt: skip
    _write(folder / "tokenizer.json", data)
    _write(folder / "tokenizer_config.json", _settings(words))
    template = metadata.get("tokenizer.chat_template")
    if isinstance(template, str) and template:
        (folder / "chat_template.jinja").write_text(template, "utf-8")
    ends = _ends(words)
    generation: dict[str, Any] = {
        f"{name}_token_id": words.special[name] for name in ("bos", "pad") if name in words.special
    }
    if ends:
        generation["eos_token_id"] = ends[0] if len(ends) == 1 else ends
    if generation:
        _write(folder / "generation_config.json", generation)


def _write(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", "utf-8")


def _ends(words: Vocabulary) -> list[int]:
    """Every token that ends a text: of the text, of a turn."""
    ends = [words.special["eos"]] if "eos" in words.special else []
    for key in ("eot", "eom"):
        value = words.metadata.get(f"tokenizer.ggml.{key}_token_id")
        if type(value) is int and 0 <= value < len(words.tokens) and value not in ends:
            ends.append(value)
    return ends


def is_padding(index: int, text: str, kind: int) -> bool:
    """Whether a token only fills a row of the embedding that no token has."""
    return kind == UNUSED and re.fullmatch(rf"\[PAD{index}\]", text) is not None


def _vocabulary(words: Vocabulary) -> dict[str, int]:
    """Text → id; of tokens with one text (undecodable bytes) the first."""
    found: dict[str, int] = {}
    for index, text in enumerate(words.tokens):
        if not is_padding(index, text, words.types[index]):
            found.setdefault(text, index)
    return found


def _added(words: Vocabulary) -> list[dict[str, Any]]:
    """Tokens that are found in a text before it is cut: control tokens and those that a user defined."""
    sure = set(words.special.values())
    return [
        {"id": index, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": kind != USER_DEFINED}
        for index, (text, kind) in enumerate(zip(words.tokens, words.types, strict=True))
        if text and (kind in {CONTROL, USER_DEFINED, UNKNOWN} or (index in sure and kind != BYTE))
        and not is_padding(index, text, kind)
    ]  # fmt: skip


def _settings(words: Vocabulary) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False,
    }  # fmt: skip
    for name in _SPECIAL.values():
        if name in words.special:
            settings[f"{name}_token"] = words.token(name)
    for value in words.metadata.items():
        key, number = value
        if key.endswith(".context_length") and type(number) is int:
            settings["model_max_length"] = number
    return settings


def _template(words: Vocabulary, *, bos: bool, eos: bool) -> dict[str, Any] | None:
    """The post-processor that puts special tokens around a text."""
    first = words.token("bos") or words.token("cls") if bos else None
    last = (words.token("sep") if words.model == "bert" else None) or words.token("eos") if eos else None
    if first is None and last is None:
        return None

    def around(sequence: str, kind: int) -> list[dict[str, Any]]:
        parts = (
            [{"SpecialToken": {"id": first, "type_id": kind}}] if first and (kind == 0 or words.model != "bert") else []
        )
        parts.append({"Sequence": {"id": sequence, "type_id": kind}})
        if last:
            parts.append({"SpecialToken": {"id": last, "type_id": kind}})
        return parts

    ids = {text: words.tokens.index(text) for text in (first, last) if text}
    return {
        "type": "TemplateProcessing", "single": around("A", 0), "pair": [*around("A", 0), *around("B", 1)],
        "special_tokens": {text: {"id": text, "ids": [index], "tokens": [text]} for text, index in ids.items()},
    }  # fmt: skip


def _byte_level(words: Vocabulary, architecture: str, where: str) -> dict[str, Any]:
    name = words.metadata.get("tokenizer.ggml.pre", "default")
    if name == "default":
        name = _DEFAULT_PRE.get(architecture, "llama-bpe")
    pre = by_name(str(name))
    if pre is None:
        raise ModelError(
            f"{where} cuts text by the rules {name!r}, which are not known here; give the model's own folder"
        )
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    bos = words.flag("add_bos_token", default=name in {"llama-bpe", "llama3", "llama-v3", "tekken"})
    return {
        "normalizer": {"type": "NFC"} if words.flag("normalizer.nfc", default=name.startswith("qwen")) else None,
        "pre_tokenizer": pre.to_json(),
        "post_processor": _template(words, bos=bos, eos=words.flag("add_eos_token", default=False)) or level,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": pre.whole_words,
            "vocab": _vocabulary(words), "merges": [_halves(pair) for pair in words.merges],
        },
    }  # fmt: skip


def _halves(pair: str) -> list[str]:
    """A merge is written as two pieces with a space between; a piece may itself begin with one."""
    at = pair.index(" ", 1)
    return [pair[:at], pair[at + 1 :]]


def _sentencepiece(words: Vocabulary, architecture: str, where: str) -> dict[str, Any]:
    del architecture, where
    prefix = words.flag("add_space_prefix", default=True)
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
    ]  # fmt: skip
    if prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    steps = [{"type": "Prepend", "prepend": SPACE}, replace] if prefix else [replace]
    unknown = words.token("unk") or next(
        (t for t, k in zip(words.tokens, words.types, strict=True) if k == UNKNOWN), None
    )
    return {
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": None,
        "post_processor": _template(
            words, bos=words.flag("add_bos_token", default=True), eos=words.flag("add_eos_token", default=False)
        ),
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": unknown, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
            "vocab": _vocabulary(words), "merges": merges_of_scores(words),
        },
    }  # fmt: skip


def merges_of_scores(words: Vocabulary) -> list[list[str]]:
    """Byte-pair merges that do what the scores say: every way to put a piece together, the best piece first."""
    vocabulary = {
        text: index for index, text in enumerate(words.tokens) if words.types[index] in {NORMAL, USER_DEFINED}
    }
    found: list[tuple[float, int, int, int, list[str]]] = []
    for text, index in vocabulary.items():
        if words.types[index] != NORMAL or len(text) > MAX_PIECE:
            continue
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in vocabulary and right in vocabulary:
                found.append((-words.scores[index], index, vocabulary[left], vocabulary[right], [left, right]))
    found.sort(key=lambda one: one[:4])
    return [pair for *_, pair in found]


def _wordpiece(words: Vocabulary, architecture: str, where: str) -> dict[str, Any]:
    del architecture, where
    special = set(words.special.values())
    texts: dict[str, int] = {}
    for index, (text, kind) in enumerate(zip(words.tokens, words.types, strict=True)):
        if is_padding(index, text, kind):
            continue
        if kind not in {CONTROL, UNKNOWN} and index not in special:
            text = text[1:] if text.startswith(SPACE) else f"##{text}"  # noqa: PLW2901
        texts.setdefault(text, index)
    return {
        "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
                       "strip_accents": words.flag("normalizer.strip_accents", default=True),
                       "lowercase": words.flag("normalizer.lowercase", default=True)},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": _template(words, bos=True, eos=True),
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {"type": "WordPiece", "unk_token": words.token("unk") or "[UNK]", "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 100, "vocab": texts},
    }  # fmt: skip
