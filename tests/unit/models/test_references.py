"""What a person writes for a model is looked up once; what travels means the same on every machine."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge_cli.arguments import parse
from evomerge_cli.commands import merge
from evomerge_cli.console import Console
from evomerge_cli.spec_source import prepare
from evomerge_common.domain.cross_domain import CrossDomain
from evomerge_common.domain.messages import DownloadJob, Job, Model
from evomerge_common.domain.recipe import Recipe
from evomerge_common.domain.reference import ModelReference
from evomerge_common.domain.spec import RunSpec
from evomerge_common.errors import ModelNotFound, RecipeError, SpecError
from evomerge_downloader.fetch import Fetcher
from evomerge_downloader.handlers import DownloadHandler
from evomerge_merging import plan_merge, read_recipe_file, read_recipe_text
from evomerge_merging.recipes.to_yaml import recipe_to_mergekit
from evomerge_models.hub import Hub
from evomerge_models.pair import read_pair
from evomerge_models.reference import absolute, base_beside, local_path, look_up, resolve_reference
from evomerge_models.store import WritableModelStore
from evomerge_selector.domain.proposer import search_space
from helpers.hub_server import write_adapter, write_model_folder
from helpers.looking import check_models

SUITE: dict[str, Any] = {"tasks": [{"name": "t", "kind": "perplexity", "items": [{"text": str(i)} for i in range(9)]}]}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to stand in, with a model and a base that have plus signs in their names, and an adapter."""
    write_model_folder(tmp_path / "my+model")
    write_model_folder(tmp_path / "a+base", fill=1)
    write_adapter(tmp_path / "lora", base="../a+base")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EVOMERGE_MODEL_STORE", str(tmp_path / "store"))
    return tmp_path


@pytest.fixture
def fetcher(here: Path) -> Fetcher:
    return Fetcher(WritableModelStore(here / "store"), Hub())


# ---- the text that travels ----


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/name", ModelReference("org/name")),
        ("org/name@main", ModelReference("org/name", "main")),
        ("./folder@x", ModelReference("./folder@x")),
        ("base+adapter", ModelReference("base", adapter="adapter")),
        ("org/base@v1+org/lora@v2", ModelReference("org/base", "v1", "org/lora@v2")),
        ("./my+model", ModelReference("./my", adapter="model")),
        (r"./my\+model", ModelReference("./my+model")),
        (r"./my\+model+./lo\+ra", ModelReference("./my+model", adapter="./lo+ra")),
        (r"a\\+b", ModelReference("a\\", adapter="b")),
        (r"a\\\+b", ModelReference(r"a\+b")),
        (r"a\b", ModelReference(r"a\b")),
        (" base + adapter ", ModelReference("base", adapter="adapter")),
        ("base+/x+y", ModelReference("base", adapter="/x+y")),
    ],
)
def test_the_text_of_a_reference(text: str, expected: ModelReference) -> None:
    assert ModelReference.parse(text) == expected
    assert ModelReference.parse(str(expected)) == expected


@pytest.mark.parametrize("text", ["", " ", "+lora", "@main", "base+", "base+ "])
def test_texts_that_name_no_model(text: str) -> None:
    with pytest.raises(RecipeError, match="names no"):
        ModelReference.parse(text)


NAMES = st.text(st.sampled_from("ab+\\/.@~"), min_size=1, max_size=12)


@given(NAMES, NAMES | st.just(""))
def test_every_folder_and_pair_has_a_text_of_its_own(name: str, adapter: str) -> None:
    reference = ModelReference(f"/{name}", adapter=adapter)
    assert ModelReference.parse(str(reference)) == reference


@given(st.text(st.sampled_from("ab\\/.@-_"), min_size=1), st.text(st.sampled_from("ab/.-_"), min_size=1))
def test_what_had_no_plus_sign_in_a_name_is_written_as_before(name: str, adapter: str) -> None:
    assert str(ModelReference(name)) == name
    assert str(ModelReference(f"{name}x", adapter=adapter)) == f"{name}x+{adapter}"


def test_digests_of_recipes_are_what_they_were() -> None:
    sources = [ModelReference("org/a", "main"), ModelReference("./b"), ModelReference("org/base", adapter="./lora")]
    recipe = Recipe.of_models("linear", [(one, {"weight": 0.5}) for one in sources], base=ModelReference("org/base"))
    assert recipe.digest == "33c9b395eb2a5e254dbed8625817c24f7bd620d7707b49dbfe01bbda4f94fba2"
    fitted = replace(recipe, cross_domain=CrossDomain(target=sources[1]), tokenizer="./b")
    assert fitted.digest == "60813e66d249b9ea727a6784e9d76ba33215142752d134c9849a9846685b7733"
    digests = {str(one): f"sha256:{i}" for i, one in enumerate([*sources, ModelReference("org/base")])}
    named = fitted.with_digests(digests)
    assert named.digest == "9bb0544283da37c440e4f40c89e99934972e9a959cc0ffd3196673e37283408c"


def test_a_recipe_comes_back_from_its_json() -> None:
    recipe = Recipe.of_models("linear", [(ModelReference("./a+b"), {}), (ModelReference("./c", adapter="./d+e"), {})])
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert [source.name for source in Recipe.from_json(recipe.to_json()).sources()] == ["./a+b", "./c"]


def test_mergekit_reads_a_plus_sign_in_the_long_form() -> None:
    one = {"weight": 1.0}
    recipe = Recipe.of_models("linear", [(ModelReference("./a+b"), one), (ModelReference("c", "v1", "./d+e"), one)])
    text = recipe_to_mergekit(recipe)
    assert text is not None
    assert "path: ./a+b" in text
    assert [str(source) for source in read_recipe_text(text).sources()] == [r"./a\+b", r"c@v1+./d\+e"]


# ---- what a person typed ----


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("./my+model", ModelReference("./my+model")),
        ("my+model", ModelReference("my+model")),
        (r"./my\+model", ModelReference("./my+model")),
        ("a+base+lora", ModelReference("a+base", adapter="lora")),
        ("a+base + org/lora", ModelReference("a+base", adapter="org/lora")),
        (r"a\+base+lora", ModelReference("a+base", adapter="lora")),
        ("org/base@main+org/lora", ModelReference("org/base", "main", "org/lora")),
        ("org/base+./lo+ra", ModelReference("org/base", adapter="./lo+ra")),
        ("org/base", ModelReference("org/base")),
        ("./none", ModelReference("./none")),
    ],
)
def test_what_is_typed_is_looked_up(here: Path, typed: str, expected: ModelReference) -> None:
    assert resolve_reference(typed) == expected
    assert look_up(ModelReference.parse(str(expected))) == expected, "once more changes nothing"


def test_of_two_bases_the_one_whose_adapter_is_there(here: Path) -> None:
    write_model_folder(here / "a")
    assert resolve_reference("a+base+lora") == ModelReference("a+base", adapter="lora")
    assert resolve_reference("a+none") == ModelReference("a", adapter="none")


def test_places_are_searched_in_order(tmp_path: Path) -> None:
    (tmp_path / "c++").mkdir()
    assert resolve_reference(str(tmp_path / "c++")) == ModelReference(str(tmp_path / "c++"))
    assert resolve_reference("c++ + lora", tmp_path) == ModelReference("c++", adapter="lora")
    assert str(absolute(resolve_reference("c++", tmp_path), tmp_path)) == rf"{tmp_path}/c\+\+"


def test_a_folder_whose_name_could_be_a_revision(here: Path) -> None:
    write_model_folder(here / "model@v1")
    found = resolve_reference("model@v1")
    assert found == ModelReference("./model@v1")
    assert ModelReference.parse(str(found)) == found


def test_local_paths_and_hub_ids(here: Path) -> None:
    assert local_path("my+model") == Path("my+model")
    assert local_path("org/name") is None
    assert local_path("./none", here) == here / "none"
    assert base_beside(here / "lora").name.endswith("a+base")


@pytest.mark.parametrize("named", ["/home/someone/base", "../runs/base", "~/none/base", "a/b/c"])
def test_a_base_that_lies_elsewhere_is_told_with_adapter_path_and_remedy(here: Path, named: str) -> None:
    path = here / "lora" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": named}))
    with pytest.raises(ModelNotFound) as told:
        base_beside(here / "lora")
    remedy = f"write BASE+{here / 'lora'} with the folder or hub id of that base, or set the base"
    assert named in str(told.value)
    assert remedy in str(told.value)
    assert base_beside(here / "lora", needed=False).name == named


# ---- everywhere the same ----


def recipe_file(here: Path, *models: str) -> Path:
    lines = [f"  - model: {model}\n    parameters: {{weight: 1}}\n" for model in models]
    (here / "recipe.yaml").write_text("merge_method: linear\nmodels:\n" + "".join(lines))
    return here / "recipe.yaml"


def test_merge_takes_the_folder_and_the_pair(here: Path) -> None:
    recipe = read_recipe_file(recipe_file(here, "./my+model", "./a+base+./lora")).with_sources(look_up)
    folders = merge.fetch(recipe.sources(), Console())
    whole, pair = (folders[source.key] for source in recipe.sources())
    assert whole == Path("./my+model")
    assert read_pair(pair) == (here / "a+base", here / "lora")
    with plan_merge(recipe, folders) as plan:
        assert plan.parameters == 320
        label = plan.sources[recipe.sources()[0].key].label
        assert "my+model" in plan.public(f"from {label}").replace("\\", "")
        assert plan.public(f"org{label}-2") == f"org{label}-2"  # another name, which only begins as the folder's ends


@pytest.mark.parametrize("command", ["evaluate", "generate", "export"])
def test_commands_of_one_model_take_the_folder(here: Path, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from evomerge_cli.__main__ import main

    seen: list[Path] = []

    def fetch(sources: list[ModelReference], *_: Any) -> dict[str, Path]:
        seen.extend(Path(source.name) for source in sources if not source.adapter)
        raise ModelNotFound("it was asked for")

    monkeypatch.setattr(f"evomerge_cli.commands.{command}.fetch", fetch)
    words = {"evaluate": [], "generate": ["--prompt", "x"], "export": ["out"]}[command]
    assert main([command, "./my+model", *words]) != 0
    assert seen == [Path("./my+model")]


def spec_of(here: Path, *models: str) -> RunSpec:
    (here / "run.yaml").write_text(json.dumps({"suite": SUITE, "models": models}))
    return prepare(parse(["run", str(here / "run.yaml")])).spec


def test_a_run_means_one_model_from_the_spec_to_the_selector(here: Path, fetcher: Fetcher) -> None:
    spec = spec_of(here, "./my+model", "a+base+lora", "a+base")
    folder, pair, base = (rf"{here}/my\+model", rf"{here}/a\+base+{here}/lora", rf"{here}/a\+base")
    assert spec.models == (folder, pair, base)
    check_models(spec.sources, hub=False)
    models = {name: fetcher.fetch(name, typed=False) for name in spec.sources}
    assert [model.reference for model in models.values()] == list(spec.sources)
    assert models[folder].base == ""
    assert models[pair].base == models[base].digest
    space = search_space(spec, models)
    assert [(one.name, one.adapter) for one in space.models] == [
        (f"{here}/my+model", ""), (f"{here}/a+base", f"{here}/lora"), (f"{here}/a+base", "")
    ]  # fmt: skip


def test_adapters_alone_over_a_base_with_a_plus_sign(here: Path) -> None:
    write_adapter(here / "lora2", base="../a+base")
    spec = spec_of(here, "lora", "lora2")
    assert spec.models == tuple(rf"{here}/a\+base+{here}/{name}" for name in ("lora", "lora2"))
    assert spec.base == rf"{here}/a\+base"


def test_a_spec_with_no_adapter_after_the_plus_sign(here: Path) -> None:
    with pytest.raises(SpecError, match="names no adapter"):
        spec_of(here, "org/a+", "org/b")


def test_download_of_what_a_person_typed(here: Path, fetcher: Fetcher) -> None:
    model = fetcher.fetch("./my+model")
    assert (model.reference, model.base) == ("./my+model", "")
    assert fetcher.fetch("./a+base+./lora").base == fetcher.fetch("./a+base").digest


async def test_a_job_carries_canonical_text_and_says_how_to_write_it(here: Path, fetcher: Fetcher) -> None:
    async def ready(reference: str) -> Model:
        job = Job(job_id="j", run_id="r", payload=DownloadJob(reference=reference))
        return (await DownloadHandler(fetcher)(job)).model

    assert (await ready(r"./my\+model")).reference == r"./my\+model"
    with pytest.raises(ModelNotFound, match=r"there is no folder \./my;.* is written \./my\\\+model"):
        await ready("./my+model")


def test_a_merger_that_is_sent_such_a_path_says_how_to_write_it(here: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"is written \./my\\\+model"):
        plan_merge(Recipe.of_source(ModelReference.parse("./my+model")))
