"""A sound model whose header tells one lie, and recipes that no merge can carry out: a typed error, nothing written."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge_common.domain.recipe import Input, Recipe, Slice
from evomerge_common.domain.reference import ModelReference
from evomerge_common.errors import (
    ModelError,
    ModelNotFound,
    NotAModel,
    QuantisedModel,
    RecipeError,
    ShapeMismatch,
    UnsafeFile,
)
from evomerge_merging import merge_recipe
from helpers.tiny_merging import make_model, random_tensors, raw_model, set_config
from helpers.tiny_tokenizers import GERMAN, make_tokenizer

Header = dict[str, Any]
FIRST, SECOND = "layers.0.a.weight", "norm.weight"


def _set(tensor: str, key: str, value: Any) -> Callable[[Header], None]:
    def change(header: Header) -> None:
        header[tensor][key] = value(header[tensor][key]) if callable(value) else value

    return change


def _swap(header: Header) -> None:
    header[FIRST]["data_offsets"], header[SECOND]["data_offsets"] = (
        header[SECOND]["data_offsets"],
        header[FIRST]["data_offsets"],
    )


def _alias(header: Header) -> None:
    header[SECOND] = dict(header[FIRST])


LIES: dict[str, Callable[[Header], Any]] = {
    "a dimension too large": _set(FIRST, "shape", lambda shape: [shape[0] + 1, *shape[1:]]),
    "a dimension too small": _set(FIRST, "shape", lambda shape: [shape[0] - 1, *shape[1:]]),
    "a negative dimension": _set(FIRST, "shape", lambda shape: [-shape[0], *shape[1:]]),
    "a dimension that overflows 64 bits": _set(FIRST, "shape", [2**62, 4]),
    "a dimension that is a word": _set(FIRST, "shape", ["many"]),
    "a shape that is a number": _set(FIRST, "shape", 400),
    "a wider dtype than its bytes": _set(FIRST, "dtype", "F64"),
    "a narrower dtype than its bytes": _set(FIRST, "dtype", "BF16"),
    "a dtype that does not exist": _set(FIRST, "dtype", "F33"),
    "bytes beyond the end of the file": _set(FIRST, "data_offsets", lambda span: [span[0] + 2**40, span[1] + 2**40]),
    "bytes before the beginning": _set(FIRST, "data_offsets", lambda span: [span[0] - 8, span[1] - 8]),
    "bytes that run backwards": _set(FIRST, "data_offsets", lambda span: span[::-1]),
    "another tensor's bytes": _swap,
    "two tensors in the same bytes": _alias,
    "a hole where a tensor was": lambda header: header.pop(SECOND),
    "metadata that is a tensor": lambda header: header.update(__metadata__=dict(header[FIRST])),
    "a tensor without a place": lambda header: header[FIRST].pop("data_offsets"),
    "a header longer than the file": lambda _: 2**40,
    "a header shorter than it is": lambda _: 16,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[ModelReference]:
    root = tmp_path_factory.mktemp("models")
    return [ModelReference(str(raw_model(root / f"m{i}", random_tensors(i, 100)))) for i in range(3)]


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_in_a_source_is_told_and_nothing_is_written(
    models: list[ModelReference], tmp_path: Path, lie: str
) -> None:
    folder = raw_model(tmp_path / "liar", random_tensors(7, 100))
    path = folder / "model.safetensors"
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    told = LIES[lie](header)
    text = json.dumps(header).encode()
    claimed = told if type(told) is int else len(text)
    path.write_bytes(struct.pack("<Q", claimed) + text + data[8 + length :])
    what = Recipe.of_models("ties", [(ModelReference(str(folder)), {"weight": 1.0})], base=models[0])
    with pytest.raises(UnsafeFile, match=r"liar/model\.safetensors"):
        merge_recipe(what, {}, tmp_path / "deep" / "out")
    assert [item.name for item in tmp_path.iterdir()] == ["liar"]


def _linear(*inputs: ModelReference | Recipe, **own: Any) -> Recipe:
    return replace(Recipe.of_models("linear", [(item, {"weight": 1.0}) for item in inputs]), **own)


def _other_kind(folder: Path, _: ModelReference) -> ModelReference:
    return ModelReference(str(raw_model(folder, random_tensors(0, 100), model_type="other")))


def _wider(folder: Path, _: ModelReference) -> ModelReference:
    return ModelReference(str(raw_model(folder, random_tensors(0, 101))))


def _deeper(folder: Path, _: ModelReference) -> ModelReference:
    tensors = random_tensors(0, 100)
    tensors["layers.2.a.weight"] = tensors[FIRST].clone()
    return ModelReference(str(raw_model(folder, tensors, num_hidden_layers=3)))


def _quantised(folder: Path, _: ModelReference) -> ModelReference:
    raw_model(folder, {**random_tensors(0, 100), "layers.0.b.weight": torch.zeros(8, 8, dtype=torch.uint8)})
    set_config(folder, quantization_config={"bits": 4})
    return ModelReference(str(folder))


def _empty(folder: Path, _: ModelReference) -> ModelReference:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return ModelReference(str(folder))


def _foreign_tokens(folder: Path, _: ModelReference) -> ModelReference:
    make_model(folder, "llama", vocab_size=make_tokenizer(folder, GERMAN))
    return ModelReference(str(folder))


Make = Callable[[Path, ModelReference], ModelReference]
IMPOSSIBLE: dict[str, tuple[Make, Callable[[ModelReference, ModelReference, Path], Recipe], type[Exception]]] = {
    "two architectures": (_other_kind, lambda a, b, _: _linear(a, b), ModelError),
    "two widths": (_wider, lambda a, b, _: _linear(a, b), ShapeMismatch),
    "two depths without layer ranges": (_deeper, lambda a, b, _: _linear(a, b), ShapeMismatch),
    "layers that are not there": (
        _deeper,
        lambda a, b, _: Recipe("passthrough", (Slice((Input(b, (0, 3)),)), Slice((Input(a, (1, 3)),)))),
        RecipeError,
    ),
    "quantised weights": (_quantised, lambda a, b, _: _linear(b), QuantisedModel),
    "a folder without weights": (_empty, lambda a, b, _: _linear(a, b), NotAModel),
    "a folder that is not there": (_empty, lambda a, b, at: _linear(a, ModelReference(f"{at}/none")), ModelNotFound),
    "a tokenizer of a model that is not in it": (_wider, lambda a, b, _: _linear(a, tokenizer="org/x"), RecipeError),
    "a token of a model that is not in it": (
        _foreign_tokens,
        lambda a, b, _: _linear(b, tokenizer="union", tokens={"x": {"source": "org/x"}}),
        RecipeError,
    ),
    "a base that it does not name": (_wider, lambda a, b, _: _linear(a, tokenizer="base"), RecipeError),
    "slerp of three": (
        _wider,
        lambda a, b, _: Recipe.of_models("slerp", [(a, {}), (a, {}), (b, {})], parameters={"t": 0.5}),
        RecipeError,
    ),
    "a type that weights cannot have": (_wider, lambda a, b, _: _linear(a, out_dtype="int4"), RecipeError),
    "an adapter": (_wider, lambda a, b, _: _linear(ModelReference(a.name, adapter="org/lora")), ModelNotFound),
    "wrong deep inside": (_wider, lambda a, b, _: _linear(a, _linear(a, _linear(a, b))), ShapeMismatch),
}


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_an_impossible_recipe_is_told_and_nothing_is_written(
    models: list[ModelReference], tmp_path: Path, what: str
) -> None:
    make, recipe, error = IMPOSSIBLE[what]
    other = make(tmp_path / "other", models[0])
    made = recipe(models[0], other, tmp_path / "more")
    before = sorted(item.name for item in tmp_path.iterdir())
    with pytest.raises(error) as caught:
        merge_recipe(made, {}, tmp_path / "deep" / "out")
    assert type(caught.value) is error
    assert len(str(caught.value)) > 20
    assert sorted(item.name for item in tmp_path.iterdir()) == before
