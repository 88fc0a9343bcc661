"""One tokenizer.json out of several: the first's tokens keep their ids, what others add comes behind, in order.

BPE: the others' merges follow the first's, so a text that the first splits well is split as before or coarser.
WordPiece, WordLevel and Unigram: the vocabularies are put together. What cannot be united is refused: another kind of
model, or tokens written in another alphabet (byte-level and SentencePiece's, say), whose equal texts mean different
things.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from evomerge_common.errors import ModelError

Data = Mapping[str, Any]


def unite(files: Sequence[tuple[str, Data]], tokens: Mapping[str, int], added: Sequence[str]) -> dict[str, Any]:
    """The tokenizer.json of the union.

    Args:
        files: label and content of each source's tokenizer.json, the one whose rules are kept first.
        tokens: token → id of the result; the first's tokens have the ids that they had.
        added: tokens that no source has: they become added tokens.

    Raises:
        ModelError: they cannot be united; it says why.

    """
    label, first = files[0]
    for other_label, other in files[1:]:
        _check(label, first, other_label, other)
    result = copy.deepcopy(dict(first))
    model = result["model"]
    entries = {str(entry["content"]): dict(entry) for entry in first.get("added_tokens") or []}
    for _, other in files[1:]:
        for entry in other.get("added_tokens") or []:
            entries.setdefault(str(entry["content"]), dict(entry))
    for token in added:
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "special"), False)
        entries.setdefault(token, {"content": token, **flags, "normalized": False})
    kept = {token: {**entry, "id": tokens[token]} for token, entry in entries.items() if token in tokens}
    result["added_tokens"] = sorted(kept.values(), key=lambda entry: entry["id"])
    # Every token is in the model's own vocabulary, added ones too: the library numbers those that are not itself.
    if isinstance(model["vocab"], list):
        scores = {str(piece): score for _, data in reversed(files) for piece, score in data["model"]["vocab"]}
        lowest = min(scores.values(), default=0.0) - 10.0
        model["vocab"] = [[token, scores.get(token, lowest)] for token in sorted(tokens, key=lambda t: tokens[t])]
    else:
        model["vocab"] = dict(sorted(tokens.items(), key=lambda item: item[1]))
    if model.get("type") == "BPE":
        model["merges"] = _merges(files, tokens)
    return result


def _merges(files: Sequence[tuple[str, Data]], tokens: Mapping[str, int]) -> list[list[str]]:
    seen: dict[tuple[str, str], None] = {}
    for _, data in files:
        for merge in data["model"].get("merges") or []:
            left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
            if left in tokens and right in tokens and left + right in tokens:
                seen.setdefault((left, right))
    return [list(pair) for pair in seen]


def kind(data: Data) -> str:
    """The tokenizer's kind in words; older files leave it out."""
    model = data.get("model") or {}
    told = model.get("type")
    if told:
        return str(told)
    return "BPE" if "merges" in model else "Unigram" if isinstance(model.get("vocab"), list) else "WordPiece"


def _check(label: str, first: Data, other_label: str, other: Data) -> None:
    if kind(first) != kind(other):
        raise ModelError(
            f"the tokenizers of {label} ({kind(first)}) and {other_label} ({kind(other)}) cannot be united; set the "
            "recipe's tokenizer to `base` or to one of the models"
        )
    for what, of in (
        ("alphabet", _alphabet),
        ("continuing_subword_prefix", lambda data: data["model"].get("continuing_subword_prefix") or ""),
        ("end_of_word_suffix", lambda data: data["model"].get("end_of_word_suffix") or ""),
    ):
        if of(first) != of(other):
            raise ModelError(
                f"the tokenizers of {label} and {other_label} cannot be united: their {what} differs ({of(first)!r}, "
                f"{of(other)!r}); set the recipe's tokenizer to `base` or to one of the models"
            )


def _alphabet(data: Data) -> str:
    """How tokens spell spaces and bytes."""
    text = repr([data.get(part) for part in ("pre_tokenizer", "decoder", "normalizer")])
    if "ByteLevel" in text:
        return "byte-level"
    return "SentencePiece" if "Metaspace" in text or "▁" in text else "plain"
