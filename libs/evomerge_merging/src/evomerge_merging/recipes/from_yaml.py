"""Recipes as people write them: mergekit's YAML as it is, and a few words more.

The words: `seed` (of random masks), `weight_mask` (each input is masked before it is merged: `methods/masks.py`),
`preserve_instruction` (`instruction.py`), `cross_domain` (how sources of another build are fitted in), and a nested
recipe wherever a model may stand: a mapping with `merge_method`, or the `name` of another document (`---`) of the same
text, as mergekit-multi has it.
Unlike mergekit, unknown keys are errors; each error has file, line, place and the nearest valid word, and everything
is checked against the method registry before a model is opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any

from evomerge_common.domain.fields import Fields, check_keys
from evomerge_common.domain.recipe import Input, ModelReference, Recipe, Slice, read_cross_domain
from evomerge_common.errors import ModelNotFound, Path, RecipeError
from evomerge_common.runtime.documents import Document, read_file, read_text
from evomerge_merging.methods import methods
from evomerge_merging.recipes.check import check_recipe
from evomerge_merging.recipes.values import (
    dtype_word,
    layer_range,
    long_reference,
    only_module,
    parameters_at,
    tokenizer_fields,
    with_mask,
)

KEYS = (
    "merge_method", "models", "slices", "base_model", "parameters", "dtype", "out_dtype", "tokenizer_source",
    "tokenizer", "chat_template", "seed", "name", "weight_mask", "preserve_instruction", "cross_domain",
)  # fmt: skip
MAX_SEED = 2**63 - 1
_MODEL_KEYS = ("model", "parameters")
_SOURCE_KEYS = ("model", "layer_range", "parameters")
_SLICE_KEYS = ("sources", "parameters")


def read_recipe_text(text: str) -> Recipe:
    """Reads a recipe from text: mergekit's YAML, or the JSON that `Recipe.to_json` writes. It never opens a file.

    Raises:
        RecipeError: with line and key.

    """
    return _recipe(read_text(text, "recipe", several=True, error=RecipeError))


def read_recipe_file(path: FilePath) -> Recipe:
    """Reads a recipe from a file on this machine, for whoever may read it. A service has `read_recipe_text`.

    Raises:
        RecipeError: with file, line and key.
        ModelNotFound: the path leads to no file.

    """
    if not path.exists():
        raise ModelNotFound(f"the recipe {path} cannot be read: there is no such file")
    return _recipe(read_file(path, several=True, error=RecipeError))


def _recipe(document: Document) -> Recipe:
    reader, data = _Reader(), document.data
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
    except RecipeError as error:
        raise document.located(error) from None
    return recipe


class _Reader:
    """Data → recipe; remembers where in the document each place of the recipe comes from."""

    def __init__(self) -> None:
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
                raise RecipeError(f"the final recipe does not use {name!r}", (i, "name"))
        return recipe

    def recipe(self, data: Any, path: Path, at: Path) -> Recipe:
        """A recipe at `path` of the document, which is at `at` of the whole recipe."""
        whole = path
        if isinstance(data, Mapping) and "modules" in data:
            data, path = only_module(data, path)
        check_keys(data, KEYS, path, RecipeError)
        own = Fields(data, whole, RecipeError)
        if "merge_method" not in data:
            raise RecipeError(f"needs merge_method, one of {', '.join(methods())}", path)
        self._places |= {
            (*at, "method"): (*whole, "merge_method"),
            (*at, "base"): (*whole, "base_model"),
            (*at, "slices"): (*path, "slices" if "slices" in data else "models"),
            (*at, "tokenizer"): (*whole, "tokenizer" if "tokenizer" in data else "tokenizer_source"),
            (*at, "parameters"): (*path, "parameters"),
            at: path,
        }
        self._places |= {(*at, key): (*whole, key) for key in ("dtype", "out_dtype", "seed", "chat_template")}
        base = data.get("base_model")
        recipe = Recipe(
            method=own.text("merge_method"),
            slices=self._slices(data, path, at),
            base=None if base is None else self._model(base, (*whole, "base_model"), (*at, "base")),
            parameters=parameters_at(data, path),
            dtype=dtype_word(own, "dtype"),
            out_dtype=dtype_word(own, "out_dtype"),
            chat_template=own.text("chat_template"),
            seed=own.integer("seed", 0, high=MAX_SEED),
            preserve_instruction=own.optional_flag("preserve_instruction"),
            cross_domain=read_cross_domain(data["cross_domain"], (*whole, "cross_domain"))
            if data.get("cross_domain") is not None
            else None,
            **tokenizer_fields(data, whole),
        )
        mask = data.get("weight_mask")
        return recipe if mask is None else with_mask(recipe, mask, (*whole, "weight_mask"))

    def _slices(self, data: Mapping[str, Any], path: Path, at: Path) -> tuple[Slice, ...]:
        if ("models" in data) == ("slices" in data):
            raise RecipeError("needs either models or slices", path)
        if "models" in data:
            inputs = []
            for i, entry in enumerate(Fields(data, path, RecipeError).entries("models")):
                here = (*path, "models", i)
                check_keys(entry, _MODEL_KEYS, here, RecipeError)
                inputs.append(self._input(entry, here, (*at, "slices", 0, "inputs", i)))
            self._places[*at, "slices", 0, "inputs"] = (*path, "models")
            self._places[*at, "slices", 0] = (*path, "models")
            return (Slice(tuple(inputs)),)
        result = []
        for i, part in enumerate(Fields(data, path, RecipeError).entries("slices")):
            here = (*path, "slices", i)
            sources = []
            for k, entry in enumerate(Fields.of(part, _SLICE_KEYS, here, RecipeError).entries("sources")):
                check_keys(entry, _SOURCE_KEYS, (*here, "sources", k), RecipeError)
                sources.append(self._input(entry, (*here, "sources", k), (*at, "slices", i, "inputs", k)))
            self._places[*at, "slices", i, "inputs"] = (*here, "sources")
            self._places[*at, "slices", i] = here
            result.append(Slice(tuple(sources), parameters_at(part, here)))
        return tuple(result)

    def _input(self, entry: Mapping[str, Any], path: Path, at: Path) -> Input:
        if "model" not in entry:
            raise RecipeError("needs model", path)
        self._places[at] = path
        return Input(
            self._model(entry["model"], (*path, "model"), (*at, "model")),
            layer_range(entry.get("layer_range"), (*path, "layer_range")),
            parameters_at(entry, path),
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
