"""Tokens of one vocabulary found in another by what they say.

"##ing" (WordPiece), "ing" (byte-level BPE) say the same: "ing" inside a word. "the" (WordPiece), "Ġthe" (byte-level)
and "▁the" (SentencePiece) say "the" where a word begins. Special tokens are found by what they are for. A token that
the other vocabulary lacks gets the mean of the parts that it is made of (fast vocabulary transfer, Gee et al. 2022);
where even that fails, nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evomerge_common.errors import ModelError
from evomerge_merging.tokens.files import same_tokenizer, unread, vocabulary
from evomerge_models.files import read_json_or_nothing

MAX_PARTS, LETTERS_A_PART = 4, 2
"""A token is put together from so many parts at most, of so many letters on average at least: letters say little."""
_SPECIAL = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token", "bos_token", "eos_token")
_STANDS_FOR = {"cls_token": "bos_token", "bos_token": "cls_token", "sep_token": "eos_token", "eos_token": "sep_token"}

Key = tuple[bool, str]
"""Whether a word begins with it, and its text."""


@dataclass(frozen=True)
class TokenRows:
    """For each row of one embedding, the rows of another's whose mean stands for it: `parts[start[i]:start[i + 1]]`.

    Attributes:
        same: rows with exactly one counterpart of the same text.
        folded: of these, how many only but for upper and lower case.
        composed: rows made of several parts.
        own: rows that have no counterpart.
        unused: rows of the other embedding that stand for nothing here.

    """

    start: NDArray[np.int64]
    parts: NDArray[np.int64]
    same: int
    folded: int
    composed: int
    own: int
    unused: int

    def pairs(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns (row here, row there) of all tokens with exactly one counterpart."""
        here = np.flatnonzero(np.diff(self.start) == 1)
        return here, self.parts[self.start[here]]

    @property
    def is_identity(self) -> bool:
        """Tells whether each row stands for itself."""
        return len(self.parts) == len(self.start) - 1 and bool(np.array_equal(self.parts, np.arange(len(self.parts))))


def token_rows(here: Path, rows: int, there: Path, rows_there: int, *, compose: bool = True) -> TokenRows:
    """Finds the tokens of the model folder `here` in the vocabulary of the folder `there`.

    Args:
        here, there: model folders.
        rows, rows_there: of their embeddings.
        compose: put tokens that are not there together from parts.

    Raises:
        ModelError: one of the vocabularies cannot be read, and the other is not the same by its bytes.

    """
    for folder in (here, there):
        if (why := unread(folder)) and not same_tokenizer(here, there):
            raise ModelError(
                f"{folder}: {why}, so its tokens cannot be found in another; save its tokenizer as tokenizer.json"
            )
    ours = {token: row for token, row in vocabulary(here).items() if 0 <= row < rows}
    theirs = {token: row for token, row in vocabulary(there).items() if 0 <= row < rows_there}
    found: list[tuple[int, ...]] = [()] * rows
    folded = 0
    if not ours or not theirs or ours == theirs:  # nothing to go by, or nothing to do: row by row
        found = [(row,) if row < rows_there else () for row in range(rows)]
    else:
        names, other = _special(here), _special(there)
        specials = set(names.values())
        book = _Book(theirs, _alphabet(there), set(other.values()))
        alphabet = _alphabet(here)
        same_alphabet = alphabet == book.alphabet
        by_purpose = {
            token: theirs[match]
            for purpose, token in names.items()
            for match in [other.get(purpose) or other.get(_STANDS_FOR.get(purpose, "")) or ""]
            if match in theirs
        }
        for token, row in ours.items():
            if token in specials:
                hit = by_purpose.get(token, theirs.get(token))
                found[row] = () if hit is None else (hit,)
            elif same_alphabet and token in theirs:
                found[row] = (theirs[token],)
            else:
                key = key_of(token, alphabet)
                exact = book.find(key)
                if exact is not None:
                    found[row] = (exact[0],)
                    folded += exact[1]
                elif compose:
                    found[row] = book.compose(key)
    lengths = np.array([len(parts) for parts in found], np.int64)
    parts = np.array([part for one in found for part in one], np.int64)
    return TokenRows(
        start=np.concatenate([np.zeros(1, np.int64), lengths.cumsum()]),
        parts=parts,
        same=int((lengths == 1).sum()),
        folded=folded,
        composed=int((lengths > 1).sum()),
        own=int((lengths == 0).sum()),
        unused=rows_there - len(np.unique(parts)),
    )


class _Book:
    """A vocabulary by what its tokens say."""

    def __init__(self, tokens: Mapping[str, int], alphabet: str, specials: set[str]) -> None:
        self.alphabet = alphabet
        self._exact: dict[Key, int] = {}
        self._folded: dict[Key, int] = {}
        self._longest = 0
        for token, row in sorted(tokens.items(), key=lambda item: item[1]):
            key = None if token in specials else key_of(token, alphabet)
            if key is None:
                continue
            self._exact.setdefault(key, row)
            self._folded.setdefault((key[0], key[1].casefold()), row)
            self._longest = max(self._longest, len(key[1]))

    def find(self, key: Key | None) -> tuple[int, bool] | None:
        """Returns (row, whether letter case had to be ignored) of a token."""
        if key is None:
            return None
        begins, text = key
        # A mark such as "," begins a word in one vocabulary and ends one in another.
        ways = [key] if text[:1].isalnum() else [key, (not begins, text)]
        for way in ways:
            if way in self._exact:
                return self._exact[way], False
        for begin, _ in ways:
            row = self._folded.get((begin, text.casefold()))
            if row is not None:
                return row, True
        return None

    def compose(self, key: Key | None) -> tuple[int, ...]:
        """Finds the rows of the parts that a token is made of, the longest first part first; empty where it cannot."""
        if key is None:
            return ()
        begins, text = key
        parts: list[int] = []
        place = 0
        while place < len(text):
            for end in range(min(len(text), place + self._longest), place, -1):
                hit = self.find((begins and place == 0, text[place:end]))
                if hit is not None:
                    parts.append(hit[0])
                    place = end
                    break
            else:
                return ()
            if len(parts) > MAX_PARTS:
                return ()
        return tuple(parts) if len(parts) * LETTERS_A_PART <= len(text) else ()


def key_of(token: str, alphabet: str) -> Key | None:
    """Returns what a token says; None when it is no text (a byte, say)."""
    if alphabet == "byte-level":
        try:
            text = bytes(_BYTES[letter] for letter in token).decode("utf-8")
        except (KeyError, UnicodeDecodeError):
            return None
        return (True, text[1:]) if text.startswith(" ") and len(text) > 1 else (False, text)
    if alphabet == "SentencePiece":
        if token.startswith("<0x") and token.endswith(">"):
            return None
        return (True, token[1:]) if token.startswith("▁") and len(token) > 1 else (False, token.replace("▁", " "))
    if alphabet == "WordPiece":
        return (False, token[2:]) if token.startswith("##") and len(token) > 2 else (True, token)
    return (True, token.removesuffix("</w>"))


def _alphabet(folder: Path) -> str:
    """How a folder's tokens are spelt: byte-level, SentencePiece, WordPiece or plain."""
    data = read_json_or_nothing(folder / "tokenizer.json")
    if not data:
        tokens = vocabulary(folder)
        marks = {"byte-level": "Ġ", "SentencePiece": "▁", "WordPiece": "##"}
        counts = {kind: sum(token.startswith(mark) for token in tokens) for kind, mark in marks.items()}
        best = max(counts, key=lambda kind: counts[kind])
        return best if counts[best] else "plain"
    rules = repr([data.get(part) for part in ("pre_tokenizer", "decoder", "normalizer")])
    if "ByteLevel" in rules:
        return "byte-level"
    model = data.get("model") or {}
    if "Metaspace" in rules or "▁" in rules or model.get("type") == "Unigram":
        return "SentencePiece"
    return "WordPiece" if model.get("type") == "WordPiece" or "merges" not in model else "plain"


def _special(folder: Path) -> dict[str, str]:
    """Purpose → special token, from the tokenizer's settings."""
    found: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        data: Mapping[str, Any] = read_json_or_nothing(folder / name)
        for purpose in _SPECIAL:
            value = data.get(purpose)
            token = value.get("content") if isinstance(value, Mapping) else value
            if isinstance(token, str) and token:
                found[purpose] = token
    return found


def _letters() -> Iterator[tuple[str, int]]:
    """The letters that byte-level BPE writes bytes with: printable ones as themselves, the others from U+0100 on."""
    more = 0
    for byte in range(256):
        if 33 <= byte <= 126 or 161 <= byte <= 172 or 174 <= byte <= 255:
            yield chr(byte), byte
        else:
            yield chr(256 + more), byte
            more += 1


_BYTES = dict(_letters())
