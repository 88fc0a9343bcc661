"""Which sources of a recipe differ from its target, and their adaptation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from evomerge_common.domain.cross_domain import CrossDomain
from evomerge_common.domain.recipe import Recipe
from evomerge_common.domain.reference import ModelReference
from evomerge_common.errors import ModelError
from evomerge_merging.cross_domain.adapted import AdaptedStore
from evomerge_merging.cross_domain.anatomy import Anatomy, anatomy_of
from evomerge_merging.cross_domain.tokens import token_rows
from evomerge_merging.cross_domain.words import describe
from evomerge_merging.engine import architecture
from evomerge_merging.engine.source import Source
from evomerge_merging.tokens.compare import disagreement, tokens_with_rows
from evomerge_merging.tokens.vocabulary import is_vocabulary

_WEIGHTS = (".safetensors", ".bin", ".json", ".txt", ".model")


@dataclass(frozen=True)
class Fitted:
    """A source in the target's build, and what was done to it in words."""

    source: Source
    notes: tuple[str, ...]


def fit_sources(recipe: Recipe, sources: Mapping[str, Source]) -> tuple[dict[str, Source], list[str]]:
    """Returns the sources, those that differ from the target adapted to it, and the plan in words.

    Args:
        recipe: the outermost of its recipes that sets `cross_domain` rules all.
        sources: of the whole recipe by key, the one that gives the config first.

    Raises:
        ModelError: the recipe asks for it, and a model's build is not known well enough.

    """
    rule = next((one for one in _recipes(recipe) if one.cross_domain is not None), None)
    how = (rule.cross_domain if rule else None) or CrossDomain()
    target = sources[how.target.key] if how.target is not None else next(iter(sources.values()))
    setting = next((one.tokenizer for one in _recipes(recipe) if one.tokenizer), "")
    own_vocabulary = setting not in {"", "base"}
    whole = {item.key for item in _whole(recipe)}
    found: dict[str, Source] = {}
    notes: list[str] = []
    for key, source in sources.items():
        found[key] = source
        why = differences(source, target, depth=rule is not None or key in whole, tokens=not setting)
        if source is target or not why:
            continue
        try:
            fitted = adapt(source, target, how, own_vocabulary=own_vocabulary, why=why)
        except ModelError:
            if rule is not None:
                raise
            continue  # nobody asked for it: what does not fit is told where it is merged
        found[key] = fitted.source
        notes += fitted.notes
    return found, notes


def adapt(
    source: Source, target: Source, how: CrossDomain, *, own_vocabulary: bool = False, why: str = "as asked"
) -> Fitted:
    """Puts a source in another's build.

    Args:
        source, target: open models.
        how: strategy, width and weight.
        own_vocabulary: embedding and head keep the source's rows, to be united afterwards.
        why: what differs, in words.

    Raises:
        ModelError: the build of one of them is not known well enough.

    """
    there, here = anatomy_of(source), anatomy_of(target)
    rows = token_rows(target.folder, here.rows, source.folder, there.rows, compose=how.strategy != "adapter")
    identity = (_stamp(source.folder), _stamp(target.folder))
    store = AdaptedStore(there, here, how, rows, own_vocabulary=own_vocabulary, identity=identity)
    result = replace(
        source,
        folder=source.folder if own_vocabulary else target.folder,
        config=target.config,
        store=store,
        base=None,
        changed=frozenset(),
        root="",
        fitted=True,
    )
    return Fitted(result, tuple(describe(there, here, store, how, rows, why, own_vocabulary=own_vocabulary)))


def differences(source: Source, target: Source, *, depth: bool, tokens: bool) -> str:
    """Says what keeps two models from being merged tensor by tensor; empty when nothing does.

    Args:
        source, target: open models.
        depth: whether a difference in depth counts; layer ranges may get around it.
        tokens: whether a difference in vocabulary counts; a tokenizer setting takes care of it.

    """
    found = []
    if source.model_type != target.model_type:
        found.append(f"{source.model_type} and {target.model_type}")
    stacks = [architecture.layer_stack(one.store.tensors, one.config) for one in (source, target)]
    if stacks[0] and stacks[1]:
        if depth and stacks[0].depth != stacks[1].depth:
            found.append(f"{stacks[0].depth} and {stacks[1].depth} layers")
        if stacks[0].prefix != stacks[1].prefix and not found:
            found.append(f"{stacks[0].prefix} and {stacks[1].prefix}")
    widths = [_width(one) for one in (source, target)]
    if widths[0] != widths[1]:
        found.append(f"{widths[0]} and {widths[1]} dimensions")
    for name, info in source.store.tensors.items():
        if found:
            break
        other = target.store.tensors.get(name)
        skip = int(is_vocabulary(name))
        if other is not None and info.shape[skip:] != other.shape[skip:] and not architecture.is_buffer(name):
            found.append(f"{name} is {list(info.shape)} and {list(other.shape)}")
            break
    if tokens and disagreement(tokens_with_rows(target), tokens_with_rows(source)):
        found.append("different vocabularies")
    return ", ".join(found)


def _width(source: Source) -> int:
    name = architecture.input_embedding(source.store.tensors)
    return source.store.tensors[name].shape[-1] if name else 0


def _recipes(recipe: Recipe) -> Iterator[Recipe]:
    """The recipe and all inside it, the outermost first."""
    yield recipe
    for item in recipe.inputs():
        if isinstance(item, Recipe):
            yield from _recipes(item)


def _whole(recipe: Recipe) -> Iterator[ModelReference]:
    """Sources that go in with all their layers."""
    for one in _recipes(recipe):
        for part in one.slices:
            for item in part.inputs:
                if isinstance(item.model, ModelReference) and item.layer_range is None:
                    yield item.model


def _stamp(folder: Path) -> tuple[object, ...]:
    """Names a folder's present content, so that a changed one is another."""
    files = sorted(path for path in folder.iterdir() if path.suffix in _WEIGHTS)
    return (str(folder.resolve()), *((p.name, p.stat().st_mtime_ns, p.stat().st_size) for p in files))


__all__ = ["Anatomy", "Fitted", "adapt", "differences", "fit_sources"]
