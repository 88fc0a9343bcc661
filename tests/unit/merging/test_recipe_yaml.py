"""mergekit's YAML as people write it, and what they hear when it is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evomerge_common.domain.recipe import Recipe
from evomerge_common.domain.reference import ModelReference
from evomerge_common.errors import ModelNotFound, RecipeError
from evomerge_merging import read_recipe_file, read_recipe_text, recipe_to_mergekit

TIES = """\
models:
  - model: org/base
    # no parameters necessary for base model
  - model: org/one@v1.0+org/adapter
    parameters:
      density: [1, 0.7, 0.1] # density gradient
      weight: 1.0
  - model: ./two
    parameters:
      density: 0.33
      weight:
        - filter: mlp
          value: 0.5
        - value: 0
merge_method: ties
base_model: org/base
parameters:
  normalize: true
  int8_mask: true
dtype: float16
"""

SLERP = """\
slices:
  - sources:
      - model: org/one
        layer_range: [0, 32]
      - model: org/two
        layer_range: [0, 32]
merge_method: slerp
base_model: org/one
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 0.3, 0.7, 1]
    - value: 0.5
dtype: bfloat16
tokenizer:
  source: base
"""


def test_models_with_gradients_filters_and_references() -> None:
    recipe = read_recipe_text(TIES)
    assert recipe.method == "ties"
    assert recipe.base == ModelReference("org/base")
    assert [str(source) for source in recipe.sources()] == ["org/base", "org/one@v1.0+org/adapter", "./two"]
    (part,) = recipe.slices
    assert part.inputs[1].parameters == {"density": [1.0, 0.7, 0.1], "weight": 1.0}
    assert part.inputs[2].parameters["weight"] == [{"filter": "mlp", "value": 0.5}, {"value": 0.0}]
    assert recipe.parameters == {"normalize": True, "int8_mask": True}
    assert recipe.dtype == "float16"


def test_slices_and_tokenizer() -> None:
    recipe = read_recipe_text(SLERP)
    assert [item.layer_range for item in recipe.slices[0].inputs] == [(0, 32), (0, 32)]
    assert recipe.tokenizer == "base"


def test_from_a_file_and_in_the_long_form(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yml"
    path.write_text(
        "merge_method: passthrough\nmodels:\n  - model: {model: {path: org/one, revision: abc}, lora: org/adapter}\n"
    )
    assert read_recipe_file(path).sources() == [ModelReference("org/one", "abc", "org/adapter")]
    with pytest.raises(ModelNotFound, match=r"nowhere\.yml"):
        read_recipe_file(tmp_path / "nowhere.yml")


def test_nested_recipes_and_seed() -> None:
    recipe = read_recipe_text("""
merge_method: linear
seed: 7
models:
  - model: org/one
    parameters: {weight: 1e-1}
  - model:
      merge_method: dare_ties
      base_model: org/base
      models:
        - {model: org/two, parameters: {weight: 1, density: 0.5}}
    parameters: {weight: 0.9}
""")
    inner = recipe.slices[0].inputs[1].model
    assert isinstance(inner, Recipe)
    assert inner.method == "dare_ties"
    assert recipe.seed == 7
    assert recipe.slices[0].inputs[0].parameters == {"weight": 0.1}
    assert Recipe.from_json(recipe.to_json()).digest == recipe.digest
    assert recipe_to_mergekit(recipe) is None


@pytest.mark.parametrize("text", [TIES, SLERP])
def test_says_in_mergekits_words_what_it_read(text: str) -> None:
    recipe = read_recipe_text(text)
    again = recipe_to_mergekit(recipe)
    assert again is not None
    assert read_recipe_text(again).digest == recipe.digest


def test_tokenizers_in_the_long_form() -> None:
    text = """
merge_method: linear
models: [{model: org/a, parameters: {weight: 1}}, {model: org/b, parameters: {weight: 1}}]
tokenizer:
  source: {model: {path: org/b}}
  pad_to_multiple_of: 64
  tokens:
    <a>: {source: org/a, force: true}
    <b>: {source: {kind: zero}}
    <c>: {source: {kind: model_token, model: org/b, token_id: 7}}
    <d>: {source: {kind: model_token, model: org/b, token: "x"}}
    <e>:
"""
    recipe = read_recipe_text(text)
    assert (recipe.tokenizer, recipe.pad_to_multiple_of) == ("org/b", 64)
    assert recipe.tokens == {
        "<a>": {"source": "org/a", "force": True}, "<b>": {"zero": True}, "<c>": {"source": "org/b", "token_id": 7},
        "<d>": {"source": "org/b", "token": "x"}, "<e>": {},
    }  # fmt: skip
    assert Recipe.from_json(recipe.to_json()).digest == recipe.digest
    again = recipe_to_mergekit(recipe)
    assert again is not None
    assert read_recipe_text(again).digest == recipe.digest


def test_what_mergekit_has_no_words_for() -> None:
    one = ModelReference("org/one")
    path = (
        "merge_method: {}\nslices:\n  - sources: [{{model: org/one, layer_range: [0, 2], parameters: {{scale: 2}}}}]\n"
    )
    assert recipe_to_mergekit(read_recipe_text(path.format("dfs"))) is None
    assert "passthrough" in str(recipe_to_mergekit(read_recipe_text(path.format("frankenmerge"))))
    assert recipe_to_mergekit(Recipe.of_models("ties", [(one, {"weight": 1.0})])) is None
    assert "base_model: org/one" in str(recipe_to_mergekit(read_recipe_text(
        "merge_method: slerp\nmodels: [{model: org/one}, {model: org/two}]\nparameters: {t: 0.5}")))  # fmt: skip


M = "models: [{model: a, parameters: {weight: 1}}]\n"
WRONG: dict[str, tuple[str, int, str]] = {
    "unknown key": ("merge_method: linear\nmodles: []\n" + M, 2, "modles: unknown key; did you mean 'models'"),
    "unknown method": ("merge_method: tise\n" + M, 1, "merge_method: unknown merge method 'tise'; did you mean 'ties'"),
    "no method": (M, 1, "needs merge_method"),
    "no models": ("merge_method: linear\n", 1, "either models or slices"),
    "models and slices": ("merge_method: linear\n" + M + "slices: []\n", 1, "either models or slices"),
    "empty models": ("merge_method: linear\nmodels: []\n", 2, "at least one"),
    "unknown parameter": (
        "merge_method: linear\nmodels:\n  - model: a\n    parameters:\n      weigth: 1\n",
        5,
        "models[0].parameters.weigth: linear has no parameter 'weigth'; did you mean 'weight'",
    ),
    "unknown global parameter": (
        "merge_method: ties\nbase_model: b\n" + M + "parameters:\n  normalise: true\n",
        5,
        "did you mean 'normalize'",
    ),
    "parameter of the merge at a model alone": (
        "merge_method: slerp\nmodels:\n  - model: a\n  - model: b\n    parameters: {t: 0.5}\n",
        3,
        "needs 't'",
    ),
    "parameter missing": ("merge_method: linear\nmodels:\n  - model: a\n", 3, "needs 'weight' for a"),
    "parameter of a wrong kind": (
        "merge_method: linear\nmodels: [{model: a, parameters: {weight: much}}]\n",
        2,
        "a number",
    ),
    "density below 0": (
        "merge_method: ties\nmodels:\n- model: a\n  parameters:\n    weight: 1\n    density: -0.5\n",
        6,
        "from 0 to 1",
    ),
    "gradient of words": ("merge_method: linear\nmodels:\n- model: a\n  parameters: {weight: [1, b]}\n", 4, "numbers"),
    "mixed list": (
        "merge_method: linear\nmodels:\n- model: a\n  parameters: {weight: [1, {value: 1}]}\n",
        4,
        "not both",
    ),
    "unknown key of a filter": (
        "merge_method: linear\nmodels:\n- model: a\n  parameters:\n    weight:\n    - fitler: mlp\n      value: 1\n",
        6,
        "did you mean 'filter'",
    ),
    "filter without value": (
        "merge_method: linear\nmodels:\n- model: a\n  parameters: {weight: [{filter: x}]}\n",
        4,
        "a value",
    ),
    "NaN": ("merge_method: linear\nmodels:\n- model: a\n  parameters:\n    weight: .nan\n", 5, "not a finite number"),
    "unknown dtype": (
        "merge_method: linear\n" + M + "dtype: bf16\n",
        3,
        "dtype: unknown dtype 'bf16'; did you mean 'bfloat16'",
    ),
    "layer range backwards": (
        "merge_method: passthrough\nslices:\n- sources:\n  - model: a\n    layer_range: [4, 2]\n",
        5,
        "layers 4 to 2 are none",
    ),
    "layer range of words": (
        "merge_method: passthrough\nslices:\n- sources:\n  - model: a\n    layer_range: [a, b]\n",
        5,
        "first, last",
    ),
    "lengths that differ": (
        (
            "merge_method: linear\nparameters: {weight: 1}\nslices:\n"
            "- sources:\n  - {model: a, layer_range: [0, 2]}\n  - {model: b, layer_range: [0, 3]}\n"
        ),
        4,
        "different numbers of layers",
    ),
    "too many models": (
        "merge_method: slerp\nparameters: {t: 1}\nmodels: [{model: a}, {model: b}, {model: c}]\n",
        3,
        "takes 1 model",
    ),
    "nothing but the base": ("merge_method: ties\nbase_model: a\n" + M, 3, "besides the base"),
    "inside a nested recipe": (
        (
            "merge_method: linear\nmodels:\n- model:\n    merge_method: linaer\n    models: [{model: a}]\n"
            "  parameters: {weight: 1}\n"
        ),
        4,
        "did you mean 'linear'",
    ),
    "a key twice": ("merge_method: linear\nmerge_method: ties\n" + M, 2, "given twice"),
    "not YAML": ("merge_method: [linear\nmodels\n", 3, "not YAML"),
    "several modules": (
        "merge_method: linear\nmodules:\n  text: {models: [{model: a}]}\n  vision: {models: [{model: a}]}\n",
        2,
        "text, vision",
    ),
    "no modules": ("merge_method: linear\nmodules: {}\n", 2, "names and what"),
    "module and models": ("merge_method: linear\n" + M + "modules: {text: {models: [{model: a}]}}\n", 2, "already"),
    "unknown key in a module": (
        "merge_method: linear\nmodules:\n  text:\n    modles: []\n",
        4,
        "modules.text.modles: unknown key; did you mean 'models'",
    ),
    "two without a name": ("merge_method: linear\n" + M + "---\nmerge_method: linear\n" + M, 4, "need a name"),
    "a name twice": ("name: a\n---\nname: a\n---\nmerge_method: linear\n" + M, 3, "another recipe is named 'a'"),
    "a name for nothing": (
        "name: x\nmerge_method: linear\n" + M + "---\nmerge_method: linear\n" + M,
        1,
        "does not use 'x'",
    ),
    "a recipe of itself": (
        "name: a\nmerge_method: linear\n" + M + "---\nmerge_method: passthrough\nmodels: [{model: a}]\n",
        3,
        "a → a",
    ),
    "wrong in the second document": (
        "name: x\nmerge_method: linear\n" + M + "---\nmerge_method: linaer\nmodels: [{model: x}]\n",
        5,
        "did you mean 'linear'",
    ),
    "a mask without a base": ("merge_method: linear\n" + M + "weight_mask: {rate: 0.5}\n", 3, "needs base_model"),
    "a mask without a rate": ("merge_method: linear\n" + M + "weight_mask: {on: weight}\n", 3, "needs rate"),
    "a mask beyond 1": (
        "merge_method: linear\n" + M + "weight_mask:\n  on: weight\n  rate: 1.5\n",
        5,
        "from 0 to 1",
    ),
    "a mask of no known kind": (
        "merge_method: linear\n" + M + "weight_mask: {on: weight, rate: 0.5, strategy: magnitud}\n",
        3,
        "did you mean 'magnitude'",
    ),
    "a number for a model": ("merge_method: linear\nmodels:\n  - model: 3\n", 3, "must be a model"),
    "a list of nothing": ("merge_method: linear\nmodels:\n  -\n", 3, "expected keys and values"),
    "a word at the top": ("just: a\nword: b\n", 1, "unknown key"),
    "negative seed": ("merge_method: linear\n" + M + "seed: -1\n", 3, "at least 0"),
    "a token's unknown key": (
        "merge_method: linear\n" + M + "tokenizer:\n  source: base\n  tokens:\n    x: {sorce: a}\n",
        6,
        "did you mean 'source'",
    ),
    "a token's unknown kind": (
        "merge_method: linear\n" + M + "tokenizer:\n  tokens:\n    x:\n      source: {kind: one}\n",
        6,
        "zero or model_token",
    ),
    "a token without a row": (
        "merge_method: linear\n" + M + "tokenizer: {tokens: {x: {source: {kind: model_token, model: a}}}}\n",
        3,
        "either token or token_id",
    ),
    "padding of words": (
        "merge_method: linear\n" + M + "tokenizer: {pad_to_multiple_of: many}\n",
        3,
        "whole number",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_each_mistake_names_its_line_and_the_nearest_word(what: str, tmp_path: Path) -> None:
    text, line, words = WRONG[what]
    path = tmp_path / "recipe.yml"
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        read_recipe_file(path)
    assert str(caught.value).startswith(f"{path}:{line}: "), str(caught.value)
    assert words in str(caught.value)


def test_a_small_text_does_not_become_a_large_document() -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12))
    with pytest.raises(RecipeError, match="too large"):
        read_recipe_text(bomb)
    with pytest.raises(RecipeError, match="longer than"):
        read_recipe_text("x: " + "y" * 1_100_000 + "\n")
    loop: Any = "a: &a [*a]\n"
    with pytest.raises(RecipeError):
        read_recipe_text(loop)
    with pytest.raises(RecipeError):
        read_recipe_text("[" * 5000 + "\n")
    deep = "merge_method: linear\nmodels: [{model: a, parameters: {weight: 1}}]\n"
    recipe = read_recipe_text(deep)
    for _ in range(80):
        recipe = Recipe.of_models("linear", [(recipe, {"weight": 1.0})])
    from evomerge_merging import check_recipe

    with pytest.raises(RecipeError, match="nested deeper"):
        check_recipe(recipe)


def test_a_single_module_is_the_recipe_of_that_module() -> None:
    plain = "models: [{model: a, parameters: {weight: 1}}, {model: b}]\n"
    text = "merge_method: linear\nparameters: {weight: 2}\n" + plain
    in_module = "merge_method: linear\nparameters: {weight: 3, normalize: true}\nmodules:\n  text_decoder:\n"
    in_module += "    parameters: {weight: 2}\n    " + plain
    assert read_recipe_text(in_module).slices == read_recipe_text(text).slices
    assert read_recipe_text(in_module).parameters == {"weight": 2.0, "normalize": True}


def test_named_recipes_of_one_text_are_nested() -> None:
    text = """
name: first
merge_method: linear
models: [{model: org/a, parameters: {weight: 1}}, {model: org/b, parameters: {weight: 1}}]
---
name: second
merge_method: ties
base_model: org/base
models: [{model: first, parameters: {weight: 1}}]
---
merge_method: slerp
base_model: first
models: [{model: first}, {model: second}]
parameters: {t: 0.5}
"""
    recipe = read_recipe_text(text)
    assert recipe.method == "slerp"
    assert isinstance(recipe.base, Recipe)
    assert recipe.base == recipe.slices[0].inputs[0].model
    assert [str(source) for source in recipe.sources()] == ["org/a", "org/b", "org/base"]
    second = recipe.slices[0].inputs[1].model
    assert isinstance(second, Recipe)
    assert second.slices[0].inputs[0].model == recipe.base


def test_a_weight_mask_is_a_recipe_around_each_input() -> None:
    text = "merge_method: ties\nbase_model: b\nmodels: [{model: b}, {model: m, parameters: {weight: 1}}]\nseed: 3\n"
    recipe = read_recipe_text(text + "weight_mask: {rate: 0.3, strategy: magnitude, rescale: false, exclude: [norm]}\n")
    base, masked = (item.model for item in recipe.slices[0].inputs)
    assert base == ModelReference("b")
    assert isinstance(masked, Recipe)
    assert (masked.method, masked.base, masked.seed) == ("mask_delta", ModelReference("b"), 3)
    assert masked.parameters == {
        "rate": [{"filter": "norm", "value": 0.0}, {"value": 0.3}], "strategy": "magnitude", "rescale": False,
    }  # fmt: skip
    assert recipe.slices[0].inputs[1].parameters == {"weight": 1.0}
