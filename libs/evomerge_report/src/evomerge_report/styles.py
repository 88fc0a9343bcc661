"""How operators look in charts, here and in a browser.

Colours are Okabe and Ito's set (2008), which people with any colour vision tell apart, and lighter ones for dark pages;
operators differ in shape too.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Look(NamedTuple):
    """A colour on light and on dark ground, and a shape."""

    light: str
    dark: str
    shape: str


OPERATORS = {
    "source": Look("#666666", "#b0b0b0", "square"),
    "average": Look("#b8a800", "#e6d64a", "plus"),
    "classic": Look("#56b4e9", "#8fd0f5", "diamond"),
    "random": Look("#cc79a7", "#e39bc3", "down"),
    "crossover": Look("#0072b2", "#4ba3e3", "circle"),
    "mutation": Look("#e69f00", "#f2b33d", "up"),
    "breed": Look("#009e73", "#2fc89c", "hexagon"),
    "scaled": Look("#d55e00", "#f58a4b", "cross"),
    "differential": Look("#1a1a1a", "#f0f0f0", "pentagon"),
    "fresh": Look("#cc79a7", "#e39bc3", "left"),
}
_OTHERS = (
    Look("#009e73", "#2fc89c", "thin"),
    Look("#56b4e9", "#8fd0f5", "right"),
    Look("#0072b2", "#4ba3e3", "star"),
    Look("#e69f00", "#f2b33d", "down"),
)


def looks(operators: Iterable[str]) -> dict[str, Look]:
    """Gives each operator its look, those that nobody has foreseen what is left."""
    names = list(dict.fromkeys(operators))
    unknown = [name for name in names if name not in OPERATORS]
    others = {name: _OTHERS[place % len(_OTHERS)] for place, name in enumerate(unknown)}
    return {name: OPERATORS.get(name) or others[name] for name in names}
