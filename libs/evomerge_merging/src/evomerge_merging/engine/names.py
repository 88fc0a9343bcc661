"""Sources of one architecture under one set of names: as transformers loads each of them into the first one's class.

A checkpoint's names depend on what saved it: with or without the base model's prefix (`model.`, `transformer.`,
`bert.`), in the old spelling (`LayerNorm.gamma`), in one of two layouts of a vision-language model. That is nothing but
a renaming, and it is transformers' own table that says which.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace

from evomerge_merging.engine import architecture, built
from evomerge_merging.engine.built import starred
from evomerge_merging.engine.source import Source
from evomerge_merging.engine.stored import unique
from evomerge_merging.io.model_folder import RenamedStore

_NUMBERS = re.compile(r"(?<=\.)\d+(?=\.)")


def named_alike(sources: Mapping[str, Source]) -> tuple[dict[str, Source], list[str]]:
    """The sources, those with other names than the first one's under its names; and a note of each.

    Asks transformers, whose import takes seconds, only where names differ by more than numbers, heads and buffers.
    Architectures that it does not know keep their names.

    Raises:
        ModelError: a source holds a tensor twice, under two names.

    """
    first = next(iter(sources.values()))
    result, notes = dict(sources), []
    own: dict[str, str] | None = None
    for key, source in sources.items():
        if source is first or source.model_type != first.model_type or not _differ(source, first):
            continue
        if own is None:
            own = _layout(first)
        names = _names(source, first, own)
        if any(name != new for name, new in names.items()):
            result[key] = replace(
                source,
                store=RenamedStore(source.store, unique(names, source.label)),
                base=None,
                changed=frozenset(),
                root="",
            )
            old = next(name for name, new in names.items() if name != new)
            notes.append(
                f"names: {old} of {source.label} is {first.label}'s {names[old]}, and others likewise: transformers "
                "loads both as one"
            )
    return result, notes


def _differ(one: Source, other: Source) -> bool:
    def essential(names: Collection[str]) -> set[str]:
        return {starred(name) for name in names if not architecture.is_head(name) and not architecture.is_buffer(name)}

    return essential(one.store.tensors) != essential(other.store.tensors)


def _layout(first: Source) -> dict[str, str]:
    """By the name under which the first source's tensors are loaded, the name that they have there; both starred."""
    found = _loaded(first, first)
    return {
        starred(new): starred(name)
        for name, new in found.items()
        if starred(name).count("*") == starred(new).count("*")
    }


def _names(source: Source, first: Source, own: Mapping[str, str]) -> dict[str, str]:
    """The source's names → the first source's, or transformers' where that has no such tensor."""
    found = {}
    for name, new in _loaded(source, first).items():
        pieces = own.get(starred(new), starred(new)).split("*")
        numbers = [*_NUMBERS.findall(new), ""]
        found[name] = "".join(piece + number for piece, number in zip(pieces, numbers, strict=True))
    return found


def _loaded(source: Source, first: Source) -> dict[str, str]:
    if not built.knows(first.config):
        return {name: name for name in source.store.tensors}
    try:
        return built.loading_names(first.config, source.store.tensors)
    except Exception:  # transformers' own, of any type: a config that it cannot build is told where it is loaded
        return {name: name for name in source.store.tensors}
