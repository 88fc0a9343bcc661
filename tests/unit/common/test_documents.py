"""The one reader of what people and clients write: the same words everywhere, and an end to whatever comes."""

from __future__ import annotations

import ast
import contextlib
import os
import time
from pathlib import Path

import pytest

from evomerge_common.domain.spec import RunSpec
from evomerge_common.errors import RecipeError, SpecError, SuiteError
from evomerge_common.runtime.documents import read_file, read_text
from evomerge_common.runtime.suite_file import load_suite
from evomerge_merging import read_recipe_file, read_recipe_text
from evomerge_merging.moe.yaml import read_mixture
from helpers.hostile import TEXTS

SERVICES = Path(__file__).parents[3] / "services"


def test_numbers_are_what_people_mean() -> None:
    text = "[1e-3, 1E5, .5e-2, -1, +2, 1_000, 010, 0x1F, 0o17, 1., .inf, 1:30, 2024-01-01, 1e, -, ~, yes, '1e3']"
    assert read_text(text).data == [
        0.001, 100_000.0, 0.005, -1, 2, 1000, 10, 31, 15, 1.0, float("inf"), "1:30", "2024-01-01", "1e", "-", None,
        True, "1e3",
    ]  # fmt: skip
    assert read_text('{"a": 1e-3, "b": "1e-3", "c": [true, null]}').data == {"a": 0.001, "b": "1e-3", "c": [True, None]}


def test_a_number_with_an_exponent_is_one_in_specs_suites_recipes_and_mixtures(tmp_path: Path) -> None:
    data = read_text("models: [a, b]\nsearch: {min_delta: 1e-3, niche: .5e-1}").data
    search = RunSpec.from_dict(data).search
    assert (search.min_delta, search.niche) == (0.001, 0.05)
    recipe = read_recipe_text("merge_method: linear\nmodels: [{model: a, parameters: {weight: 1E-1}}]")
    assert recipe.slices[0].inputs[0].parameters == {"weight": 0.1}
    (tmp_path / "suite.yaml").write_text(
        "holdout: 3e-1\ntasks: [{name: a, kind: perplexity, data: a.txt, weight: 2e0}]"
    )
    (tmp_path / "a.txt").write_text("\n\n".join(f"text {n}" for n in range(20)))
    suite = load_suite(tmp_path / "suite.yaml")
    assert (suite.holdout, suite.tasks[0].weight) == (0.3, 2.0)
    (tmp_path / "moe.yaml").write_text(
        "base_model: a\ngate_mode: random\nexperts: [{source_model: a}, {source_model: b}]\n"
        "shared_experts: [{source_model: a, residual_scale: 1e-1}]\n"
    )
    shared = read_mixture(tmp_path / "moe.yaml").shared
    assert shared is not None
    assert shared.scale == 0.1


def test_anchors_and_merge_keys_are_the_same_in_specs_and_recipes() -> None:
    recipe = read_recipe_text(
        "merge_method: ties\nbase_model: o\nmodels:\n"
        "- model: a\n  parameters: &p {weight: 0.5, density: 0.25}\n"
        "- model: b\n  parameters: {<<: *p, weight: 1}\n"
        "- model: c\n  parameters: *p\n"
    )
    assert [one.parameters for one in recipe.slices[0].inputs] == [
        {"weight": 0.5, "density": 0.25}, {"weight": 1.0, "density": 0.25}, {"weight": 0.5, "density": 0.25},
    ]  # fmt: skip
    data = read_text("a: &a {x: 1, y: 1}\nb: &b {y: 2, z: 2}\nc: {<<: [*a, *b], z: 3}\nd: {'<<': 1}").data
    assert data["c"] == {"x": 1, "y": 1, "z": 3}
    assert data["d"] == {"<<": 1}, "in quotes it is a key like any other"
    document = read_text("a: &a {x: 1}\n\nb:\n  <<: *a\n  y: 1\n")
    assert [document.line(("b", key)) for key in "xy"] == [1, 5]


def test_json_is_read_with_its_lines_when_somebody_asks() -> None:
    document = read_text('{\n  "models": [\n    "a",\n    "b"\n  ],\n  "search": {}\n}\n', "run.json")
    assert [document.line(place) for place in [(), ("models", 1), ("search", "x")]] == [1, 4, 6]
    assert str(document.located(SpecError("no", ("search", "seed")))) == "run.json:6: search.seed: no"
    with pytest.raises(SpecError, match=r"x:3: a: key given twice \(first in line 2\)"):
        read_text('{\n"a": 1,\n"a": 2}', "x")
    large = '{"tasks": [' + ",".join('{"prompt": "%s"}' % ("x" * 100) for _ in range(30_000)) + "]}"
    assert len(read_text(large).data["tasks"]) == 30_000, "JSON may be larger than YAML: a spec with its items"


@pytest.mark.parametrize("what", TEXTS)
def test_whatever_comes_is_read_or_refused_in_no_time(what: str) -> None:
    began = time.process_time()
    with contextlib.suppress(SpecError):
        read_text(TEXTS[what], "text")
    assert time.process_time() - began < 2.0


@pytest.mark.parametrize("what", TEXTS)
def test_no_reader_takes_it_and_each_says_so_in_its_own_words(what: str) -> None:
    def read_spec(text: str) -> RunSpec:
        return RunSpec.from_dict(read_text(text).data)

    for error, read in ((RecipeError, read_recipe_text), (SpecError, read_spec)):
        with pytest.raises(error) as caught:
            read(TEXTS[what])
        assert len(str(caught.value)) < 3000


def test_no_name_of_a_model_has_a_nul_in_it() -> None:
    with pytest.raises(SpecError, match=r"models\[0\]: .* names no model"):
        RunSpec.from_dict({"models": ["a\0b", "c"]})
    with pytest.raises(SpecError, match="base: has a NUL character"):
        RunSpec.from_dict({"models": ["a", "c"], "base": "b\0"})


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo.yaml"
    os.mkfifo(fifo)
    (tmp_path / "suite.yaml").write_text("tasks: [{name: a, kind: perplexity, data: fifo.yaml}]")
    for path in (fifo, Path("/dev/zero")):
        with pytest.raises(SpecError, match="cannot be read: it is no regular file"):
            read_file(path)
        with pytest.raises(RecipeError, match="no regular file"):
            read_recipe_file(path)
        with pytest.raises(SuiteError, match="no regular file"):
            load_suite(path)
    with pytest.raises(SuiteError, match="no regular file"):
        load_suite(tmp_path / "suite.yaml")


def test_a_text_of_one_line_is_never_opened_as_a_file(tmp_path: Path) -> None:
    secret = tmp_path / "recipe.yml"
    secret.write_text("password: hunter2")
    with pytest.raises(RecipeError) as caught:
        read_recipe_text(str(secret))
    assert "hunter2" not in str(caught.value)


def test_no_service_reaches_the_reader_of_files() -> None:
    found = {
        f"{path.name}: {name}"
        for path in SERVICES.rglob("src/**/*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        for name in (
            [alias.name for alias in node.names] if isinstance(node, ast.ImportFrom)
            else [node.attr] if isinstance(node, ast.Attribute) else []
        )
        if name in {"read_file", "read_recipe_file", "read_mixture", "load_suite"}
    }  # fmt: skip
    assert not found
