"""The parts of a recipe's YAML, each checked: what `from_yaml` puts together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from evomerge_common.domain.recipe import Input, ModelReference, Recipe, Slice, check_keys, normal
from evomerge_common.errors import Path, RecipeError
from evomerge_merging.methods.registry import method
from evomerge_merging.recipes.parameters import check_parameters

_MODULE_KEYS = ("models", "slices", "parameters")
_MASK_KEYS = ("rate", "strategy", "on", "rescale", "exclude")


def only_module(data: Mapping[str, Any], path: Path) -> tuple[Mapping[str, Any], Path]:
    """Mergekit's `modules` of a model that has but one: its recipe, with the module's own parameters going first."""
    modules, here = data["modules"], (*path, "modules")
    if not isinstance(modules, Mapping) or not modules:
        raise RecipeError("must be names and what they are made of", here)
    if len(modules) > 1:
        raise RecipeError(
            f"models of several modules ({', '.join(map(str, modules))}) are not supported in this version; give one",
            here,
        )
    both = [key for key in ("models", "slices") if key in data]
    if both:
        raise RecipeError("is given by the module already", (*path, both[0]))
    ((name, module),) = modules.items()
    check_keys(module, _MODULE_KEYS, (*here, name))
    merged = {key: value for key, value in data.items() if key != "modules"} | dict(module)
    levels = [level.get("parameters") for level in (data, module)]
    if all(isinstance(level, Mapping) for level in levels):
        merged["parameters"] = {**data["parameters"], **module["parameters"]}
    return merged, (*here, name)


def with_mask(recipe: Recipe, data: Any, path: Path) -> Recipe:
    """Each input but the base masked first: a nested recipe of the method mask_delta or mask_weights."""
    check_keys(data, _MASK_KEYS, path)
    if "rate" not in data:
        raise RecipeError("needs rate, the share that is dropped", path)
    on = data.get("on", "delta")
    if on not in {"delta", "weight"}:
        raise RecipeError(f"must be delta or weight, not {on!r}", (*path, "on"))
    if on == "delta" and recipe.base is None:
        raise RecipeError("masks changes, so the recipe needs base_model (or say `on: weight`)", path)
    exclude = data.get("exclude") or []
    if not isinstance(exclude, list) or not all(isinstance(part, str) for part in exclude):
        raise RecipeError("must be a list of parts of tensors' names", (*path, "exclude"))
    rate = normal(data["rate"], (*path, "rate"))
    if exclude:
        rate = [*({"filter": part, "value": 0.0} for part in exclude), {"value": rate}]
    parameters = {"rate": rate, **{key: data[key] for key in ("strategy", "rescale") if key in data}}
    base = recipe.base if on == "delta" else None

    def masked(item: Input) -> Input:
        if recipe.base is not None and item.model == recipe.base:
            return item
        inner = Recipe(
            "mask_delta" if base else "mask_weights", (Slice((Input(item.model),)),), base, parameters, seed=recipe.seed
        )
        return replace(item, model=inner)

    how = method("mask_delta")
    own = {"rate": data["rate"], "strategy": data.get("strategy", "random"), "rescale": data.get("rescale", True)}
    check_parameters(how, own, path, of_model=False)
    if isinstance(own["rate"], float | int):
        assert how.check is not None
        try:
            how.check(**own)
        except RecipeError as error:
            raise RecipeError(error.problem, (*path, error.path[-1])) from None
    slices = tuple(replace(part, inputs=tuple(masked(item) for item in part.inputs)) for part in recipe.slices)
    return replace(recipe, slices=slices)


def long_reference(data: Mapping[str, Any], path: Path) -> ModelReference:
    """Mergekit's long form: {model: {path, revision}, lora: …}, or {path, revision}."""
    check_keys(data, ("model", "lora", "path", "revision", "merge_method"), path)
    inner = data.get("model", {key: value for key, value in data.items() if key in {"path", "revision"}})
    if isinstance(inner, str):
        inner = {"path": inner}
    check_keys(inner, ("path", "revision"), path)
    if not isinstance(inner.get("path"), str) or not inner["path"]:
        raise RecipeError("names no model: give `path`", path)
    lora = data.get("lora") or ""
    adapter = lora.get("path", "") if isinstance(lora, Mapping) else str(lora)
    return ModelReference(inner["path"], str(inner.get("revision") or ""), adapter)


def listed(value: Any, path: Path) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise RecipeError("must be a list with at least one entry", path)
    return value


def word(value: Any, path: Path) -> str:
    if not isinstance(value, str):
        raise RecipeError(f"must be a word, not {value!r}", path)
    return value


def whole_number(value: Any, path: Path) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise RecipeError(f"must be a whole number of at least 0, not {value!r}", path)
    return value


def dtype_word(data: Mapping[str, Any], key: str, path: Path) -> str:
    value = data.get(key) or ""
    return "" if value == "auto" else word(value, (*path, key))


def yes_or_no(data: Mapping[str, Any], key: str, path: Path) -> bool | None:
    value = data.get(key)
    if value is not None and not isinstance(value, bool):
        raise RecipeError(f"must be true or false, not {value!r}", (*path, key))
    return value


def layer_range(value: Any, path: Path) -> tuple[int, int] | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2 or not all(type(item) is int for item in value):
        raise RecipeError(f"must be [first, last + 1], not {value!r}", path)
    return value[0], value[1]


def parameters_at(data: Mapping[str, Any], path: Path) -> dict[str, Any]:
    value = data.get("parameters")
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise RecipeError(f"must be names and values, not {value!r}", (*path, "parameters"))
    found: dict[str, Any] = normal(value, (*path, "parameters"))
    return found


def tokenizer_fields(data: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The recipe's fields from `tokenizer_source`, or from `tokenizer` ({source, tokens, pad_to_multiple_of})."""
    if "tokenizer" in data and "tokenizer_source" in data:
        raise RecipeError("is given by `tokenizer` already", (*path, "tokenizer_source"))
    key = "tokenizer" if "tokenizer" in data else "tokenizer_source"
    value = data.get(key)
    if not isinstance(value, Mapping) or (key == "tokenizer_source"):
        return {} if value is None else {"tokenizer": model_name(value, (*path, key))}
    check_keys(value, ("source", "tokens", "pad_to_multiple_of"), (*path, key))
    tokens = value.get("tokens") or {}
    if not isinstance(tokens, Mapping):
        raise RecipeError("must be tokens and where their embeddings come from", (*path, key, "tokens"))
    source = value.get("source")
    return {
        # mergekit's default inside the mapping
        "tokenizer": "union" if source is None else model_name(source, (*path, key, "source")),
        "tokens": {token: _token(own, (*path, key, "tokens", token)) for token, own in tokens.items()},
        "pad_to_multiple_of": whole_number(value.get("pad_to_multiple_of") or 0, (*path, key, "pad_to_multiple_of")),
    }


def _token(data: Any, path: Path) -> dict[str, Any]:
    """One of mergekit's per-token settings, in the recipe's words."""
    if data is None:
        return {}
    check_keys(data, ("source", "force"), path)
    force = data.get("force", False)
    if not isinstance(force, bool):
        raise RecipeError(f"must be true or false, not {force!r}", (*path, "force"))
    result: dict[str, Any] = {"force": True} if force else {}
    source, here = data.get("source"), (*path, "source")
    if source is None:
        return result
    if not isinstance(source, Mapping) or "kind" not in source:
        return {**result, "source": model_name(source, here)}
    if source["kind"] == "zero":
        check_keys(source, ("kind",), here)
        return {**result, "zero": True}
    if source["kind"] != "model_token":
        raise RecipeError(f"must be zero or model_token, not {source['kind']!r}", (*here, "kind"))
    check_keys(source, ("kind", "model", "token", "token_id"), here)
    if (source.get("token") is None) == (source.get("token_id") is None):
        raise RecipeError("needs either token or token_id", here)
    result["source"] = model_name(source.get("model"), (*here, "model"))
    if source.get("token") is not None:
        return {**result, "token": word(source["token"], (*here, "token"))}
    return {**result, "token_id": whole_number(source["token_id"], (*here, "token_id"))}


def model_name(value: Any, path: Path) -> str:
    if isinstance(value, Mapping):
        return str(long_reference(value, path))
    return word(value, path).removeprefix("model:")
