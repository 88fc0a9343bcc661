"""Where one text ends and the next begins, in tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def added_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Special tokens that the tokenizer itself puts before and after a text."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    for begin in range(len(whole) - len(plain) + 1):
        if whole[begin : begin + len(plain)] == plain:
            return list(whole[:begin]), list(whole[begin + len(plain) :])
    return [], []


def split_spaces(context: str, choice: str) -> tuple[str, str]:
    """Spaces that end the prompt go to the choice, where tokenizers put them; lm-evaluation-harness does the same."""
    bare = context.rstrip()
    return (bare, context[len(bare) :] + choice) if bare else (context, choice)


def starts(contexts: Sequence[Sequence[int]], wholes: Sequence[Sequence[int]], *, compared: bool) -> list[int]:
    """Where the tokens of each choice of an item begin in those of prompt and choice together.

    Behind the prompt's tokens. Where the prompt's end and a choice's beginning are one token ("th", "e"), or a choice
    adds none, that is no place between tokens: it is then the token that they share, for every choice of the item if
    they are compared, so that each is asked how likely it makes the same part of the text.
    """
    pairs = list(zip(contexts, wholes, strict=True))
    shared = [min(common(context, whole), len(whole) - 1) for context, whole in pairs]
    if compared:
        behind = all(common == len(context) for common, context in zip(shared, contexts, strict=True))
        return shared if behind else [min(shared)] * len(shared)
    return [
        len(context) if len(context) < len(whole) else common
        for (context, whole), common in zip(pairs, shared, strict=True)
    ]


def cut_left(ids: list[int], start: int, count: int, lead: int, room: int) -> tuple[list[int], int]:
    """A choice's tokens without `count` of its prompt's; only where these do not suffice without its own first ones."""
    count = max(min(count, start - max(lead, 1)), len(ids) - room)
    return ([*ids[:lead], *ids[lead + count :]], max(start - count, lead, 1)) if count > 0 else (ids, start)


def common(first: Sequence[int], second: Sequence[int]) -> int:
    """Tokens that both begin with."""
    end = min(len(first), len(second))
    return next((place for place in range(end) if first[place] != second[place]), end)
