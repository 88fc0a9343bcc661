"""A source model: its config and where its tensors are, opened. A base with an adapter applied is one too."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evomerge_common.domain.reference import ModelReference
from evomerge_common.errors import ModelNotFound
from evomerge_common.runtime.scratch import drop, scratch_folder
from evomerge_merging.engine.stored import config_as_stored, without_wrappers
from evomerge_merging.io.model_folder import TensorStore, open_weights
from evomerge_merging.lora.store import open_adapted
from evomerge_models.files import check_whole, is_adapter_folder, read_json_object
from evomerge_models.pair import PAIRS, read_pair, write_pair
from evomerge_models.quantised import check_plain
from evomerge_models.reference import base_beside, base_hint, plus_hint


@dataclass(frozen=True)
class Source:
    """An open model folder.

    Attributes:
        label: how notes and errors call it: the reference's text without revision.
        base: the folder of the base, of a base with an adapter applied.
        changed: names of the tensors that the adapter changes.
        root: key of the source that the others are tensors of.
        fitted: seen in another model's build, whose config (and folder) it then has.
        notes: what its folder says otherwise than its tensors, and which of them counts.

    """

    key: str
    label: str
    folder: Path
    config: Mapping[str, Any]
    store: TensorStore
    base: Path | None = None
    changed: frozenset[str] = frozenset()
    root: str = ""
    fitted: bool = False
    notes: tuple[str, ...] = ()

    @property
    def model_type(self) -> str:
        """The config's model_type, such as "llama"; "" when it has none."""
        return str(self.config.get("model_type", ""))


def open_source(reference: ModelReference, models: Mapping[str, Path], base: ModelReference | None = None) -> Source:
    """Opens a source where `models` says that it is, else at the local folder that it names.

    Args:
        reference: a model, or base+adapter.
        models: folders by `ModelReference.key` or text.
        base: what an adapter that is named alone is applied to; None: the model that it says it was trained on.

    Raises:
        ModelNotFound, NotAModel, UnsafeFile, ShapeMismatch: it is not there, or not sound, or does not fit its base.

    """
    folder = models.get(reference.key) or models.get(str(reference))
    if folder is None and (alone := reference.adapter_alone) is not None:
        return _pair(reference, _folder(reference.whole, models, of=reference), _folder(alone, models))
    if folder is None:
        folder = _folder(reference, models)
    if (pair := read_pair(folder)) is not None:
        return _adapted(reference, folder, *pair)
    if is_adapter_folder(folder):
        return _pair(reference, _base_of(folder, models, base), folder)
    config, weights, notes = _open(folder, _label(reference))
    return Source(reference.key, _label(reference), folder, config, weights, notes=notes)


def _label(reference: ModelReference) -> str:
    return str(replace(reference, revision="", digest=""))


def _open(folder: Path, label: str) -> tuple[dict[str, Any], TensorStore, tuple[str, ...]]:
    """Config and weights as transformers reads them, and what of that is not as it is written."""
    check_whole(folder)
    config, weights = read_json_object(folder / "config.json"), open_weights(folder)
    try:
        check_plain(config, {name: info.dtype.name for name, info in weights.tensors.items()}, str(folder))
        weights, bare = without_wrappers(weights, label)
        config, notes = config_as_stored(config, weights, label)
    except BaseException:
        weights.close()
        raise
    return config, weights, (*bare, *notes)


def _folder(reference: ModelReference, models: Mapping[str, Path], of: ModelReference | None = None) -> Path:
    """Where a model is; `of` is the pair that it is the base of."""
    known = models.get(reference.key)
    if known is not None:
        return known
    local = Path(reference.name).expanduser()
    if not local.exists():
        hint = plus_hint(of) if of is not None else ""
        raise ModelNotFound(f"no folder {reference.name!r}, and nobody told where else {reference} is{hint}")
    return local


def _base_of(adapter: Path, models: Mapping[str, Path], base: ModelReference | None) -> Path:
    if base is not None:
        folder = models.get(base.key) or _folder(base, models)
        if not is_adapter_folder(folder):
            return folder
    named = base_beside(adapter)
    if not Path(named.name).is_dir():
        raise ModelNotFound(f"no folder {str(named)!r}{base_hint(adapter, named)}")
    return Path(named.name)


def _pair(reference: ModelReference, base: Path, adapter: Path) -> Source:
    """Through a folder of their own, since config, tokenizer and template come from two places."""
    check_whole(base)
    place = scratch_folder(PAIRS)
    try:
        write_pair(place, base.absolute(), adapter.absolute())
        source = _adapted(reference, place, base.absolute(), adapter.absolute())
    except BaseException:
        drop(place)
        raise
    weakref.finalize(source.store, drop, place)
    return source


def _adapted(reference: ModelReference, folder: Path, base: Path, adapter: Path) -> Source:
    config, weights, notes = _open(base, str(base))
    try:
        found = open_adapted(weights, config, adapter, label=str(base))
    except BaseException:
        weights.close()
        raise
    return Source(
        reference.key,
        _label(reference),
        folder,
        found.config,
        found.store,
        base.resolve(),
        frozenset(found.store.changes),
        notes=notes,
    )
