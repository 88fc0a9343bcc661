"""What a recipe will do, from headers and configs alone: output tensors, config, tokenizer, sizes, notes in words."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from evomerge_common.domain.recipe import Recipe
from evomerge_common.domain.reference import ModelReference, without_folders
from evomerge_common.errors import ShapeMismatch
from evomerge_merging.cross_domain import fit_sources
from evomerge_merging.engine.architecture import text_config
from evomerge_merging.engine.flatten import flatten
from evomerge_merging.engine.loadable import check_loads
from evomerge_merging.engine.names import named_alike
from evomerge_merging.engine.nodes import Load, Node, loads, whole_bytes
from evomerge_merging.engine.source import Source, open_source
from evomerge_merging.engine.virtual import Planner
from evomerge_merging.io.companions import Companions, plan_companions
from evomerge_merging.lora.sum import folded
from evomerge_merging.recipes.check import check_recipe
from evomerge_merging.tokens.files import TokenizerPlan
from evomerge_merging.tokens.tokenizer import named_outside, plan_tokenizer
from evomerge_models.dtypes import RECIPE_NAMES, ElementType
from evomerge_models.files import TOKENIZER_FILES, names_in

WHOLE_TENSOR_BYTES = 1 << 30
"""What all threads together may hold of tensors that methods ask for whole; one larger tensor is worked on alone."""
_PIECES_HELD = 16
"""Float32 pieces that one thread has in its hands at once, at most, with a handful of inputs."""


@dataclass(frozen=True)
class OutputTensor:
    """One tensor of the result."""

    name: str
    shape: tuple[int, ...]
    dtype: ElementType
    node: Node

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes in the output."""
        size: int = self.numel * self.dtype.itemsize
        return size


@dataclass(frozen=True)
class Plan:
    """See the module's text. Holds the sources open until `close` (or use it in a `with`)."""

    recipe: Recipe
    tensors: tuple[OutputTensor, ...]
    config: Mapping[str, Any]
    tokenizer: TokenizerPlan
    sources: Mapping[str, Source]
    notes: tuple[str, ...]
    companions: Companions
    folders: Mapping[str, Path]
    """Each source's own folder by its label, whatever build it is seen in."""

    def public(self, note: str) -> str:
        """A note without the author's folders: a local source is called by its own name."""
        models = [ModelReference.parse(source.label) for source in self.sources.values()]
        return without_folders(note, {part for model in models for part in (model.name, model.adapter)})

    def kept(self) -> tuple[Source, frozenset[str]] | None:
        """The base of which all adapters among the sources are, and the tensors that are as they are there.

        None where there are no adapters, or several bases.
        """
        roots = {source.root for source in self.sources.values() if source.root}
        if len(roots) != 1:
            return None
        root = roots.pop()
        names = {
            tensor.name
            for tensor in self.tensors
            if isinstance(node := tensor.node, Load)
            and (node.source, node.name) == (root, tensor.name)
            and node.cast in {None, node.dtype}
            and tensor.dtype == node.dtype
        }
        return self.sources[root], frozenset(names)

    @property
    def bytes(self) -> int:
        """Bytes of weights that will be written."""
        return sum(tensor.bytes for tensor in self.tensors)

    @property
    def disk_bytes(self) -> int:
        """Room that the result needs, with its small files."""
        small = sum(
            path.stat().st_size
            for path in self.tokenizer.folder.iterdir()
            if path.suffix in {".json", ".txt", ".model"}
        )
        return self.bytes + small + 256 * len(self.tensors) + (1 << 20)

    @property
    def parameters(self) -> int:
        """Number of weights of the result."""
        return sum(tensor.numel for tensor in self.tensors)

    @property
    def read_bytes(self) -> int:
        """Bytes of distinct source tensors that go in."""
        seen = {
            (load.source, load.name): math.prod(load.shape) * load.dtype.itemsize
            for t in self.tensors
            for load in loads(t.node)
        }
        return sum(seen.values())

    def memory_bytes(self, *, threads: int, piece_elements: int) -> int:
        """About what the merge holds in memory at once, the sources' mapped pages left out."""
        whole = sorted((whole_bytes(tensor.node) for tensor in self.tensors), reverse=True)
        together = sum(whole[:threads])
        if together > WHOLE_TENSOR_BYTES:
            together = max(WHOLE_TENSOR_BYTES, whole[0])
        return threads * piece_elements * 4 * _PIECES_HELD + together

    def close(self) -> None:
        """Lets the sources' files go."""
        for source in self.sources.values():
            source.store.close()

    def __enter__(self) -> Plan:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def plan_merge(recipe: Recipe, models: Mapping[str, Path] | None = None) -> Plan:
    """Plans a merge: nothing but headers, configs and tokenizers is read.

    Args:
        recipe: what to make.
        models: the folder of each source by `ModelReference.key`; a source that is not in it is a local folder itself.

    Raises:
        RecipeError: the recipe means nothing, or not for these models.
        ModelError: a source is missing, unsound, or does not fit the others.

    """
    check_recipe(recipe)
    base = recipe.base if isinstance(recipe.base, ModelReference) else None
    planner = Planner({key: Path(path) for key, path in (models or {}).items()}, base, notes=list(recipe.notes))
    try:
        keys = [planner.source(reference).key for reference in recipe.sources()]
        planner.share_bases()
        sources = {key: planner.sources[key] for key in keys}
        own = {source.label: source.folder for source in sources.values()}
        elsewhere = named_outside(recipe)
        outside = None if elsewhere is None else open_source(elsewhere, {})
        if outside is not None:
            outside.store.close()
        sources, renaming = named_alike(sources)
        sources, fitting = fit_sources(recipe, sources)
        tokenizer, aligned, told = plan_tokenizer(recipe, sources, outside)
        planner.sources.update(aligned)
        opening = [note for source in sources.values() for note in source.notes]
        for text in [*opening, *renaming, *fitting, *told]:
            planner.note(text)
        model = planner.model(recipe)
        folders = {source.label: source.folder for source in sources.values()}
        if tokenizer.default:
            label = _with_tokenizer(model.donor, folders, planner)
            tokenizer = replace(tokenizer, folder=folders.get(label, model.donor.folder))
        done: dict[int, Node] = {}
        nodes = folded({name: flatten(node, done) for name, node in model.tensors.items()}, planner.sources)
        out_dtype = RECIPE_NAMES.get(recipe.out_dtype or recipe.dtype)
        tensors = tuple(
            OutputTensor(
                name, node.shape, out_dtype if out_dtype and node.dtype.is_floating_point else node.dtype, node
            )
            for name, node in nodes.items()
        )
        if not tensors:
            raise ShapeMismatch("the models have no tensors in common")
        config = _config(model.config, tokenizer.config, tensors, planner)
        check_loads(config, {tensor.name: tensor.shape for tensor in tensors}, model.donor, planner.note)
        companions, told = plan_companions(model.donor.folder, model.donor.label, folders)
        for text in told:
            planner.note(text)
        return Plan(recipe, tensors, config, tokenizer, planner.sources, tuple(planner.notes), companions, own)
    except BaseException:
        for source in planner.sources.values():
            source.store.close()
        raise


def _with_tokenizer(donor: Source, folders: Mapping[str, Path], planner: Planner) -> str:
    """Label of the source whose tokenizer is taken: the donor, or the first that has one where that has none."""
    having = [label for label, folder in folders.items() if names_in(folder) & TOKENIZER_FILES]
    if not having or names_in(donor.folder) & TOKENIZER_FILES:
        return donor.label
    planner.note(f"{donor.label} has no tokenizer: that of {having[0]} is taken")
    return having[0]


def _config(
    config: Mapping[str, Any], changes: Mapping[str, Any], tensors: tuple[OutputTensor, ...], planner: Planner
) -> dict[str, Any]:
    """`changes`: fields that follow the vocabulary; nested configs get them where they have such a field."""
    result = {key: value for key, value in config.items() if key != "_name_or_path"}
    part = text_config(config)
    if part is not config:
        result["text_config"] = {**part, **changes}
    result.update(changes if part is config else {key: value for key, value in changes.items() if key in result})
    counts: dict[ElementType, int] = {}
    for tensor in tensors:
        if tensor.dtype.is_floating_point:
            counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.numel
    if counts:
        name = max(counts, key=lambda dtype: counts[dtype]).word
        keys = [key for key in ("dtype", "torch_dtype") if key in result] or ["torch_dtype"]
        result.update(dict.fromkeys(keys, name))
    if result.pop("auto_map", None):
        planner.note("the model's own Python code (auto_map) is left out: EvoMerge neither runs nor copies it")
    json.dumps(result)
    return result
