"""The head of a model card: what the Hub's own client reads is what was written; nothing of this machine is in it."""

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from evomerge_common.domain.licences import combine
from evomerge_common.domain.recipe import Recipe
from evomerge_common.domain.reference import ModelReference
from evomerge_common.errors import InvalidInput
from evomerge_models.card import (
    HeldOutScore,
    Metadata,
    completed,
    hub_ids,
    licence_section,
    metadata_of_source,
    parse_metadata,
    pipeline_tag,
    read_metadata,
)

SCORE = HeldOutScore("my suite", "ab12", "arithmetic", 20, "acc", 0.75, "95% interval 0.550 to 0.900")


def test_the_client_reads_what_was_written() -> None:
    head = Metadata(
        ("org/a", "org/b"),
        pipeline_tag="text-generation",
        licence="mit",
        languages=("en",),
        name="n",
        scores=(SCORE,),
    )
    card = ModelCard(f"{head.front_matter()}\n# Title\n")
    data = card.data.to_dict()
    assert card.text.strip() == "# Title"
    assert (data["base_model"], data["base_model_relation"]) == (["org/a", "org/b"], "merge")
    assert (data["license"], data["language"], data["library_name"]) == ("mit", ["en"], "transformers")
    (result,) = card.data.eval_results
    assert (result.task_name, result.metric_type, result.metric_value) == ("arithmetic", "acc", 0.75)
    assert (result.dataset_type, result.dataset_split) == ("my-suite", "holdout")
    assert result.dataset_args == {"suite_digest": "ab12", "items": 20}
    assert result.metric_name == "acc (95% interval 0.550 to 0.900)"


def test_what_is_not_known_is_not_said() -> None:
    data, rest = parse_metadata(Metadata(relation="merge").front_matter() + "text")
    assert data == {"library_name": "transformers", "tags": ["merge", "evomerge"]}
    assert rest == "text"


def test_base_models_are_hub_ids_alone() -> None:
    texts = [
        "/home/me/secret-model",
        "./near",
        "~/tilde",
        "org/m@v1",
        "gpt2",
        "org/base+/home/me/lora",
        "org/b+org/l@r",
    ]
    assert hub_ids(map(ModelReference.parse, texts)) == ("org/m", "gpt2", "org/base", "org/b", "org/l")
    assert [str(ModelReference.parse(text).public) for text in texts] == [
        "secret-model", "near", "tilde", "org/m@v1", "gpt2", "org/base+lora", "org/b+org/l@r",
    ]  # fmt: skip


def test_a_public_recipe_names_no_folder_and_is_the_same() -> None:
    one, two = (ModelReference(f"/home/me/{name}", digest=f"sha256:{name}") for name in "ab")
    inner = Recipe.of_models("linear", [(one, {"weight": 1.0}), (two, {"weight": 1.0})])
    recipe = Recipe.from_dict(
        {**Recipe.of_models("slerp", [(inner, {}), (two, {})], parameters={"t": 0.5}).to_dict(),
         "tokenizer": "/home/me/a", "tokens": {"<x>": {"source": "/home/me/b"}}}
    )  # fmt: skip
    assert "/home" in recipe.to_json()
    assert "/home" not in recipe.public.to_json()
    assert recipe.public.sources()[0].digest == "sha256:a"


@pytest.mark.parametrize(
    ("config", "files", "expected"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, (), "text-generation"),
        ({"architectures": ["GPT2LMHeadModel"]}, (), "text-generation"),
        ({"architectures": ["BertForMaskedLM"]}, (), "fill-mask"),
        ({"architectures": ["Qwen2VLForConditionalGeneration"], "vision_config": {}}, (), "image-text-to-text"),
        ({"architectures": ["T5ForConditionalGeneration"]}, (), ""),
        ({"architectures": ["BertModel"]}, (), "feature-extraction"),
        ({"architectures": ["BertModel"]}, ("modules.json",), "sentence-similarity"),
        ({"architectures": []}, (), ""),
        ({}, (), ""),
    ],
)
def test_the_task_follows_from_the_class(config: dict[str, Any], files: tuple[str, ...], expected: str) -> None:
    assert pipeline_tag(config, files) == expected


def test_languages_and_licence_of_the_sources() -> None:
    cards: dict[str, dict[str, Any]] = {
        "org/a": {"language": "EN", "license": "mit"},
        "org/b": {"language": ["de", "en", "Deutsch", None], "license": "apache-2.0"},
    }
    head = Metadata().drawn_from(cards)
    assert (head.languages, head.licence) == (("en", "de"), "apache-2.0")
    assert Metadata().drawn_from({**cards, "org/c": {}}).licence == "", "one that says nothing may be under anything"
    assert Metadata().drawn_from({}).licence == ""


def test_a_licence_that_the_hub_has_no_word_for_is_named() -> None:
    card = {"license": "other", "license_name": "qwen-research", "license_link": "LICENSE"}
    data = parse_metadata(Metadata().drawn_from({"Qwen/a": card}).front_matter())[0]
    assert (data["license"], data["license_name"]) == ("other", "qwen-research")


@pytest.mark.parametrize("text", ["", "# no head", "---\n: [\n---\n", "---\n- a list\n---\n"])
def test_a_card_without_metadata_is_read_as_having_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(text)
    assert read_metadata(tmp_path) == {}
    assert read_metadata(tmp_path / "none") == {}


@pytest.mark.parametrize("head", [": [", "- a list", "language: {"])
def test_a_card_whose_metadata_cannot_be_read_is_told(head: str) -> None:
    with pytest.raises(InvalidInput, match=r"README.md: its metadata cannot be read"):
        completed(f"---\n{head}\n---\n", Metadata(licence="mit"))


def test_a_licences_text_beside_the_card_counts_too(tmp_path: Path) -> None:
    (tmp_path / "LICENSE").write_text("Apache License\nVersion 2.0, January 2004\n")
    (tmp_path / "README.md").write_text("---\nlanguage: en\n---\n")
    head = Metadata().drawn_from({"a": metadata_of_source(tmp_path)})
    assert (head.licence, head.languages) == ("apache-2.0", ("en",))
    assert metadata_of_source(tmp_path / "none") == {}


def test_the_head_names_the_licence_that_the_sources_leave() -> None:
    def head(*licences: str) -> dict[str, Any]:
        plan = combine({str(number): licence for number, licence in enumerate(licences)})
        return parse_metadata(Metadata().under(plan).front_matter())[0]

    assert head("mit", "llama3.1")["license"] == "llama3.1"
    found = head("mit", "qwen-research")
    assert (found["license"], found["license_name"]) == ("other", "qwen-research")
    assert found["license_link"].startswith("https://")
    assert head("mit", "gpl-3.0", "llama3.1")["license_name"] == "conflicting-licences"
    assert "license" not in head("mit", "")


def test_a_card_says_what_is_owed() -> None:
    text = "\n".join(licence_section(combine({"org/a": "gpl-3.0", "org/b": "gemma", "c": ""})))
    for words in (
        "| org/a | gpl-3.0 |", "| c | unknown |", "**Conflict, accepted by whoever made this model:** GPL-3.0 (org/a)",
        "section 3.2", "licence of c is not told", "no legal advice",
    ):  # fmt: skip
        assert words in text
    assert licence_section(combine({})) == []
