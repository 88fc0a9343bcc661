"""The search draws any method whose traits allow it, one of another package too, and says why it draws no other."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from random import Random

import pytest
import torch

from evomerge_common.domain.genome import Genome
from evomerge_common.domain.messages import CandidateProposed
from evomerge_common.domain.methods import BUILT_IN, DEFAULT_METHODS, searchable_methods, traits_of
from evomerge_common.domain.recipe import Recipe
from evomerge_common.domain.reference import ModelReference
from evomerge_common.domain.search_space import SearchSpace
from evomerge_common.domain.spec import RunSpec, SearchSpec
from evomerge_common.errors import RecipeError, SpecError
from evomerge_merging import check_recipe, merge_in_memory, plan_merge
from evomerge_merging.methods import methods
from evomerge_selector.domain.operators import random_genome
from helpers.simulation import Simulation, make_spec
from helpers.tiny_merging import random_tensors, raw_model, weights

ROOT = Path(__file__).resolve().parents[3]
REFUSED = sorted(name for name, traits in BUILT_IN.items() if traits.refusal)


def proposed(run: Simulation) -> list[Recipe]:
    found = [event.payload for event in run.events if isinstance(event.payload, CandidateProposed)]
    return [Recipe.from_json(one.recipe_json) for one in found]


def test_the_table_and_the_engine_know_the_same_methods() -> None:
    assert set(BUILT_IN) == set(methods())
    for name, traits in BUILT_IN.items():
        parameters = methods()[name].parameters
        read = [*traits.settings, *filter(None, [traits.share, traits.density.parameter if traits.density else ""])]
        read += ["weight"] if traits.weights and not traits.share else []
        read += ["scale"] if traits.scales else []
        assert set(read) <= set(parameters), f"the traits of {name} name parameters that it does not have"


def test_what_the_search_draws_unless_told_otherwise_stays() -> None:
    assert " ".join(DEFAULT_METHODS) == "linear slerp task_arithmetic ties dare_linear dare_ties frankenmerge dfs"
    assert SearchSpec().methods == DEFAULT_METHODS


@pytest.mark.parametrize("name", searchable_methods())
def test_any_method_that_can_be_searched_makes_recipes_that_mean_something(name: str) -> None:
    run = Simulation(make_spec(methods=[name], evaluations=24, population=8), workers=2, order=1)
    recipes = proposed(run)
    assert name in {recipe.method for recipe in recipes}
    for recipe in recipes:
        check_recipe(recipe)


@pytest.mark.parametrize("name", [name for name in searchable_methods() if not traits_of(name).is_path])
def test_what_the_search_draws_can_be_merged(name: str, tmp_path: Path) -> None:
    folders = [raw_model(tmp_path / str(i), random_tensors(i, 300)) for i in range(4)]
    base, *models = [ModelReference(str(folder)) for folder in folders]
    space = SearchSpace(tuple(models), base, 2, 2, (name,), genes=("boundaries",))
    for seed in range(3):
        with plan_merge(space.recipe(random_genome(space, Random(seed)))) as plan:
            merged = merge_in_memory(plan)
        assert all(torch.isfinite(tensor).all() for tensor in merged.values())


def test_two_at_a_time_each_newcomer_has_its_share_of_the_weight_so_far() -> None:
    models = tuple(ModelReference(name, digest=f"sha256:{name}") for name in "abc")
    space = SearchSpace(models, None, 2, 1, ("nuslerp",))
    recipe = space.recipe(Genome("nuslerp", weights=((1.0, 1.0, 2.0),) * 2))
    outer = [item.parameters["weight"] for item in recipe.slices[0].inputs]
    inner = recipe.slices[0].inputs[0].model
    assert isinstance(inner, Recipe)
    assert outer == [0.5, 0.5]
    assert [item.parameters["weight"] for item in inner.slices[0].inputs] == [0.5, 0.5]


def test_a_density_stays_where_the_method_can_take_it() -> None:
    models = tuple(ModelReference(name, digest=f"sha256:{name}") for name in "ab")
    space = SearchSpace(models, ModelReference("base"), 2, 1, ("della",))
    recipe = space.recipe(Genome("della", weights=((1.0, 1.0),) * 2, density=(0.99, 0.99)))
    assert recipe.slices[0].parameters == {"density": 0.8}  # with epsilon 0.15, 0.99 would be beyond 1


@pytest.mark.parametrize("name", REFUSED)
def test_a_method_that_cannot_be_searched_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(SpecError, match=rf"search\.methods\[1\]: the search cannot draw '{name}': \w+") as caught:
        make_spec(methods=["linear", name])
    assert BUILT_IN[name].refusal in str(caught.value)


def test_a_method_that_needs_more_models_than_there_are_is_refused() -> None:
    with pytest.raises(SpecError, match="model_stock needs at least 2 models besides the base, and the run has 1"):
        RunSpec.from_dict({
            "models": ["base", "one"], "base": "base", "search": {"methods": ["model_stock"]},
        })  # fmt: skip


def test_an_unknown_method_is_refused_with_the_nearest_word() -> None:
    with pytest.raises(SpecError, match="did you mean 'breadcrumbs'"):
        make_spec(methods=["breadcrumb"])
    with pytest.raises(RecipeError, match="unknown merge method 'serp'; did you mean 'slerp'"):
        traits_of("serp")


# ---- a method of another package: the three files that docs/extending.md shows ----

SEARCH = """
import sys
sys.modules["torch"] = sys.modules["evomerge_merging"] = None  # as in the selector's image: an import fails
from evomerge_common.domain.messages import CandidateProposed
from helpers.simulation import Simulation, make_spec
run = Simulation(make_spec(methods=["halfway"], evaluations=20, population=8), workers=2, order=1)
found = [event.payload for event in run.events if isinstance(event.payload, CandidateProposed)]
print(*[one.recipe_json for one in found if '"method":"halfway"' in one.recipe_json], sep="\\n")
"""
MERGE = """
import sys
from pathlib import Path
from evomerge_common.domain.recipe import Recipe
from evomerge_merging import merge_recipe
recipe, folder = Recipe.from_json(sys.argv[1]), Path(sys.argv[2])
merge_recipe(recipe, {model.key: folder / model.name for model in recipe.sources()}, folder / "out")
"""


@pytest.fixture
def package(tmp_path: Path) -> dict[str, str]:
    """The environment of a process in which the package of docs/extending.md is installed."""
    site = tmp_path / "site"
    (site / "halfway-1.0.dist-info").mkdir(parents=True)
    section = (ROOT / "docs" / "extending.md").read_text().partition("## A merge method")[2].partition("\n## ")[0]
    traits, method, project = re.findall(r"```\w+\n(.*?)```", section, flags=re.DOTALL)
    (site / "halfway_traits.py").write_text(traits)
    (site / "halfway_method.py").write_text(method)
    groups = tomllib.loads(project)["project"]["entry-points"]
    lines = [line for group, entries in groups.items() for line in (f"[{group}]", *map("=".join, entries.items()))]
    (site / "halfway-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: halfway\nVersion: 1.0\n")
    (site / "halfway-1.0.dist-info" / "entry_points.txt").write_text("\n".join(lines) + "\n")
    paths = [str(site), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def python(code: str, *words: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *words], env=env, capture_output=True, text=True, check=False, timeout=120
    )


def test_a_method_of_another_package_is_drawn_and_merged(package: dict[str, str], tmp_path: Path) -> None:
    search = python(SEARCH, env=package)
    assert search.returncode == 0, search.stderr
    recipe = Recipe.from_json(search.stdout.splitlines()[-1])
    names = {f"layers.{i}.a.weight": (5, 8) for i in range(6)} | {"norm.weight": (8,)}
    for name in ("base", "m0", "m1", "m2"):
        generator = torch.Generator().manual_seed(len(name) + ord(name[-1]))
        tensors = {key: torch.randn(shape, generator=generator) for key, shape in names.items()}
        raw_model(tmp_path / "org" / name, tensors, num_hidden_layers=6)
    merged = python(MERGE, recipe.to_json(), str(tmp_path), env=package)
    assert merged.returncode == 0, merged.stderr
    top = recipe.slices[-1]
    assert 0.25 <= top.parameters["reach"] <= 0.75
    expected = weights(tmp_path / "org" / "base")["layers.5.a.weight"]
    for item in top.inputs:
        assert isinstance(item.model, ModelReference)
        model = weights(tmp_path / item.model.name)["layers.5.a.weight"]
        expected = expected + (model - expected) * (item.parameters["weight"] * top.parameters["reach"])
    torch.testing.assert_close(weights(tmp_path / "out")["layers.5.a.weight"], expected)


def test_traits_that_need_torch_are_told_where_the_search_runs(package: dict[str, str], tmp_path: Path) -> None:
    traits = tmp_path / "site" / "halfway_traits.py"
    traits.write_text(f"import torch\n{traits.read_text()}")
    search = python(SEARCH, env=package)
    assert "'halfway' cannot be used" in search.stderr
    assert "imports without torch" in search.stderr
