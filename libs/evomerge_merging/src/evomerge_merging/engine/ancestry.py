"""What a model says that it was made from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from evomerge_merging.engine.source import Source
from evomerge_models.card import read_metadata


def said_ancestors(source: Source) -> set[str]:
    """The names in the model card's `base_model` and the config's `_name_or_path`."""
    if source.fitted:
        return set()  # config and folder are those of the model that it was fitted to
    named = read_metadata(source.folder).get("base_model")
    found = {str(name) for name in (named if isinstance(named, list) else [named]) if name}
    return (found | {str(source.config.get("_name_or_path") or "")}) - {""}


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
