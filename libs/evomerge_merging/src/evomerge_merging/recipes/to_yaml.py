"""Recipes in mergekit's language, where it has words for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import yaml

from evomerge_common.domain.methods import find_traits
from evomerge_common.domain.recipe import Input, Recipe
from evomerge_common.domain.reference import ModelReference


def recipe_to_mergekit(recipe: Recipe) -> str | None:
    """The recipe in mergekit's language, or None where that has no words for it (nested recipes, scaled hops, …)."""
    traits = find_traits(recipe.method)
    everything = [item for part in recipe.slices for item in part.inputs]
    models = [item.model for item in everything] + ([recipe.base] if recipe.base is not None else [])
    if traits is None or not traits.mergekit:
        return None
    if any(isinstance(model, Recipe) or model.name.startswith("sha256:") for model in models):
        return None
    if recipe.preserve_instruction or recipe.cross_domain is not None:
        return None
    if traits.scales == "hop" and any("scale" in level for level in _levels(recipe)):
        return None
    if traits.base == "first" and recipe.base is None:
        recipe = replace(recipe, base=recipe.slices[0].inputs[0].model)
    if traits.base == "derived" and recipe.base is None:
        return None
    data: dict[str, Any] = {"merge_method": traits.mergekit}
    if recipe.base is not None:
        data["base_model"] = _model(recipe.base)
    sliced = len(recipe.slices) > 1 or any(item.layer_range for item in everything)
    if sliced:
        data["slices"] = [
            {"sources": [_entry(item) for item in part.inputs], **_own(part.parameters)} for part in recipe.slices
        ]
    else:
        data["models"] = [_entry(item) for item in recipe.slices[0].inputs]
        data |= _own({**recipe.parameters, **recipe.slices[0].parameters})
    if sliced:
        data |= _own(recipe.parameters)
    detailed = bool(recipe.tokens or recipe.pad_to_multiple_of)
    for key, value in (
        ("dtype", recipe.dtype),
        ("out_dtype", recipe.out_dtype),
        ("tokenizer_source", recipe.tokenizer if not detailed else ""),
        ("tokenizer", _spoken_tokenizer(recipe) if detailed else None),
    ):
        if value:
            data[key] = value
    if recipe.chat_template:
        data["chat_template"] = recipe.chat_template
    text: str = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    return text


def _spoken_tokenizer(recipe: Recipe) -> dict[str, Any]:
    tokens: dict[str, Any] = {}
    for token, own in recipe.tokens.items():
        source: Any = {"kind": "zero"} if own.get("zero") else own.get("source")
        if "token" in own or "token_id" in own:
            named = {key: own[key] for key in ("token", "token_id") if key in own}
            source = {"kind": "model_token", "model": own["source"], **named}
        tokens[token] = {"source": source, **({"force": True} if own.get("force") else {})}
    return {
        "source": recipe.tokenizer or "base",
        **({"tokens": tokens} if tokens else {}),
        **({"pad_to_multiple_of": recipe.pad_to_multiple_of} if recipe.pad_to_multiple_of else {}),
    }


def _levels(recipe: Recipe) -> list[Mapping[str, Any]]:
    parts = [level for part in recipe.slices for level in (part.parameters, *(item.parameters for item in part.inputs))]
    return [recipe.parameters, *parts]


def _own(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {"parameters": dict(parameters)} if parameters else {}


def _model(model: Recipe | ModelReference | None) -> Any:
    """A model as mergekit writes it, which cannot escape a plus sign in a name but has a long form."""
    assert isinstance(model, ModelReference)
    if "+" not in model.name + model.adapter:
        return str(model)
    path = {"path": model.name, **({"revision": model.revision} if model.revision else {})}
    return {"model": path, **({"lora": {"path": model.adapter}} if model.adapter else {})}


def _entry(item: Input) -> dict[str, Any]:
    layers = {"layer_range": list(item.layer_range)} if item.layer_range else {}
    return {"model": _model(item.model), **layers, **_own(item.parameters)}
