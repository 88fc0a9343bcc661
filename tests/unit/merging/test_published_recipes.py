"""Recipes as people publish them: which run, to what, and what is said of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evomerge_cli.__main__ import main
from evomerge_common.errors import InvalidInput, RecipeError
from evomerge_merging import merge_in_memory, plan_merge, read_recipe_file, read_recipe_text
from helpers import tiny_models
from helpers.mergekit_corpus import CORPUS, SUMS, checksum, make_models

TELLING = [name for name, one in CORPUS.items() if one.notices]
REFUSED = [name for name, one in CORPUS.items() if one.refusal]
MERGED = [name for name, one in CORPUS.items() if one.theirs and not one.random and not one.refusal]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    make_models(folder)
    return folder


def test_there_are_many() -> None:
    assert len(CORPUS) >= 60
    assert len(MERGED) >= 50


@pytest.mark.parametrize("name", [name for name, one in CORPUS.items() if not one.refusal])
def test_what_has_no_effect_is_told_once_and_the_plan_tells_it(root: Path, name: str) -> None:
    published = CORPUS[name]
    recipe = read_recipe_text(published.filled(root))
    assert len(recipe.notes) == len(published.notices), recipe.notes
    for word in published.notices:
        assert any(word in note for note in recipe.notes), (word, recipe.notes)
    with plan_merge(recipe) as plan:
        assert plan.notes[: len(recipe.notes)] == recipe.notes


@pytest.mark.parametrize("name", TELLING)
def test_strictly_read_it_is_an_error_with_its_line(root: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / "recipe.yml"
    path.write_text(CORPUS[name].filled(root))
    with pytest.raises(RecipeError, match=r"recipe\.yml:\d+: "):
        read_recipe_file(path, strict=True)


@pytest.mark.parametrize("name", REFUSED)
def test_what_nothing_knows_is_refused(root: Path, name: str) -> None:
    with pytest.raises(InvalidInput) as caught, plan_merge(read_recipe_text(CORPUS[name].filled(root))):
        pass
    assert CORPUS[name].refusal in str(caught.value)


@pytest.mark.parametrize("name", MERGED)
def test_merges_to_what_mergekit_makes_of_it(root: Path, name: str) -> None:
    with plan_merge(read_recipe_text(CORPUS[name].filled(root))) as plan:
        found = checksum(merge_in_memory(plan))
    expected = json.loads(SUMS.read_text())[name]
    assert found == pytest.approx(expected, abs=0.02 if "float16" in CORPUS[name].text else 2e-4)


def test_the_command_tells_and_strictly_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, name in enumerate(("BASE", "A", "B", "C")):
        tiny_models.make(tmp_path / name, "llama", seed=seed)
    path = tmp_path / "recipe.yml"
    path.write_text(CORPUS["weights and a mask under slerp"].filled(tmp_path))
    assert main(["merge", str(path), str(tmp_path / "out"), "--dry-run"]) == 0
    assert "note: slerp does not use 'int8_mask': it has no effect (parameters.int8_mask)" in capsys.readouterr().err
    assert main(["merge", str(path), str(tmp_path / "out"), "--strict"]) == 2
    assert "recipe.yml:3: models[0].parameters.weight: slerp does not use 'weight'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("base_model: a\nexperts: []\n", "evomerge export"),
        ("genome: {models: [a, b]}\ntasks: []\n", "evomerge run"),
    ],
)
def test_files_of_mergekits_other_programs_name_the_command_for_them(text: str, command: str) -> None:
    with pytest.raises(RecipeError, match=command):
        read_recipe_text(text)


def test_a_seed_at_the_top_is_the_seed() -> None:
    text = "merge_method: dare_ties\nbase_model: b\nmodels: [{model: a, parameters: {weight: 1}}]\n"
    assert read_recipe_text(text + "random_seed: 42\n").digest == read_recipe_text(text + "seed: 42\n").digest


def test_words_without_effect_are_no_part_of_a_recipes_identity() -> None:
    text = "merge_method: slerp\nbase_model: a\nparameters: {t: 0.5}\nmodels:\n- model: a\n- model: b\n"
    stray = text + "  parameters: {weight: 0.5, density: 0.5}\nmetadata: {author: someone}\n"
    assert read_recipe_text(stray).digest == read_recipe_text(text).digest


def test_a_misspelt_key_with_an_anchor_is_no_holder() -> None:
    with pytest.raises(RecipeError, match="did you mean 'parameters'"):
        read_recipe_text("parameter: &p {t: 1}\nmerge_method: slerp\nmodels: [{model: a}, {model: b}]\n")
