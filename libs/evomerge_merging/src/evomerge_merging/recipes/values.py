"""The parts of a recipe's YAML, each checked: what `from_yaml` puts together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from evomerge_common.domain.fields import Fields, check_keys
from evomerge_common.domain.recipe import Input, Recipe, Slice, normal
from evomerge_common.domain.reference import ModelReference
from evomerge_common.errors import Path, RecipeError
from evomerge_merging.methods.registry import method
from evomerge_merging.recipes.notices import Notices
from evomerge_merging.recipes.parameters import check_parameters

MAX_SEED = 2**63 - 1
_MODULE_KEYS = ("models", "slices", "parameters")
_REFERENCE_KEYS = ("model", "lora", "override_architecture", "path", "revision", "merge_method")
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
    check_keys(module, _MODULE_KEYS, (*here, name), RecipeError)
    merged = {key: value for key, value in data.items() if key != "modules"} | dict(module)
    levels = [level.get("parameters") for level in (data, module)]
    if all(isinstance(level, Mapping) for level in levels):
        merged["parameters"] = {**data["parameters"], **module["parameters"]}
    return merged, (*here, name)


def with_mask(recipe: Recipe, data: Any, path: Path) -> Recipe:
    """Each input but the base masked first: a nested recipe of the method mask_delta or mask_weights."""
    check_keys(data, _MASK_KEYS, path, RecipeError)
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
    own = Fields.of(data, _REFERENCE_KEYS, path, RecipeError)
    inner = data.get("model", {key: value for key, value in data.items() if key in {"path", "revision"}})
    if isinstance(inner, str):
        inner = {"path": inner}
    whole = Fields.of(inner, ("path", "revision"), path, RecipeError)
    if not whole.text("path"):
        raise RecipeError("names no model: give `path`", path)
    lora = data.get("lora")
    adapter = Fields(lora, own.at("lora"), RecipeError).text("path") if isinstance(lora, Mapping) else own.text("lora")
    return ModelReference(whole.text("path"), str(inner.get("revision") or ""), adapter)


def seed_of(own: Fields, notices: Notices) -> int:
    """`seed`, or `random_seed`, which is told."""
    key = "random_seed" if "random_seed" in own and "seed" not in own else "seed"
    if "random_seed" in own:
        effect = "is read as the seed" if key == "random_seed" else "has no effect beside seed"
        notices.add(f"random_seed {effect}", own.at("random_seed"))
    return own.integer(key, 0, high=MAX_SEED)


def dtype_word(own: Fields, key: str) -> str:
    """The type under a key; "auto" says nothing, as in mergekit."""
    value = own.text(key)
    return "" if value == "auto" else value


def layer_range(value: Any, path: Path, notices: Notices) -> tuple[int, int] | None:
    if value is None:
        return None
    if isinstance(value, list):
        value = [notices.number(item, path) for item in value]
        value = [int(item) if isinstance(item, float) and item.is_integer() else item for item in value]
    if not isinstance(value, list) or len(value) != 2 or not all(type(item) is int for item in value):
        raise RecipeError(f"must be [first, last + 1], not {value!r}", path)
    return value[0], value[1]


def tokenizer_fields(data: Mapping[str, Any], path: Path, notices: Notices) -> dict[str, Any]:
    """The recipe's fields from `tokenizer_source`, or from `tokenizer` ({source, tokens, pad_to_multiple_of})."""
    data = {key: value for key, value in data.items() if value is not None}
    if "tokenizer" in data and "tokenizer_source" in data:
        raise RecipeError("is given by `tokenizer` already", (*path, "tokenizer_source"))
    key = "tokenizer" if "tokenizer" in data else "tokenizer_source"
    value = data.get(key)
    if not isinstance(value, Mapping) or (key == "tokenizer_source"):
        return {} if value is None else {"tokenizer": model_name(value, (*path, key))}
    here = (*path, key)
    plain = {
        **value,
        "pad_to_multiple_of": notices.number(value.get("pad_to_multiple_of"), (*here, "pad_to_multiple_of")),
    }
    own = Fields(notices.known(plain, ("source", "tokens", "pad_to_multiple_of"), here), here, RecipeError)
    tokens = value.get("tokens") or {}
    if not isinstance(tokens, Mapping):
        raise own.wrong("must be tokens and where their embeddings come from", "tokens")
    source = value.get("source")
    return {
        # mergekit's default inside the mapping
        "tokenizer": "union" if source is None else model_name(source, own.at("source")),
        "tokens": {token: _token(one, (*own.at("tokens"), token), notices) for token, one in tokens.items()},
        "pad_to_multiple_of": own.integer("pad_to_multiple_of", 0),
    }


def _token(data: Any, path: Path, notices: Notices) -> dict[str, Any]:
    """One of mergekit's per-token settings, in the recipe's words."""
    if data is None:
        return {}
    if isinstance(data, Mapping) and "force" in data:
        data = {**data, "force": notices.truth(data["force"], (*path, "force"))}
    own = Fields.of(data, ("source", "force"), path, RecipeError)
    result: dict[str, Any] = {"force": True} if own.flag("force", False) else {}
    source, here = data.get("source"), (*path, "source")
    if source is None:
        return result
    if not isinstance(source, Mapping) or "kind" not in source:
        return {**result, "source": model_name(source, here)}
    if source["kind"] == "zero":
        check_keys(source, ("kind",), here, RecipeError)
        return {**result, "zero": True}
    if source["kind"] != "model_token":
        raise RecipeError(f"must be zero or model_token, not {source['kind']!r}", (*here, "kind"))
    row = Fields.of(source, ("kind", "model", "token", "token_id"), here, RecipeError)
    if (source.get("token") is None) == (source.get("token_id") is None):
        raise RecipeError("needs either token or token_id", here)
    result["source"] = model_name(source.get("model"), row.at("model"))
    if "token" in row:
        return {**result, "token": row.text("token")}
    return {**result, "token_id": row.integer("token_id", 0)}


def model_name(value: Any, path: Path) -> str:
    if isinstance(value, Mapping):
        return str(long_reference(value, path))
    if not isinstance(value, str):
        raise RecipeError(f"must be a model's name, not {value!r}", path)
    return value.removeprefix("model:")
