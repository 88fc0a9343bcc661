"""Recipes as people write them: mergekit's YAML as it is, and two words more.

The two: `seed` (of random masks), and a nested recipe wherever a model may stand (a mapping with `merge_method`).
Unlike mergekit, unknown keys are errors; each error has file, line, place and the nearest valid word, and everything
is checked against the method registry before a model is opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path as FilePath
from typing import Any

import yaml

from evomerge_common.domain.recipe import Input, ModelReference, Recipe, Slice, check_keys, normal
from evomerge_common.errors import ModelNotFound, Path, RecipeError
from evomerge_merging.check import check_recipe
from evomerge_merging.methods import methods
from evomerge_merging.yaml_lines import read_yaml

KEYS = (
    "merge_method", "models", "slices", "base_model", "parameters", "dtype", "out_dtype", "tokenizer_source",
    "tokenizer", "chat_template", "seed",
)  # fmt: skip
_MODEL_KEYS = ("model", "parameters")
_SOURCE_KEYS = ("model", "layer_range", "parameters")
_SLICE_KEYS = ("sources", "parameters")
_TO_MERGEKIT = {
    **{
        name: name for name in ("linear", "slerp", "task_arithmetic", "ties", "dare_linear", "dare_ties", "passthrough")
    },
    "frankenmerge": "passthrough",
    "dfs": "passthrough",
}


def read_recipe_yaml(path_or_text: str | FilePath) -> Recipe:
    """Reads a recipe from a file (a `Path`, or a text of one line that names an existing file) or from YAML text.

    Raises:
        RecipeError: with file, line and key.
        ModelNotFound: the path leads to no file.

    """
    text, file = _text(path_or_text)
    document = read_yaml(text, file)
    reader = _Reader()
    try:
        recipe = reader.recipe(document.data, (), ())
        check_recipe(recipe)
    except RecipeError as error:
        if error.file:
            raise
        place = reader.place(error.path)
        raise document.locate(RecipeError(error.problem, place)) from None
    return recipe


def _text(given: str | FilePath) -> tuple[str, str]:
    if isinstance(given, str) and ("\n" in given or (":" in given and not FilePath(given).is_file())):
        return given, "recipe"
    path = FilePath(given)
    try:
        return path.read_text("utf-8"), str(path)
    except UnicodeDecodeError as error:
        raise RecipeError("not a text in UTF-8", file=str(path), line=1) from error
    except OSError as error:
        raise ModelNotFound(f"the recipe {path} cannot be read: {error.strerror}") from error


class _Reader:
    """Data → recipe; remembers where in the document each place of the recipe comes from."""

    def __init__(self) -> None:
        self._places: dict[Path, Path] = {(): ()}

    def place(self, path: Path) -> Path:
        """The document's path of a recipe's path. A path that is the document's already stays as it is."""
        for end in range(len(path), -1, -1):
            if path[:end] in self._places:
                return (*self._places[path[:end]], *path[end:])
        return path

    def recipe(self, data: Any, path: Path, at: Path) -> Recipe:
        """A recipe at `path` of the document, which is at `at` of the whole recipe."""
        if isinstance(data, Mapping) and "modules" in data:
            raise RecipeError("`modules` is not supported in this version; use models or slices", (*path, "modules"))
        check_keys(data, KEYS, path)
        if "merge_method" not in data:
            raise RecipeError(f"needs merge_method, one of {', '.join(methods())}", path)
        self._places |= {
            (*at, "method"): (*path, "merge_method"),
            (*at, "base"): (*path, "base_model"),
            (*at, "slices"): (*path, "slices" if "slices" in data else "models"),
        }
        self._places |= {(*at, key): (*path, key) for key in ("parameters", "dtype", "out_dtype", "seed")}
        self._places |= {(*at, "tokenizer"): (*path, "tokenizer" if "tokenizer" in data else "tokenizer_source")}
        self._places |= {(*at, "chat_template"): (*path, "chat_template"), at: path}
        base = data.get("base_model")
        return Recipe(
            method=_word(data["merge_method"], (*path, "merge_method")),
            slices=self._slices(data, path, at),
            base=None if base is None else self._model(base, (*path, "base_model"), (*at, "base")),
            parameters=_parameters(data, path),
            dtype=_dtype(data, "dtype", path),
            out_dtype=_dtype(data, "out_dtype", path),
            chat_template=_word(data.get("chat_template") or "", (*path, "chat_template")),
            seed=_whole(data.get("seed", 0), (*path, "seed")),
            **_tokenizer(data, path),
        )

    def _slices(self, data: Mapping[str, Any], path: Path, at: Path) -> tuple[Slice, ...]:
        if ("models" in data) == ("slices" in data):
            raise RecipeError("needs either models or slices", path)
        if "models" in data:
            inputs = []
            for i, entry in enumerate(_list(data["models"], (*path, "models"))):
                here = (*path, "models", i)
                check_keys(entry, _MODEL_KEYS, here)
                inputs.append(self._input(entry, here, (*at, "slices", 0, "inputs", i)))
            self._places[*at, "slices", 0, "inputs"] = (*path, "models")
            self._places[*at, "slices", 0] = (*path, "models")
            return (Slice(tuple(inputs)),)
        result = []
        for i, part in enumerate(_list(data["slices"], (*path, "slices"))):
            here = (*path, "slices", i)
            check_keys(part, _SLICE_KEYS, here)
            sources = []
            for k, entry in enumerate(_list(part.get("sources"), (*here, "sources"))):
                check_keys(entry, _SOURCE_KEYS, (*here, "sources", k))
                sources.append(self._input(entry, (*here, "sources", k), (*at, "slices", i, "inputs", k)))
            self._places[*at, "slices", i, "inputs"] = (*here, "sources")
            self._places[*at, "slices", i] = here
            result.append(Slice(tuple(sources), _parameters(part, here)))
        return tuple(result)

    def _input(self, entry: Mapping[str, Any], path: Path, at: Path) -> Input:
        if "model" not in entry:
            raise RecipeError("needs model", path)
        self._places[at] = path
        return Input(
            self._model(entry["model"], (*path, "model"), (*at, "model")),
            _layers(entry.get("layer_range"), (*path, "layer_range")),
            _parameters(entry, path),
        )

    def _model(self, data: Any, path: Path, at: Path) -> ModelReference | Recipe:
        self._places[at] = path
        if isinstance(data, str) and data.strip():
            try:
                return ModelReference.parse(data)
            except RecipeError as error:
                raise RecipeError(error.problem, path) from None
        if isinstance(data, Mapping) and "merge_method" in data:
            return self.recipe(data, path, at)
        if isinstance(data, Mapping):
            return _long_reference(data, path)
        raise RecipeError(f"must be a model (hub id or folder) or a nested recipe, not {data!r}", path)


def _long_reference(data: Mapping[str, Any], path: Path) -> ModelReference:
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


def _list(value: Any, path: Path) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise RecipeError("must be a list with at least one entry", path)
    return value


def _word(value: Any, path: Path) -> str:
    if not isinstance(value, str):
        raise RecipeError(f"must be a word, not {value!r}", path)
    return value


def _whole(value: Any, path: Path) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise RecipeError(f"must be a whole number of at least 0, not {value!r}", path)
    return value


def _dtype(data: Mapping[str, Any], key: str, path: Path) -> str:
    value = data.get(key) or ""
    return "" if value == "auto" else _word(value, (*path, key))


def _layers(value: Any, path: Path) -> tuple[int, int] | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2 or not all(type(item) is int for item in value):
        raise RecipeError(f"must be [first, last + 1], not {value!r}", path)
    return value[0], value[1]


def _parameters(data: Mapping[str, Any], path: Path) -> dict[str, Any]:
    value = data.get("parameters")
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise RecipeError(f"must be names and values, not {value!r}", (*path, "parameters"))
    found: dict[str, Any] = normal(value, (*path, "parameters"))
    return found


def _tokenizer(data: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The recipe's fields from `tokenizer_source`, or from `tokenizer` ({source, tokens, pad_to_multiple_of})."""
    if "tokenizer" in data and "tokenizer_source" in data:
        raise RecipeError("is given by `tokenizer` already", (*path, "tokenizer_source"))
    key = "tokenizer" if "tokenizer" in data else "tokenizer_source"
    value = data.get(key)
    if not isinstance(value, Mapping) or (key == "tokenizer_source"):
        return {} if value is None else {"tokenizer": _model_name(value, (*path, key))}
    check_keys(value, ("source", "tokens", "pad_to_multiple_of"), (*path, key))
    tokens = value.get("tokens") or {}
    if not isinstance(tokens, Mapping):
        raise RecipeError("must be tokens and where their embeddings come from", (*path, key, "tokens"))
    source = value.get("source")
    return {
        # mergekit's default inside the mapping
        "tokenizer": "union" if source is None else _model_name(source, (*path, key, "source")),
        "tokens": {token: _token(own, (*path, key, "tokens", token)) for token, own in tokens.items()},
        "pad_to_multiple_of": _whole(value.get("pad_to_multiple_of") or 0, (*path, key, "pad_to_multiple_of")),
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
        return {**result, "source": _model_name(source, here)}
    if source["kind"] == "zero":
        check_keys(source, ("kind",), here)
        return {**result, "zero": True}
    if source["kind"] != "model_token":
        raise RecipeError(f"must be zero or model_token, not {source['kind']!r}", (*here, "kind"))
    check_keys(source, ("kind", "model", "token", "token_id"), here)
    if (source.get("token") is None) == (source.get("token_id") is None):
        raise RecipeError("needs either token or token_id", here)
    result["source"] = _model_name(source.get("model"), (*here, "model"))
    if source.get("token") is not None:
        return {**result, "token": _word(source["token"], (*here, "token"))}
    return {**result, "token_id": _whole(source["token_id"], (*here, "token_id"))}


def _model_name(value: Any, path: Path) -> str:
    if isinstance(value, Mapping):
        return str(_long_reference(value, path))
    return _word(value, path).removeprefix("model:")


def recipe_to_mergekit(recipe: Recipe) -> str | None:
    """The recipe in mergekit's language, or None where that has no words for it (nested recipes, scaled hops, …)."""
    name = _TO_MERGEKIT.get(recipe.method)
    everything = [item for part in recipe.slices for item in part.inputs]
    models = [item.model for item in everything] + ([recipe.base] if recipe.base is not None else [])
    if name is None or any(isinstance(m, Recipe) or m.name.startswith("sha256:") for m in models):
        return None
    if recipe.method == "dfs" and any("scale" in level for level in _levels(recipe)):
        return None
    if name == "slerp" and recipe.base is None:
        recipe = _with_base(recipe)
    if name not in {"linear", "passthrough"} and recipe.base is None:
        return None
    data: dict[str, Any] = {"merge_method": name}
    if recipe.base is not None:
        data["base_model"] = str(recipe.base)
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


def _with_base(recipe: Recipe) -> Recipe:
    return replace(recipe, base=recipe.slices[0].inputs[0].model)


def _levels(recipe: Recipe) -> list[Mapping[str, Any]]:
    parts = [level for part in recipe.slices for level in (part.parameters, *(item.parameters for item in part.inputs))]
    return [recipe.parameters, *parts]


def _own(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {"parameters": dict(parameters)} if parameters else {}


def _entry(item: Input) -> dict[str, Any]:
    layers = {"layer_range": list(item.layer_range)} if item.layer_range else {}
    return {"model": str(item.model), **layers, **_own(item.parameters)}
