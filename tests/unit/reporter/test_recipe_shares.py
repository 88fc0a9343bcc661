"""What a recipe gives of each source to each layer: the numbers are those by which tensors are really put together."""

import numpy as np
import pytest
import yaml

from evomerge_common.domain.genome import Genome, Hop
from evomerge_common.domain.methods import BUILT_IN, METHOD_WORDS, searchable_methods, traits_of
from evomerge_common.domain.recipe import Input, Recipe, Slice
from evomerge_common.domain.reference import ModelReference
from evomerge_common.domain.search_space import SearchSpace
from evomerge_merging.methods import methods
from evomerge_merging.recipes.from_yaml import read_recipe_text
from evomerge_report.recipe_words import recipe_words, recipe_yaml
from evomerge_report.shares import BASE, shares_of

MODELS = tuple(
    ModelReference(f"/models/{name}", digest=f"sha256:{i:064x}") for i, name in enumerate(("math", "code", "text"), 1)
)
ROWS = ((0.1, 0.2, 0.7), (0.5, 0.2, 0.3), (0.0, 0.9, 0.1))


def space(method: str) -> SearchSpace:
    return SearchSpace(models=MODELS, base=None, num_layers=8, groups=2, methods=(method,))


def genome(method: str) -> Genome:
    if traits_of(method).is_path:
        return Genome(method, path=tuple(Hop(layer // 4, layer) for layer in range(8)))
    return Genome(method, weights=ROWS, density=(0.5, 0.5, 0.4))


@pytest.mark.parametrize("method", ["linear", "slerp", "task_arithmetic", "ties"])
def test_each_layer_group_shows_the_weights_of_its_genome(method: str) -> None:
    table = shares_of(space(method).recipe(genome(method)), 8)
    assert [row.name for row in table.rows] == ["embeddings", "layers 0–3", "layers 4–7", "head"]
    for row, weights in zip(table.rows, (*ROWS, ROWS[-1]), strict=True):
        assert row.shares == pytest.approx(weights, abs=1e-3), row.name
    assert table.is_exact is (method in {"linear", "task_arithmetic"})


@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
def test_exact_shares_put_tensors_together_as_the_method_does(method: str) -> None:
    """With the base among the sources: what is left of one is its own."""
    generator = np.random.default_rng(3)
    values = generator.standard_normal(3)
    settings = {"normalize": False} if method == "task_arithmetic" else {}
    pairs = [(MODELS[1], {"weight": 0.7}), (MODELS[2], {"weight": 0.6})]
    recipe = Recipe.of_models(method, pairs, base=MODELS[0], parameters=settings)
    table = shares_of(recipe, 4)
    base, *others = (values[0], values[1], values[2])
    if method == "linear":
        wanted = (0.7 * others[0] + 0.6 * others[1]) / 1.3
    else:
        wanted = base + 0.7 * (others[0] - base) + 0.6 * (others[1] - base)
    for row in table.rows:
        assert sum(share * value for share, value in zip(row.shares, values, strict=True)) == pytest.approx(
            wanted, abs=1e-3
        )


def test_a_path_names_where_each_stretch_is_from() -> None:
    table = shares_of(space("frankenmerge").recipe(genome("frankenmerge")), 8)
    assert [(row.name, row.origin) for row in table.rows] == [
        ("embeddings", ""), ("layers 0–3", "math 0–3"), ("layers 4–7", "code 4–7"), ("head", ""),
    ]  # fmt: skip
    twice = Recipe("passthrough", tuple(Slice((Input(MODELS[0], span),)) for span in ((0, 6), (2, 8))))
    assert [row.origin for row in shares_of(twice, 8).rows if row.origin] == ["math 0–5", "math 2–7"]


def test_shares_multiply_through_merges_of_merges() -> None:
    inner = Recipe.of_models("linear", [(MODELS[0], {"weight": 1.0}), (MODELS[1], {"weight": 3.0})])
    outer = Recipe.of_models("linear", [(inner, {"weight": 1.0}), (MODELS[2], {"weight": 1.0})])
    assert shares_of(outer, 4).rows[1].shares == (0.125, 0.375, 0.5)


def test_gradients_and_filters_are_read_as_the_engine_reads_them() -> None:
    weights = [{"filter": "mlp", "value": 0.0}, {"value": [0.0, 1.0]}]
    recipe = Recipe.of_models(
        "linear", [(MODELS[0], {"weight": weights}), (MODELS[1], {"weight": 1.0})], parameters={"normalize": False}
    )
    rows = [row for row in shares_of(recipe, 3).rows if row.name.startswith("layer")]
    assert [row.shares[0] for row in rows] == [0.0, 0.25, 0.5], "half of a layer's tensors are of the MLP"


def test_what_follows_from_the_tensors_is_not_made_up() -> None:
    table = shares_of(space("sce").recipe(genome("sce")), 8)
    assert {share for row in table.rows for share in row.shares} == {None}
    assert "no shares can be told" in " ".join(recipe_words(space("sce").recipe(genome("sce")), table))


@pytest.mark.parametrize("method", searchable_methods())
def test_every_method_has_words_and_says_what_the_numbers_leave_out(method: str) -> None:
    recipe = space(method).recipe(genome(method))
    words = recipe_words(recipe, shares_of(recipe, 8))
    assert method not in BUILT_IN or method in METHOD_WORDS
    assert all(sentence.endswith(".") and "{" not in sentence for sentence in words)
    if traits_of(method).density is not None:
        assert "Of each source's changes 40% to 50% are kept; the numbers do not show which." in words


def test_yaml_reads_back_as_the_same_merge() -> None:
    recipe = space("linear").recipe(genome("linear"))
    assert read_recipe_text(recipe_yaml(recipe)).method == "linear"
    assert yaml.safe_load(recipe_yaml(recipe))["slices"][0]["inputs"][0]["model"]["source"] == "math"


def test_defaults_are_those_of_the_methods() -> None:
    found = {name: one.parameters["normalize"] for name, one in methods().items() if "normalize" in one.parameters}
    assert {name: one.default for name, one in found.items()} == {name: traits_of(name).normalizes for name in found}
    thin = Genome("ties", weights=((0.1, 0.1, 0.1),) * 3, density=(1.0,) * 3)
    table = shares_of(space("ties").recipe(thin), 8)
    assert table.sources[-1] == BASE
    assert table.rows[0].shares == pytest.approx((0.1, 0.1, 0.1, 0.7))
