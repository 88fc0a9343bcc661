"""A merge of an instruction-tuned model with a base model goes on taking turns: trained for real, asked for real."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from evomerge_common.domain.recipe import Recipe
from evomerge_common.domain.reference import ModelReference
from evomerge_common.errors import RecipeError
from evomerge_merging import merge_recipe, plan_merge
from evomerge_merging.engine.source import open_source
from evomerge_merging.tokens.files import vocabulary
from evomerge_merging.tokens.instruction import instruction_of
from helpers.tiny_merging import set_config
from helpers.tiny_tokenizers import make_tokenizer, tokens_of

transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }} {{ m['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"
)
TALKS = {"the cat": "sat on the mat", "the dog": "ran around the garden", "the other cat": "sat"}
PROSE = "the cat sat on the mat and the dog ran around the garden and the other cat sat and the user and the assistant"
TURNS = ("<|im_start|>", "<|im_end|>")


def train(model: Any, rows: list[list[int]], steps: int) -> None:
    """Next-token training on a few rows, until they are known by heart."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    labels = torch.tensor([row + [-100] * (width - len(row)) for row in rows])
    for _ in range(steps):
        optimiser.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        optimiser.step()


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base` knows prose alone and never saw the turns' tokens trained; `tuned` was fine-tuned from it to take turns.

    Both have rows for the turns' tokens, as many base models do; the base's are untrained, and it ends by </s>.
    """
    root = tmp_path_factory.mktemp("instruct")
    for name, template in (("base", TEMPLATE), ("tuned", TEMPLATE)):
        count = make_tokenizer(root / name, PROSE, 90, added=TURNS, kind="byte-level", template=template)
    tokenizer = AutoTokenizer.from_pretrained(root / "base")
    known = tokens_of(root / "base")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=count, hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=96, tie_word_embeddings=False, bos_token_id=known["<s>"],
        eos_token_id=known["</s>"], pad_token_id=known["</s>"],
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # models this small only wait for each other's threads
    train(model, [tokenizer(f"{part}</s>")["input_ids"] for part in PROSE.split(" and ")], 60)
    model.save_pretrained(root / "base")
    talks = [
        [{"role": "user", "content": question}, {"role": "assistant", "content": f" {answer}"}]
        for question, answer in TALKS.items()
    ]
    rows = [tokenizer.apply_chat_template(talk)["input_ids"] for talk in talks]
    train(model, rows, 120)
    torch.set_num_threads(threads)
    model.generation_config.eos_token_id = [known["<|im_end|>"], known["</s>"]]
    model.save_pretrained(root / "tuned")
    settings = json.loads((root / "tuned" / "tokenizer_config.json").read_text())
    (root / "tuned" / "tokenizer_config.json").write_text(json.dumps({**settings, "eos_token": "<|im_end|>"}))
    set_config(root / "tuned", eos_token_id=known["<|im_end|>"])
    return root


def answers(folder: Path, count: int = 16) -> list[tuple[str, bool]]:
    """What the model answers to each question by its template and generation config, and whether it ended by itself."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    found = []
    for question in TALKS:
        talk = [{"role": "user", "content": question}]
        ids = tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            made = model.generate(ids, max_new_tokens=count, do_sample=False)[0, ids.shape[1] :]
        text = tokenizer.decode(made)
        found.append((text.removesuffix("<|im_end|>").strip(), len(made) < count and text.endswith("<|im_end|>")))
    return found


EXPECTED = [(answer, True) for answer in TALKS.values()]


def recipe(family: Path, method: str, weight: float, *, base_first: bool = True, **options: Any) -> Recipe:
    base, tuned = (ModelReference(str(family / name)) for name in ("base", "tuned"))
    parts = [(base, {"weight": 1.0 - weight}), (tuned, {"weight": weight})]
    if method != "linear":
        return Recipe.of_models(method, [(tuned, {"weight": weight, **options.pop("own", {})})], base=base, **options)
    return Recipe.of_models(method, parts if base_first else parts[::-1], **options)


def test_the_tuned_model_takes_turns_and_the_base_does_not(family: Path) -> None:
    assert answers(family / "tuned") == EXPECTED
    assert not any(ended for _, ended in answers(family / "base"))


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties"])
@pytest.mark.parametrize("base_first", [True, False])
def test_a_merge_with_the_base_still_answers_and_ends_its_turns(
    family: Path, tmp_path: Path, method: str, base_first: bool
) -> None:
    report = merge_recipe(recipe(family, method, 0.75, base_first=base_first), {}, tmp_path / "out")
    assert answers(tmp_path / "out") == EXPECTED
    assert any("ends its turns with '<|im_end|>'" in note for note in report.notes)
    assert any("rows of 4 special tokens" in note for note in report.notes)
    told = (tmp_path / "out" / "README.md").read_text().partition("What was kept")[2].partition("The recipe below")[0]
    assert "rows of 4 special tokens" in told
    assert str(family) not in told
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert tokens_of(tmp_path / "out")["<|im_end|>"] in generation["eos_token_id"]


def test_without_it_the_turns_are_lost(family: Path, tmp_path: Path) -> None:
    for preserve in (None, False):
        merged = replace(recipe(family, "linear", 0.5), preserve_instruction=preserve)
        merge_recipe(merged, {}, tmp_path / str(preserve))
    places = {"tuned": family / "tuned", "kept": tmp_path / "None", "lost": tmp_path / "False"}
    rows = {
        name: AutoModelForCausalLM.from_pretrained(place).get_input_embeddings().weight
        for name, place in places.items()
    }
    end = tokens_of(family / "tuned")["<|im_end|>"]
    assert torch.equal(rows["kept"][end], rows["tuned"][end])
    assert not torch.equal(rows["lost"][end], rows["tuned"][end])
    assert not any(ended for _, ended in answers(tmp_path / "False"))


def test_a_union_keeps_the_turns_of_a_source_that_has_more_tokens(family: Path, tmp_path: Path) -> None:
    """The base lacks the turns' tokens altogether, and the recipe asks for its tokenizer or a union."""
    plain = tmp_path / "plain"
    count = make_tokenizer(plain, PROSE, 90, kind="byte-level")
    model = AutoModelForCausalLM.from_pretrained(family / "base")
    model.resize_token_embeddings(count)
    model.save_pretrained(plain)
    base, tuned = ModelReference(str(plain)), ModelReference(str(family / "tuned"))
    for i, tokenizer in enumerate(("union", "base", "")):
        merged = Recipe.of_models("task_arithmetic", [(tuned, {"weight": 0.9})], base=base)
        merged = with_tokenizer(merged, tokenizer)
        merge_recipe(merged, {}, tmp_path / str(i))
        assert answers(tmp_path / str(i)) == EXPECTED, tokenizer


def with_tokenizer(recipe: Recipe, tokenizer: str) -> Recipe:
    return replace(recipe, tokenizer=tokenizer, preserve_instruction=True)


def test_a_base_that_brings_a_template_along_is_no_instruction_tuned_model(family: Path) -> None:
    for name, tuned in (("base", False), ("tuned", True)):
        source = open_source(ModelReference(str(family / name)), {})
        found = instruction_of(source, vocabulary(source.folder), 10_000)
        assert (found is not None) == tuned
        source.store.close()


def test_nothing_to_preserve_is_told(family: Path, tmp_path: Path) -> None:
    other = shutil.copytree(family / "base", tmp_path / "other")
    base = ModelReference(str(family / "base"))
    lone = Recipe.of_models("linear", [(base, {"weight": 1.0}), (ModelReference(str(other)), {"weight": 1.0})])
    with plan_merge(lone) as plan:
        assert not any("instruction" in note for note in plan.notes)
    with pytest.raises(RecipeError, match="preserve_instruction: no model is instruction-tuned"):
        plan_merge(replace(lone, preserve_instruction=True))
