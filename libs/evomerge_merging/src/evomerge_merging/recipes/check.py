"""Does a recipe mean something? Asked before any file is opened or downloaded."""

from __future__ import annotations

from evomerge_common.domain.recipe import DTYPES, Input, Recipe, Slice
from evomerge_common.domain.reference import ModelReference
from evomerge_common.errors import Path, RecipeError, did_you_mean
from evomerge_merging.methods.registry import Method, method
from evomerge_merging.recipes.parameters import check_parameters

MAX_NESTING = 64


def check_recipe(recipe: Recipe, path: Path = (), *, nesting: int = 0) -> None:
    """Checks methods, parameters, numbers of inputs and layer ranges of the whole expression against the registry.

    Raises:
        RecipeError: with the path of what is wrong inside the recipe.

    """
    if nesting > MAX_NESTING:
        raise RecipeError(f"recipes are nested deeper than {MAX_NESTING}", path)
    try:
        how = method(recipe.method)
    except RecipeError as error:
        raise RecipeError(error.problem, (*path, "method")) from None
    for name in ("dtype", "out_dtype"):
        value = getattr(recipe, name)
        if value and value not in DTYPES:
            raise RecipeError(f"unknown dtype {value!r}; {did_you_mean(value, DTYPES)}", (*path, name))
    check_parameters(how, recipe.parameters, (*path, "parameters"), of_model=False)
    if not recipe.slices:
        raise RecipeError("a recipe needs at least one model", (*path, "slices"))
    if isinstance(recipe.base, Recipe):
        check_recipe(recipe.base, (*path, "base"), nesting=nesting + 1)
    for i, part in enumerate(recipe.slices):
        _check_slice(how, recipe, part, (*path, "slices", i), nesting)


def is_base(recipe: Recipe, item: Input) -> bool:
    """Whether an input is the recipe's base itself."""
    return recipe.base is not None and identity(item.model) == identity(recipe.base)


def identity(model: ModelReference | Recipe) -> str:
    """What tells one input from another: a source's key, a nested recipe's digest."""
    return model.key if isinstance(model, ModelReference) else "recipe:" + model.digest


def _check_slice(how: Method, recipe: Recipe, part: Slice, path: Path, nesting: int) -> None:
    check_parameters(how, part.parameters, (*path, "parameters"), of_model=False)
    ranges = [item.layer_range for item in part.inputs]
    traits = how.traits
    others = [item for item in part.inputs if traits.base == "none" or not is_base(recipe, item)]
    count = len(others) - (traits.base == "first" and recipe.base is None and bool(others))
    if traits.inputs is not None and count != traits.inputs:
        extra = " besides the base" if traits.base != "none" else ""
        raise RecipeError(f"{how.name} takes {traits.inputs} model{extra} a slice, not {count}", (*path, "inputs"))
    if count < traits.at_least:
        least = "one model" if traits.at_least == 1 else f"{traits.at_least} models"
        raise RecipeError(f"{how.name} needs at least {least} besides the base", (*path, "inputs"))
    if len(recipe.slices) > 1 and any(span is None for span in ranges):
        raise RecipeError("of several slices each input needs a layer_range", (*path, "inputs"))
    if len({span is None for span in ranges}) > 1:
        raise RecipeError("either all inputs of a slice have a layer_range or none", (*path, "inputs"))
    lengths = set()
    for i, item in enumerate(part.inputs):
        own = (*path, "inputs", i)
        if item.layer_range is not None:
            start, stop = item.layer_range
            if not 0 <= start < stop:
                raise RecipeError(f"layers {start} to {stop} are none: give [first, last + 1]", (*own, "layer_range"))
            lengths.add(stop - start)
        base_itself = traits.base != "none" and is_base(recipe, item)
        check_parameters(how, item.parameters, (*own, "parameters"), of_model=True)
        if not base_itself:
            _check_required(how, recipe, part, item, own)
        if isinstance(item.model, Recipe):
            check_recipe(item.model, (*own, "model"), nesting=nesting + 1)
    if len(lengths) > 1:
        raise RecipeError(
            f"the inputs of a slice give different numbers of layers: {sorted(lengths)}", (*path, "inputs")
        )


def _check_required(how: Method, recipe: Recipe, part: Slice, item: Input, path: Path) -> None:
    for name, parameter in how.parameters.items():
        levels = [part.parameters, recipe.parameters] + ([item.parameters] if parameter.per_model else [])
        if parameter.required and not any(name in level for level in levels):
            whose = f" for {item.model}" if parameter.per_model and isinstance(item.model, ModelReference) else ""
            raise RecipeError(f"{how.name} needs {name!r}{whose}", (*path, "parameters"))
