"""What a model says that it was made from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import yaml

from evomerge_merging.engine.source import Source

_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---\s*(\n|\Z)", re.DOTALL)
_MAX_CARD_BYTES = 1_000_000


def said_ancestors(source: Source) -> set[str]:
    """The names in the model card's `base_model` and the config's `_name_or_path`."""
    if source.fitted:
        return set()  # config and folder are those of the model that it was fitted to
    found = {str(source.config.get("_name_or_path") or "")}
    card = source.folder / "README.md"
    if card.is_file() and card.stat().st_size < _MAX_CARD_BYTES:
        match = _FRONT_MATTER.match(card.read_text("utf-8", errors="replace"))
        try:
            data = yaml.safe_load(match[1]) if match else {}
        except yaml.YAMLError:
            data = {}
        told = data.get("base_model") if isinstance(data, dict) else None
        found |= {str(name) for name in (told if isinstance(told, list) else [told]) if name}
    return found - {""}


def common_ancestor(inputs: Sequence[Source], candidates: Sequence[Source]) -> Source | None:
    """The candidate that all the inputs (but itself) say they were made from; None when there is no such one.

    Only models that the recipe itself names are candidates, so that a recipe means the same on every machine.
    """
    for candidate in candidates:
        others = [source for source in inputs if source.key != candidate.key]
        if others and all(_names(candidate) & said_ancestors(source) for source in others):
            return candidate
    return None


def _names(source: Source) -> set[str]:
    names = {source.label, str(source.folder), str(Path(source.label).expanduser())}
    if Path(source.label).expanduser().exists():
        names.add(str(Path(source.label).expanduser().resolve()))
    return names
