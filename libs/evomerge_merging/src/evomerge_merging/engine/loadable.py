"""Before a byte is written: would transformers load the result, with every weight that it needs and none left over?"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from evomerge_common.errors import ShapeMismatch
from evomerge_merging.engine.architecture import class_name, is_buffer, is_head, text_config, tie_flag
from evomerge_merging.engine.built import Faults, faults, knows, starred
from evomerge_merging.engine.layer_fields import essence
from evomerge_merging.engine.source import Source
from evomerge_merging.tokens.vocabulary import is_vocabulary

Shapes = Mapping[str, tuple[int, ...]]


def check_loads(config: Mapping[str, Any], shapes: Shapes, donor: Source, note: Callable[[str], None]) -> None:
    """Refuses a result that would not load as it is planned.

    transformers' own loader is asked, with tensors that have no data. That takes seconds, most of them to import it, so
    a result of the donor's own build is not asked about: the same config, names and shapes, but for types and the
    vocabulary's rows, which are counted here.

    Args:
        config, shapes: the result's config and each tensor's shape by name.
        donor: the source that the config comes from; what it lacks itself is no fault of the merge.
        note: takes a sentence for people.

    Raises:
        ShapeMismatch: a tensor is missing, left over, or of another shape than the model's.

    """
    there: dict[str, tuple[int, ...]] = {name: info.shape for name, info in donor.store.tensors.items()}
    if tie_flag(config) is False and not any(is_head(name) for name in shapes):
        _check_head(config, shapes, donor)
    if _is_same_build(config, shapes, donor.config, there) or not knows(config):
        return
    try:
        found = faults(config, shapes)
    except Exception as error:  # transformers' own, of any type
        if _fails(donor.config, there):
            return
        raise ShapeMismatch(f"transformers cannot build a model of the result's config: {_one_line(error)}") from error
    if found.missing or found.mismatched or found.unexpected:
        own = _faults_or_none(donor.config, there)
        _refuse(found, own or Faults(frozenset(), frozenset(), frozenset()), note)


def _check_head(config: Mapping[str, Any], shapes: Shapes, donor: Source) -> None:
    """Refuses a model that is whole but for a head that is neither stored nor tied: transformers would make one up."""
    found = _faults_or_none(config, shapes) if "LM" in class_name(config) and knows(config) else None
    heads = [name for name in found.missing if is_head(name)] if found else []
    if found and heads and len(heads) == len(found.missing):
        raise ShapeMismatch(
            f"{donor.label} has no {heads[0]}, and its config does not tie it to the embedding, so transformers would "
            "make one up at random: set tie_word_embeddings to true in its config.json if it is tied, or name "
            f"{class_name(config).split('For')[0]}Model as its architecture if it has no head"
        )


def _is_same_build(config: Mapping[str, Any], shapes: Shapes, other: Mapping[str, Any], there: Shapes) -> bool:
    """Whether both are one build; where rows of the vocabulary differ, they are as many as the config says."""
    if shapes.keys() != there.keys() or essence(config) != essence(other):
        return False
    rows = text_config(config).get("vocab_size")
    return all(
        shape == there[name] or (is_vocabulary(name) and shape[1:] == there[name][1:] and shape[0] == rows)
        for name, shape in shapes.items()
    )


def _refuse(found: Faults, own: Faults, note: Callable[[str], None]) -> None:
    missing = _new(found.missing, own.missing)
    if missing:
        raise ShapeMismatch(
            f"the result would not load: {_some(missing)} would be missing, for transformers builds it of this config; "
            "keep layers of the same kinds in the same places, or choose sources that have it"
        )
    known = {starred(name) for name, _, _ in own.mismatched}
    for name, here, model in sorted(found.mismatched):
        if starred(name) not in known:
            raise ShapeMismatch(
                f"the result would not load: {name} is {list(here)}, and transformers builds {list(model)} of this "
                "config; keep layers of the same kinds in the same places"
            )
    unexpected = _new((name for name in found.unexpected if not is_buffer(name)), own.unexpected)
    if any(starred(name) != name for name in unexpected):
        raise ShapeMismatch(
            f"the result would load without {_some(unexpected)}: transformers builds no such part of this config; keep "
            "layers of the same kinds in the same places"
        )
    if unexpected:
        note(f"transformers loads the result without {_some(unexpected)}: its class has no such part")


def _faults_or_none(config: Mapping[str, Any], shapes: Shapes) -> Faults | None:
    try:
        return faults(config, shapes)
    except Exception:  # transformers' own, of any type
        return None


def _fails(config: Mapping[str, Any], shapes: Shapes) -> bool:
    return _faults_or_none(config, shapes) is None


def _new(names: Iterable[str], own: Iterable[str]) -> list[str]:
    known = {starred(name) for name in own}
    return sorted(name for name in names if starred(name) not in known)


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _one_line(error: Exception) -> str:
    return re.sub(r"\s+", " ", str(error) or type(error).__name__)[:200]
