"""Recipes as people write them: mergekit's YAML as it is, and a few words more.

The words: `seed` (of random masks), `weight_mask` (each input is masked before it is merged: `methods/masks.py`),
`preserve_instruction` (`instruction.py`), `cross_domain` (how sources of another build are fitted in), and a nested
recipe wherever a model may stand: a mapping with `merge_method`, or the `name` of another document (`---`) of the same
text, as mergekit-multi has it.
Unlike mergekit, words that nothing knows are errors; each error has file, line, place and the nearest valid word, and
everything is checked against the method registry before a model is opened. Words that mergekit knows and that do
nothing where they stand are left out of the recipe, and told (`notices.py`).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path as FilePath
from typing import Any

from evomerge_common.domain.cross_domain import read_cross_domain
from evomerge_common.domain.fields import Fields
from evomerge_common.domain.recipe import Input, Recipe, Slice
from evomerge_common.domain.reference import ModelReference
from evomerge_common.errors import ModelNotFound, Path, RecipeError
from evomerge_common.runtime.documents import Document, read_file, read_text
from evomerge_merging.methods import methods
from evomerge_merging.methods.registry import Method
from evomerge_merging.recipes.check import check_recipe
from evomerge_merging.recipes.notices import Notices, known_words
from evomerge_merging.recipes.values import (
    dtype_word,
    layer_range,
    long_reference,
    only_module,
    seed_of,
    tokenizer_fields,
    with_mask,
)

KEYS = (
    "merge_method", "models", "slices", "base_model", "parameters", "dtype", "out_dtype", "tokenizer_source",
    "tokenizer", "chat_template", "seed", "random_seed", "name", "weight_mask", "preserve_instruction", "cross_domain",
)  # fmt: skip
OTHER_FILES = {
    "experts": "a mixture of experts (mergekit-moe's file) is made by `evomerge export FILE OUT_DIR`",
    "genome": "a search (mergekit-evolve's file) is run by `evomerge run FILE`",
}
"""By a key that tells it: what else mergekit's programs read, and the command for it."""
_MODEL_KEYS = ("model", "parameters")
_SOURCE_KEYS = ("model", "layer_range", "parameters")
_SLICE_KEYS = ("sources", "parameters", "base_model")


def read_recipe_text(text: str, *, strict: bool = False) -> Recipe:
    """Reads a recipe from text: mergekit's YAML, or the JSON that `Recipe.to_json` writes. It never opens a file.

    Args:
        text: what is read.
        strict: whether what would be a note of the recipe, a word without effect, is an error.

    Raises:
        RecipeError: with line and key.

    """
    return _recipe(read_text(text, "recipe", several=True, repeats=True, error=RecipeError), strict=strict)


def read_recipe_file(path: FilePath, *, strict: bool = False) -> Recipe:
    """Reads a recipe from a file on this machine, for whoever may read it. A service has `read_recipe_text`.

    Args:
        path: the file.
        strict: see `read_recipe_text`.

    Raises:
        RecipeError: with file, line and key.
        ModelNotFound: the path leads to no file.

    """
    if not path.exists():
        raise ModelNotFound(f"the recipe {path} cannot be read: there is no such file")
    return _recipe(read_file(path, several=True, repeats=True, error=RecipeError), strict=strict)


def _recipe(document: Document, *, strict: bool) -> Recipe:
    reader, data = _Reader(document), document.data
    if isinstance(data, Mapping) and "merge_method" not in data:
        for key, command in OTHER_FILES.items():
            if key in data:
                error = RecipeError(f"this is no recipe: {command}", (key,))
                raise document.located(error)
    try:
        if document.several:
            recipe = reader.documents(data)
        elif isinstance(data, Mapping) and "method" in data:
            recipe = Recipe.from_dict(data)
        else:
            recipe = reader.recipe(data, (), ())
        try:
            check_recipe(recipe)
        except RecipeError as error:
            raise RecipeError(error.problem, reader.place(error.path)) from None
        if strict:
            reader.notices.refuse()
    except RecipeError as error:
        raise document.located(error) from None
    return replace(recipe, notes=reader.notices.sentences)


class _Reader:
    """Data → recipe; remembers where in the document each place of the recipe comes from."""

    def __init__(self, document: Document) -> None:
        self.notices = Notices()
        for place in document.repeats():
            self.notices.add(f"{place[-1]!r} is given twice with one value", place)
        self._document_read = document
        self._places: dict[Path, Path] = {(): ()}
        self._named: dict[str, tuple[int, Any]] = {}
        self._open: list[str] = []
        self._used: set[str] = set()

    def place(self, path: Path) -> Path:
        """The document's path of a recipe's path."""
        for end in range(len(path), -1, -1):
            if path[:end] in self._places:
                return (*self._places[path[:end]], *path[end:])
        return path

    def documents(self, data: list[Any]) -> Recipe:
        """Several recipes, of which all but one have names: that one is made, or the last."""
        unnamed = []
        for i, part in enumerate(data):
            name = part.get("name") if isinstance(part, Mapping) else None
            if name is None:
                unnamed.append(i)
            elif Fields(part, (i,), RecipeError).text("name") in self._named:
                raise RecipeError(f"another recipe is named {name!r}", (i, "name"))
            else:
                self._named[name] = (i, part)
        if len(unnamed) > 1:
            raise RecipeError("of several recipes all but the final one need a name", (unnamed[1],))
        final = unnamed[0] if unnamed else len(data) - 1
        recipe = self.recipe(data[final], (final,), ())
        for name, (i, _) in self._named.items():
            if name not in self._used and i != final:
                raise RecipeError(
                    f"the final recipe does not use {name!r}: put it into a file of its own, if it is to be made too",
                    (i, "name"),
                )
        return recipe

    def recipe(self, data: Any, path: Path, at: Path) -> Recipe:
        """A recipe at `path` of the document, which is at `at` of the whole recipe."""
        whole = path
        if isinstance(data, Mapping) and "modules" in data:
            data, path = only_module(data, path)
        data = self.notices.known(self._without_holders(data, path), KEYS, path)
        own = Fields(data, whole, RecipeError)
        if "merge_method" not in data:
            raise RecipeError(f"needs merge_method, one of {', '.join(methods())}", path)
        how = methods().get(own.text("merge_method"))
        self._places |= {
            (*at, "method"): (*whole, "merge_method"),
            (*at, "base"): (*whole, "base_model"),
            (*at, "slices"): (*path, "slices" if "slices" in data else "models"),
            (*at, "tokenizer"): (*whole, "tokenizer" if "tokenizer" in data else "tokenizer_source"),
            (*at, "parameters"): (*path, "parameters"),
            at: path,
        }
        self._places |= {(*at, key): (*whole, key) for key in ("dtype", "out_dtype", "seed", "chat_template")}
        base = self._base(data, path)
        recipe = Recipe(
            method=own.text("merge_method"),
            slices=self._slices(how, data, path, at),
            base=None if base is None else self._model(base, (*whole, "base_model"), (*at, "base")),
            parameters=self.notices.parameters(how, data, path, of_model=False),
            dtype=dtype_word(own, "dtype"),
            out_dtype=dtype_word(own, "out_dtype"),
            chat_template=own.text("chat_template"),
            seed=seed_of(own, self.notices),
            preserve_instruction=own.optional_flag("preserve_instruction"),
            cross_domain=read_cross_domain(data["cross_domain"], (*whole, "cross_domain"))
            if data.get("cross_domain") is not None
            else None,
            **tokenizer_fields(data, whole, self.notices),
        )
        recipe = self._with_base_merged(how, data, recipe, (*whole, "base_model"))
        mask = data.get("weight_mask")
        return recipe if mask is None else with_mask(recipe, mask, (*whole, "weight_mask"))

    def _without_holders(self, data: Any, path: Path) -> Any:
        """A mapping without keys of nobody that only hold anchors for others to refer to."""
        if not isinstance(data, Mapping):
            return data
        holders = [
            key
            for key in data
            if key not in KEYS
            and key not in known_words()
            and not difflib.get_close_matches(key, KEYS, n=1, cutoff=0.8)
            and self._document_read.is_anchored((*path, key))
        ]
        for key in holders:
            self.notices.add(f"{key!r} holds anchors: it is not read itself", (*path, key))
        return {key: value for key, value in data.items() if key not in holders}

    def _with_base_merged(self, how: Method | None, data: Mapping[str, Any], recipe: Recipe, path: Path) -> Recipe:
        """The recipe with its base as one more model, as mergekit has it: of methods without a base, under `models`."""
        if how is None or how.traits.base != "none" or how.traits.inputs is not None or not how.traits.mergekit:
            return recipe
        (*_, part) = recipe.slices
        if recipe.base is None or "models" not in data or any(item.model == recipe.base for item in part.inputs):
            return recipe
        if any(one.required and name not in recipe.parameters for name, one in how.parameters.items()):
            return recipe
        self.notices.add(
            f"{how.name} has no base: base_model is merged like the others, as by mergekit (else leave it out)", path
        )
        return replace(recipe, slices=(replace(part, inputs=(*part.inputs, Input(recipe.base))),))

    @staticmethod
    def _base(data: Mapping[str, Any], path: Path) -> Any:
        """The base, which mergekit lets slices name as well: then it must be one and the same."""
        base = data.get("base_model")
        parts = data.get("slices") if isinstance(data.get("slices"), list) else []
        for i, part in enumerate(parts or []):
            own = part.get("base_model") if isinstance(part, Mapping) else None
            if own is not None and base is not None and own != base:
                raise RecipeError(
                    f"slices of different bases ({base}, {own}) are not supported in this version: make each slice a "
                    "recipe of its own, and stack them by passthrough (a recipe may stand wherever a model may)",
                    (*path, "slices", i, "base_model"),
                )
            base = base if own is None else own
        return base

    def _slices(self, how: Method | None, data: Mapping[str, Any], path: Path, at: Path) -> tuple[Slice, ...]:
        data = {key: value for key, value in data.items() if value is not None}
        if ("models" in data) == ("slices" in data):
            raise RecipeError("needs either models or slices", path)
        if "models" in data:
            inputs = []
            for i, entry in enumerate(Fields(data, path, RecipeError).entries("models")):
                here = (*path, "models", i)
                known = self.notices.known(entry, _MODEL_KEYS, here)
                inputs.append(self._input(how, known, here, (*at, "slices", 0, "inputs", i)))
            self._places[*at, "slices", 0, "inputs"] = (*path, "models")
            self._places[*at, "slices", 0] = (*path, "models")
            return (Slice(tuple(inputs)),)
        result = []
        for i, part in enumerate(Fields(data, path, RecipeError).entries("slices")):
            here = (*path, "slices", i)
            sources = []
            known = self.notices.known(part, _SLICE_KEYS, here)
            for k, entry in enumerate(Fields(known, here, RecipeError).entries("sources")):
                source = self.notices.known(entry, _SOURCE_KEYS, (*here, "sources", k))
                sources.append(self._input(how, source, (*here, "sources", k), (*at, "slices", i, "inputs", k)))
            self._places[*at, "slices", i, "inputs"] = (*here, "sources")
            self._places[*at, "slices", i] = here
            result.append(Slice(tuple(sources), self.notices.parameters(how, known, here, of_model=False)))
        return tuple(result)

    def _input(self, how: Method | None, entry: Mapping[str, Any], path: Path, at: Path) -> Input:
        if "model" not in entry:
            raise RecipeError("needs model", path)
        self._places[at] = path
        return Input(
            self._model(entry["model"], (*path, "model"), (*at, "model")),
            layer_range(entry.get("layer_range"), (*path, "layer_range"), self.notices),
            self.notices.parameters(how, entry, path, of_model=True),
        )

    def _model(self, data: Any, path: Path, at: Path) -> ModelReference | Recipe:
        self._places[at] = path
        if isinstance(data, str) and data in self._named:
            return self._document(data, path, at)
        if isinstance(data, str) and data.strip():
            try:
                return ModelReference.parse(data)
            except RecipeError as error:
                raise RecipeError(error.problem, path) from None
        if isinstance(data, Mapping) and "merge_method" in data:
            return self.recipe(data, path, at)
        if isinstance(data, Mapping):
            return long_reference(data, path)
        raise RecipeError(f"must be a model (hub id or folder) or a nested recipe, not {data!r}", path)

    def _document(self, name: str, path: Path, at: Path) -> Recipe:
        if name in self._open:
            raise RecipeError(f"{name!r} is made of itself: {' → '.join([*self._open, name])}", path)
        self._open.append(name)
        self._used.add(name)
        number, data = self._named[name]
        recipe = self.recipe(data, (number,), at)
        self._open.pop()
        return recipe
