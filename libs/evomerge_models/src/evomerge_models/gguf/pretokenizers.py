"""llama.cpp's names of byte-level pre-tokenizers, and what they are in a tokenizer.json.

The expressions are those of the models' own tokenizer.json files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_GPT4 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3, QWEN2 = _GPT4 % r"\p{N}{1,3}", _GPT4 % r"\p{N}"
QWEN35 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}"
    r"\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK3 = (
    r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+",
    (r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"""
     r"|\s*[\r\n]+|\s+(?!\S)|\s+"),
)  # fmt: skip
SEED = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class PreTokenizer:
    """How text is cut before byte pairs are merged.

    Attributes:
        patterns: regular expressions, each cutting what the one before left; none: GPT-2's, which is ByteLevel's own.
        digits: each digit is cut off first.
        whole_words: a piece that is a token is taken as it is (`ignore_merges`).

    """

    patterns: tuple[str, ...] = ()
    digits: bool = False
    whole_words: bool = False

    def to_json(self) -> dict[str, Any]:
        """As tokenizer.json has it."""
        parts: list[dict[str, Any]] = [{"type": "Digits", "individual_digits": True}] if self.digits else []
        parts += [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
            for pattern in self.patterns
        ]
        bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": not self.patterns}
        parts.append(bytes_)
        return parts[0] if len(parts) == 1 else {"type": "Sequence", "pretokenizers": parts}


PRE_TOKENIZERS = {
    "gpt-2": PreTokenizer(),
    "smollm": PreTokenizer(digits=True),
    "llama-bpe": PreTokenizer((LLAMA3,), whole_words=True),
    "dbrx": PreTokenizer((LLAMA3,)),
    "qwen2": PreTokenizer((QWEN2,)),
    "qwen35": PreTokenizer((QWEN35,)),
    "tekken": PreTokenizer((TEKKEN,), whole_words=True),
    "gpt-4o": PreTokenizer((GPT4O,)),
    "deepseek-v3": PreTokenizer(DEEPSEEK3),
    "seed-coder": PreTokenizer((SEED,)),
}
ALIASES = {
    "gpt2": "gpt-2", "phi-2": "gpt-2", "mpt": "gpt-2", "olmo": "gpt-2", "jina-en": "gpt-2", "roberta-bpe": "gpt-2",
    "granite-docling": "gpt-2", "trillion": "gpt-2",
    "starcoder": "smollm", "refact": "smollm", "command-r": "smollm", "codeshell": "smollm", "exaone": "smollm",
    "minerva-7b": "smollm", "mellum2": "smollm",
    "llama3": "llama-bpe", "llama-v3": "llama-bpe", "falcon3": "llama-bpe", "glm4": "llama-bpe",
    "chatglm-bpe": "llama-bpe",
    "smaug-bpe": "dbrx", "deepseek-r1": "deepseek-v3", "hunyuan-dense": "deepseek-v3",
    "stablelm2": "qwen2", "hunyuan": "qwen2", "deepseek-r1-qwen": "qwen2", "megrez": "qwen2", "solar-open": "qwen2",
    "llama4": "gpt-4o",
}  # fmt: skip


def by_name(name: str) -> PreTokenizer | None:
    """The pre-tokenizer of `tokenizer.ggml.pre`; None: not known here."""
    return PRE_TOKENIZERS.get(ALIASES.get(name, name))


def name_of(pre: Mapping[str, Any] | None, *, whole_words: bool) -> str | None:
    """llama.cpp's name for a tokenizer.json's pre-tokenizer; None: it has none."""
    found = _read(pre)
    if found is None:
        return None
    exact = PreTokenizer(found.patterns, digits=found.digits, whole_words=whole_words)
    for name, one in PRE_TOKENIZERS.items():
        if one == exact:
            return name
    return next(
        (n for n, one in PRE_TOKENIZERS.items() if (one.patterns, one.digits) == (found.patterns, found.digits)), None
    )


def _read(pre: Mapping[str, Any] | None) -> PreTokenizer | None:
    """What a tokenizer.json's pre-tokenizer does, if it is made of parts known here."""
    if not pre:
        return None
    parts = pre.get("pretokenizers") if pre.get("type") == "Sequence" else [pre]
    patterns: list[str] = []
    digits, level = False, None
    for part in parts or []:
        action = part.get("type")
        if action == "Digits" and part.get("individual_digits") and not patterns:
            digits = True
        elif action == "Split" and part.get("behavior") == "Isolated" and not part.get("invert"):
            patterns.append(_one_spelling((part.get("pattern") or {}).get("Regex", "")))
        elif action == "ByteLevel" and not part.get("add_prefix_space"):
            level = part
        else:
            return None
    if level is None or bool(level.get("use_regex", True)) == bool(patterns):
        return None
    return PreTokenizer(tuple(patterns), digits=digits)


def _one_spelling(pattern: str) -> str:
    """The same expression in one spelling: control characters written out."""
    return pattern.replace("\r", r"\r").replace("\n", r"\n")
