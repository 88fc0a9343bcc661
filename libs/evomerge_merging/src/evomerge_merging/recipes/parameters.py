"""What a recipe's parameters come to for one tensor, each as `domain.parameters.value_at` has it.

An input's own parameters go before its slice's, and those before the recipe's; where no filter fits, the next is asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from evomerge_common.domain.fields import check_keys
from evomerge_common.domain.parameters import value_at
from evomerge_common.domain.recipe import Input, Parameters, Recipe, Slice
from evomerge_common.errors import Path, RecipeError, did_you_mean
from evomerge_merging.methods.registry import Method, Parameter, keywords


def parameters_of(
    method: Method, recipe: Recipe, part: Slice, inputs: Sequence[Input], tensor: str, depth: float
) -> dict[str, Any]:
    """Every parameter of the method for one tensor: per-model ones as tuples in the order of `inputs`.

    Raises:
        RecipeError: a required one is not set, or they cannot go together.

    """

    def resolve(parameter: Parameter, levels: Iterable[Parameters]) -> Any:
        for level in levels:
            if parameter.name in level:
                value = value_at(level[parameter.name], tensor, depth)
                if value is not None:
                    return parameter.kind(value)
        if parameter.required:
            raise RecipeError(f"{method.name} needs {parameter.name!r}, and {tensor} has none", ("parameters",))
        return parameter.default

    shared = (part.parameters, recipe.parameters)
    found = {
        name: tuple(resolve(parameter, (item.parameters, *shared)) for item in inputs)
        if parameter.per_model
        else resolve(parameter, shared)
        for name, parameter in method.parameters.items()
    }
    if method.check is not None:
        method.check(**keywords(found))
    return found


def check_parameters(method: Method, parameters: Parameters, path: Path, *, of_model: bool) -> None:
    """Refuses names that the method does not have and values that they cannot have.

    Raises:
        RecipeError: naming the nearest valid word.

    """
    for name, setting in parameters.items():
        parameter = method.parameters.get(name)
        if parameter is None:
            hint = did_you_mean(name, method.parameters) if method.parameters else "it has no parameters"
            raise RecipeError(f"{method.name} has no parameter {name!r}; {hint}", (*path, name))
        if of_model and not parameter.per_model:
            raise RecipeError(f"{name!r} is given once for the merge, not for one model: move it up", (*path, name))
        _check_value(parameter, setting, (*path, name))


def _check_value(parameter: Parameter, setting: Any, path: Path) -> None:
    if isinstance(setting, list):
        if not setting:
            raise RecipeError("the list is empty", path)
        conditional = isinstance(setting[0], Mapping)
        for i, item in enumerate(setting):
            if isinstance(item, Mapping) != conditional or isinstance(item, list):
                raise RecipeError(
                    "a list holds numbers (a gradient over depth) or {filter, value}, not both", (*path, i)
                )
            if not conditional:
                if parameter.kind is bool and isinstance(item, bool):
                    continue
                if parameter.kind not in (float, int) or isinstance(item, bool | str):
                    raise RecipeError(f"a gradient holds numbers, not {item!r}", (*path, i))
                continue
            check_keys(item, ("filter", "value"), (*path, i), RecipeError)
            if "value" not in item:
                raise RecipeError("an entry with a filter needs a value", (*path, i))
            if not isinstance(item.get("filter"), str | None):
                raise RecipeError("a filter is a part of tensors' names", (*path, i, "filter"))
            _check_value(parameter, item["value"], (*path, i, "value"))
        return
    number = isinstance(setting, float | int) and not isinstance(setting, bool)
    fits = {
        float: number,
        int: number and float(setting).is_integer() if number else False,
        bool: isinstance(setting, bool) or (number and setting in (0, 1)),
        str: isinstance(setting, str),
    }[parameter.kind]
    if not fits:
        wanted = {float: "a number", int: "a whole number", bool: "true or false", str: "a word"}[parameter.kind]
        raise RecipeError(f"must be {wanted}, not {setting!r}", path)
    if parameter.name == "density" and not 0.0 <= setting <= 1.0:
        raise RecipeError(f"a density is a share from 0 to 1, not {setting:g}", path)
