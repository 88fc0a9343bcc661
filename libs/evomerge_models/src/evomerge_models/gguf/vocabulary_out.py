"""A Hugging Face folder's tokenizer as GGUF metadata, so that llama.cpp cuts text as transformers does."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge_common.errors import ModelError
from evomerge_models.files import read_json_or_nothing
from evomerge_models.gguf.pretokenizers import PRE_TOKENIZERS, name_of
from evomerge_models.gguf.vocabulary_in import BYTE, CONTROL, MAX_PIECE, NORMAL, SPACE, UNKNOWN, UNUSED, USER_DEFINED

_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
_IDS = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "sep": "seperator", "mask": "mask"}
_LOWEST = -1000.0
"""Score of tokens that no merge makes."""


@dataclass(frozen=True)
class TokenizerMetadata:
    """`tokenizer.*` entries, and what llama.cpp will do otherwise than transformers, in words."""

    entries: dict[str, Any]
    notes: tuple[str, ...]


def tokenizer_metadata(
    folder: Path, config: Mapping[str, Any], data: Mapping[str, Any], *, rows: int
) -> TokenizerMetadata:
    """The tokenizer of a folder.

    Args:
        folder: with its settings, chat template and generation_config.json.
        config: its config.json.
        data: content of its tokenizer.json, or of the one that stands for its files of older formats.
        rows: of the embedding; rows without a token become unused tokens.

    Raises:
        ModelError: a tokenizer that llama.cpp has no words for, or one that is larger than the embedding.

    """
    if not data:
        raise ModelError(f"{folder} has no tokenizer that can be read; save its tokenizer again with transformers")
    settings = read_json_or_nothing(folder / "tokenizer_config.json")
    model = data.get("model") or {}
    notes: list[str] = []
    texts = _texts(folder, data, rows, notes)
    special = _special(data, settings, config, texts)
    if model.get("type") == "WordPiece":
        entries = _wordpiece(folder, data, texts)
    elif model.get("type") == "BPE" and model.get("byte_fallback"):
        entries = _sentencepiece(folder, data, texts, notes)
    elif model.get("type") == "BPE":
        entries = _byte_level(folder, data, texts)
    else:
        raise ModelError(
            f"{folder} has a tokenizer of kind {model.get('type')!r}; byte-level BPE, BPE with byte fallback and "
            "WordPiece are written: export a Hugging Face folder"
        )
    bos, eos = _around(data.get("post_processor"), texts)
    if model.get("type") == "WordPiece":
        if "cls" in special and "sep" in special:
            entries["tokenizer.ggml.cls_token_id"] = special["cls"]
            special |= {"bos": special["cls"], "eos": special["sep"]}
    else:
        entries |= {"tokenizer.ggml.add_bos_token": bos is not None, "tokenizer.ggml.add_eos_token": eos is not None}
        special |= {name: index for name, index in (("bos", bos), ("eos", eos)) if index is not None}
    # In an order of their own: the same model is the same file, whichever of its files tells of them.
    entries |= {f"tokenizer.ggml.{ours}_token_id": special[name] for name, ours in _IDS.items() if name in special}
    template = _chat_template(folder, settings)
    if template:
        entries["tokenizer.chat_template"] = template
    entries |= _end_of_turn(folder, special.get("eos"))
    return TokenizerMetadata(entries, tuple(notes))


@dataclass(frozen=True)
class _Texts:
    tokens: list[str]
    types: list[int]
    ids: dict[str, int]


def _texts(folder: Path, data: Mapping[str, Any], rows: int, notes: list[str]) -> _Texts:
    ids: dict[str, int] = dict(data.get("model", {}).get("vocab") or {})
    added = [one for one in data.get("added_tokens") or [] if isinstance(one, dict)]
    beyond = [one["content"] for one in added if one["id"] >= rows]
    if beyond:
        added = [one for one in added if one["id"] < rows]
        ids = {text: index for text, index in ids.items() if text not in beyond}
        notes.append(f"added tokens without a row in the embedding are left out: {', '.join(map(repr, beyond[:6]))}")
    ids |= {one["content"]: one["id"] for one in added}
    if ids and max(ids.values()) >= rows:
        raise ModelError(f"{folder}: its tokenizer has {max(ids.values()) + 1} ids, its embedding {rows} rows")
    tokens = [f"[PAD{index}]" for index in range(rows)]
    types = [UNUSED] * rows
    for text, index in ids.items():
        tokens[index], types[index] = text, NORMAL
    for one in added:
        types[one["id"]] = CONTROL if one.get("special") else USER_DEFINED
    return _Texts(tokens, types, ids)


def _special(
    data: Mapping[str, Any], settings: Mapping[str, Any], config: Mapping[str, Any], texts: _Texts
) -> dict[str, int]:
    """Ids of special tokens: the tokenizer's own word first, then the config's."""
    found: dict[str, int] = {}
    for name in ("bos", "eos", "unk", "pad", "sep", "cls", "mask"):
        text: Any = settings.get(f"{name}_token")
        text = text.get("content") if isinstance(text, Mapping) else text
        index: Any = texts.ids.get(text) if isinstance(text, str) else config.get(f"{name}_token_id")
        index = index[0] if isinstance(index, list) and index else index
        if type(index) is int and 0 <= index < len(texts.tokens):
            found[name] = index
    unknown = data.get("model", {}).get("unk_token")
    if "unk" not in found and unknown in texts.ids:
        found["unk"] = texts.ids[unknown]
    return found


def _around(post: Any, texts: _Texts) -> tuple[int | None, int | None]:
    """Ids of the tokens that a post-processor puts before and after a text."""
    if not isinstance(post, Mapping):
        return None, None
    if post.get("type") == "Sequence":
        pairs = [_around(one, texts) for one in post.get("processors") or []]
        return (next((a for a, _ in pairs if a is not None), None), next((b for _, b in pairs if b is not None), None))
    if post.get("type") in {"BertProcessing", "RobertaProcessing"}:
        return post["cls"][1], post["sep"][1]
    if post.get("type") != "TemplateProcessing":
        return None, None
    names = [next(iter(part.items())) for part in post.get("single") or []]
    at = next((i for i, (name, _) in enumerate(names) if name == "Sequence"), 0)
    first = texts.ids.get(names[0][1]["id"]) if at else None
    last = texts.ids.get(names[-1][1]["id"]) if at < len(names) - 1 else None
    return first, last


def _chat_template(folder: Path, settings: Mapping[str, Any]) -> str:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text("utf-8")
    for source in (settings, read_json_or_nothing(folder / "chat_template.json")):
        value = source.get("chat_template")
        if isinstance(value, list):  # several by name
            named = {one.get("name"): one.get("template") for one in value if isinstance(one, Mapping)}
            value = named.get("default")
        if isinstance(value, str):
            return value
    return ""


def _end_of_turn(folder: Path, end: int | None) -> dict[str, int]:
    """The second of the tokens at which generation ends, where there are two: that of a turn."""
    ends = read_json_or_nothing(folder / "generation_config.json").get("eos_token_id")
    others = [one for one in ends if type(one) is int and one != end] if isinstance(ends, list) else []
    return {"tokenizer.ggml.eot_token_id": others[0]} if others else {}


def _common(kind: str, pre: str, texts: _Texts) -> dict[str, Any]:
    return {
        "tokenizer.ggml.model": kind,
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": texts.tokens,
        "tokenizer.ggml.token_type": texts.types,
    }


def _byte_level(folder: Path, data: Mapping[str, Any], texts: _Texts) -> dict[str, Any]:
    whole = bool(data["model"].get("ignore_merges"))
    name = name_of(data.get("pre_tokenizer"), whole_words=whole)
    if name is None:
        raise ModelError(
            f"{folder}: llama.cpp has no name for the way in which its tokenizer cuts text (pre_tokenizer of "
            f"tokenizer.json); known are {', '.join(PRE_TOKENIZERS)}: export a Hugging Face folder"
        )
    normalizer = (data.get("normalizer") or {}).get("type")
    if normalizer not in {None, "NFC"}:
        raise ModelError(f"{folder}: its tokenizer normalises text by {normalizer!r}, which llama.cpp does not do")
    pairs = data["model"].get("merges") or []
    merges = [pair if isinstance(pair, str) else f"{pair[0]} {pair[1]}" for pair in pairs]
    found = {**_common("gpt2", name, texts), "tokenizer.ggml.merges": merges}
    if normalizer == "NFC":
        found["tokenizer.ggml.normalizer.nfc"] = True
    return found


def _sentencepiece(folder: Path, data: Mapping[str, Any], texts: _Texts, notes: list[str]) -> dict[str, Any]:
    pairs = [pair.split(" ", 1) if isinstance(pair, str) else pair for pair in data["model"].get("merges") or []]
    rank: dict[str, int] = {}
    for number, (left, right) in enumerate(pairs):
        rank.setdefault(left + right, number)
    prefix = _space_prefix(folder, data)
    if prefix and any(step.get("type") == "Metaspace" for step in _steps(data)):
        notes.append("llama.cpp puts a space before every text, transformers not before one that begins with one")
    unknown = data["model"].get("unk_token")
    for index, text in enumerate(texts.tokens):
        if texts.types[index] in {NORMAL, CONTROL} and _BYTE_TOKEN.fullmatch(text):
            texts.types[index] = BYTE
        elif text == unknown:
            texts.types[index] = UNKNOWN
    missing = {f"<0x{number:02X}>" for number in range(256)} - texts.ids.keys()
    if missing:
        raise ModelError(f"{folder}: its tokenizer lacks {len(missing)} byte tokens, without which llama.cpp fails")
    scores = [
        float(-rank[text])
        if text in rank and kind == NORMAL
        else (_LOWEST if kind != NORMAL else float(-len(rank) - 1))
        for text, kind in zip(texts.tokens, texts.types, strict=True)
    ]
    other = _merges_llama_makes_besides(texts, {(left, right) for left, right in pairs})
    if other:
        notes.append(
            f"llama.cpp may cut rare words otherwise: it also merges {other:,} pairs that the tokenizer "
            "leaves apart (its pieces were not learned by SentencePiece)"
        )
    return {
        **_common("llama", "default", texts),
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.add_space_prefix": prefix,
    }


def _merges_llama_makes_besides(texts: _Texts, pairs: set[tuple[str, str]]) -> int:
    normal = {text for text, kind in zip(texts.tokens, texts.types, strict=True) if kind == NORMAL}
    return sum(
        1
        for text in normal
        if 1 < len(text) <= MAX_PIECE
        for cut in range(1, len(text))
        if (text[:cut], text[cut:]) not in pairs and text[:cut] in normal and text[cut:] in normal
    )


def _parts(step: Any) -> Iterable[Mapping[str, Any]]:
    if isinstance(step, Mapping):
        inner = step.get("normalizers") or step.get("pretokenizers")
        if inner is None:
            yield step
        else:
            for one in inner:
                yield from _parts(one)


def _steps(data: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What is done to a text before it is cut into pieces."""
    return [*_parts(data.get("normalizer")), *_parts(data.get("pre_tokenizer"))]


def _space_prefix(folder: Path, data: Mapping[str, Any]) -> bool:
    """Whether a space is put before a text; refuses steps that llama.cpp does not take."""
    prefix = replaced = False
    for step in _steps(data):
        action = step.get("type")
        if action == "Prepend" and step.get("prepend") == SPACE:
            prefix = True
        elif action == "Replace" and step.get("content") == SPACE and (step.get("pattern") or {}).get("String") == " ":
            replaced = True
        elif action == "Metaspace" and step.get("replacement") == SPACE and not step.get("split", True):
            replaced, prefix = True, prefix or step.get("prepend_scheme", "always") != "never"
        elif not (action == "Split" and (step.get("pattern") or {}).get("String") == " " and replaced):
            raise ModelError(f"{folder}: its tokenizer prepares text by {action!r}, which llama.cpp does not do")
    if not replaced:
        raise ModelError(f"{folder}: its tokenizer does not write spaces as {SPACE!r}, as llama.cpp does")
    return prefix


def _wordpiece(folder: Path, data: Mapping[str, Any], texts: _Texts) -> dict[str, Any]:
    normalizer = data.get("normalizer") or {}
    if normalizer.get("type") != "BertNormalizer" or data["model"].get("continuing_subword_prefix", "##") != "##":
        raise ModelError(f"{folder}: its WordPiece tokenizer is not BERT's own kind, the one that llama.cpp has")
    for index, text in enumerate(texts.tokens):
        if texts.types[index] == NORMAL:
            texts.tokens[index] = text[2:] if text.startswith("##") else SPACE + text
    lower = bool(normalizer.get("lowercase", True))
    accents = normalizer.get("strip_accents")
    return {
        **_common("bert", "default", texts),
        "tokenizer.ggml.normalizer.lowercase": lower,
        "tokenizer.ggml.normalizer.strip_accents": lower if accents is None else bool(accents),
    }
