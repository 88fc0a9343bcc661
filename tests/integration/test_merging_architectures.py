"""Merges of real (tiny, random) models of several architectures load in transformers and mean what they should."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge_common.domain.recipe import Input, Recipe, Slice
from evomerge_common.domain.reference import ModelReference
from evomerge_common.errors import ModelError, RecipeError
from evomerge_merging import execute, merge_recipe, plan_merge, read_recipe_text
from helpers import tiny_merging as tiny
from helpers.tiny_merging import KINDS, LAYERS, load_model, make_model, rewrite, set_config, weights
from helpers.tiny_models import make, tokenizer

Family = dict[str, dict[str, ModelReference]]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    root = tmp_path_factory.mktemp("family")
    found: Family = {}
    for kind in KINDS:
        base = make_model(root / f"{kind}-base", kind)
        others = {name: make_model(root / f"{kind}-{name}", kind, seed=i, near=base) for i, name in enumerate("ab", 1)}
        found[kind] = {name: ModelReference(str(path)) for name, path in {"base": base, **others}.items()}
    return found


def outputs(folder: Path) -> torch.Tensor:
    model = load_model(folder)
    with torch.no_grad():
        result = model(input_ids=torch.arange(12).reshape(2, 6) % tiny.VOCAB)
    return result.logits if hasattr(result, "logits") else result.last_hidden_state


def stack(method: str, *parts: tuple[Any, ...]) -> Recipe:
    """Of (model, first layer, last + 1, perhaps scale) each."""
    slices = tuple(Slice((Input(p[0], (p[1], p[2]), {"scale": p[3]} if len(p) == 4 else {}),)) for p in parts)
    return Recipe(method, slices)


def mean(*models: Path | ModelReference) -> Recipe:
    references = [model if isinstance(model, ModelReference) else ModelReference(str(model)) for model in models]
    return Recipe.of_models("linear", [(reference, {"weight": 0.5}) for reference in references])


@pytest.mark.parametrize("kind", KINDS)
def test_whole_merges_and_stacks_load_without_a_missing_key(family: Family, kind: str, tmp_path: Path) -> None:
    base, one, two = family[kind].values()
    ties = Recipe.of_models(
        "ties", [(one, {"weight": 0.5}), (two, {"weight": 0.5})], base=base, parameters={"density": 0.5}
    )
    for name, recipe in {
        "ties": ties,
        "deeper": stack("passthrough", (one, 0, 3), (two, 1, 4)),
        "shallower": stack("frankenmerge", (one, 0, 1), (two, 3, 4)),
        "nested": stack("dfs", (ties, 0, 2), (one, 1, 4), (ties, 2, 4)),
    }.items():
        report = merge_recipe(recipe, {}, tmp_path / name)
        assert torch.isfinite(outputs(tmp_path / name)).all()
        assert report.tensors == len(weights(tmp_path / name))
    prefix = next(n.split(".0.")[0] for n in weights(tmp_path / "deeper") if ".0." in n)
    depth = len(
        {n.removeprefix(prefix).split(".")[1] for n in weights(tmp_path / "deeper") if n.startswith(prefix + ".")}
    )
    assert depth == 6
    for name in weights(tmp_path / "shallower"):
        if name.startswith(f"{prefix}.1."):
            origin = name.replace(f"{prefix}.1.", f"{prefix}.3.")
            assert torch.equal(weights(tmp_path / "shallower")[name], weights(Path(two.name))[origin])


@pytest.mark.parametrize("kind", KINDS)
def test_a_stack_of_a_models_own_layers_is_the_model(family: Family, kind: str, tmp_path: Path) -> None:
    one = family[kind]["a"]
    merge_recipe(stack("passthrough", (one, 0, 2), (one, 2, LAYERS)), {}, tmp_path / "out")
    assert torch.equal(outputs(tmp_path / "out"), outputs(Path(one.name)))


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2", "bert"])
def test_the_scale_of_a_hop_scales_the_hidden_state_there(kind: str, tmp_path: Path) -> None:
    one, two = (ModelReference(str(make_model(tmp_path / n, kind, seed=i, spread=0.5))) for i, n in enumerate("ab"))
    scales = {2: 0.5, 3: 3.0}
    path = stack("dfs", (one, 0, 2), (two, 1, 2, 0.5), (one, 2, 3, 3.0))
    merge_recipe(path, {}, tmp_path / "scaled")
    merge_recipe(stack("dfs", (one, 0, 2), (two, 1, 2), (one, 2, 3)), {}, tmp_path / "plain")
    model = load_model(tmp_path / "plain")
    layers = {"gpt2": lambda: model.transformer.h, "bert": lambda: model.bert.encoder.layer}.get(
        kind, lambda: model.model.layers
    )()
    for index, scale in scales.items():
        layers[index].register_forward_pre_hook(lambda _, args, s=scale: (args[0] * s, *args[1:]))
    with torch.no_grad():
        expected = model(input_ids=torch.arange(12).reshape(2, 6) % tiny.VOCAB).logits
    got = outputs(tmp_path / "scaled")
    assert (got - outputs(tmp_path / "plain")).abs().max() > 0.03
    torch.testing.assert_close(got, expected, rtol=2e-3, atol=2e-3)
    with pytest.raises(RecipeError, match="above zero"):
        plan_merge(stack("dfs", (one, 0, 2), (two, 1, 2, 0.0)))


def test_shards_in_and_out_are_the_same_model(family: Family, tmp_path: Path) -> None:
    one, two = family["llama"]["a"], family["llama"]["b"]
    with plan_merge(mean(one, two)) as plan:
        execute(plan, tmp_path / "one")
        report = execute(plan, tmp_path / "many", max_shard_bytes=10_000)
    assert len(report.files) > 2
    assert torch.equal(outputs(tmp_path / "one"), outputs(tmp_path / "many"))
    again = Recipe.of_source(ModelReference(str(tmp_path / "many")))
    merge_recipe(again, {}, tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        tmp_path / "one" / "model.safetensors"
    ).read_bytes()


def test_config_fields_that_follow_the_depth_are_rewritten(tmp_path: Path) -> None:
    kinds = ["full_attention", "sliding_attention"] * 2
    one = make_model(tmp_path / "a", "qwen2", layer_types=kinds, sliding_window=8, use_sliding_window=True)
    merge_recipe(
        stack("passthrough", (ModelReference(str(one)), 1, 4), (ModelReference(str(one)), 3, 4)), {}, tmp_path / "out"
    )
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_hidden_layers"] == 4
    assert config["layer_types"] == [kinds[1], kinds[2], kinds[3], kinds[3]]
    load_model(tmp_path / "out")


def test_tied_and_untied_heads_meet(family: Family, tmp_path: Path) -> None:
    tied = [make_model(tmp_path / f"t{i}", "llama", seed=i, tie_word_embeddings=True) for i in range(2)]
    assert "lm_head.weight" not in weights(tied[0])
    merge_recipe(mean(*tied), {}, tmp_path / "both")
    assert "lm_head.weight" not in weights(tmp_path / "both")
    outputs(tmp_path / "both")
    own = family["llama"]["a"]
    for order in ([tied[0], Path(own.name)], [Path(own.name), tied[0]]):
        out = tmp_path / f"mixed-{order[0].name}"
        report = merge_recipe(mean(*order), {}, out)
        head = (weights(Path(own.name))["lm_head.weight"] + weights(tied[0])["model.embed_tokens.weight"]) / 2
        torch.testing.assert_close(weights(out)["lm_head.weight"], head)
        assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
        assert any("head of its own" in note for note in report.notes)
        torch.testing.assert_close(load_model(out).lm_head.weight, head)
    for bottom, top in ((tied[0], Path(own.name)), (Path(own.name), tied[0])):
        out = tmp_path / f"stack-{bottom.name}"
        parts = [(ModelReference(str(path)), 0, 2) for path in (bottom, top)]
        merge_recipe(stack("passthrough", *parts), {}, out)
        heads = weights(top)
        head = heads.get("lm_head.weight", heads["model.embed_tokens.weight"])
        assert torch.equal(load_model(out).lm_head.weight, head)


def test_a_pooler_that_only_one_has(family: Family, tmp_path: Path) -> None:
    one = make_model(tmp_path / "one", "bert_pooled", seed=5)
    two = make_model(tmp_path / "two", "bert_pooled", seed=6)
    pooler = [name for name in weights(two) if "pooler" in name]
    assert pooler
    rewrite(two, dict.fromkeys(pooler))
    for order in ((one, two), (two, one)):
        report = merge_recipe(mean(*order), {}, tmp_path / f"out-{order[0].name}")
        assert any("pooler" in note for note in report.notes)
    assert torch.equal(weights(tmp_path / "out-one")[pooler[0]], weights(one)[pooler[0]])
    assert pooler[0] not in weights(tmp_path / "out-two")
    load_model(tmp_path / "out-one")


def test_tokenizer_template_and_generation_config_come_along(tmp_path: Path) -> None:
    one = make(tmp_path / "one", seed=1)
    (one / "chat_template.jinja").write_text("{{ messages }}")
    (one / "evil.py").write_text("raise SystemExit")
    (one / "generation_config.json").write_text('{"max_length": 12}')
    two = make(tmp_path / "two", seed=2)
    what = mean(one, two)
    merge_recipe(what, {}, tmp_path / "out")
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"} <= written
    assert "evil.py" not in written
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (one / "tokenizer.json").read_bytes()
    text = f"merge_method: linear\nchat_template: chatml\ntokenizer_source: {two}\nmodels:\n"
    text += "".join(f"- {{model: {path}, parameters: {{weight: 1}}}}\n" for path in (one, two))
    merge_recipe(read_recipe_text(text), {}, tmp_path / "named")
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(tmp_path / "named")
    said = loaded.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True)
    assert said == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    with pytest.raises(RecipeError, match="chat template"):
        plan_merge(read_recipe_text(text.replace("chatml", "chatmi")))


def test_vocabularies_are_never_mixed_in_silence(tmp_path: Path) -> None:
    one = make(tmp_path / "one", seed=1)
    two = make(tmp_path / "two", seed=2)
    data = json.loads((two / "tokenizer.json").read_text())
    vocab: dict[str, Any] = data["model"]["vocab"]
    names = list(vocab)

    def save(count: int) -> None:
        moved = dict(vocab)
        for first, second in zip(names[10 : 10 + count], reversed(names[10 : 10 + count]), strict=True):
            moved[first] = vocab[second]
        (two / "tokenizer.json").write_text(json.dumps({**data, "model": {**data["model"], "vocab": moved}}))

    what = mean(one, two)
    save(2)
    with plan_merge(what) as plan:
        assert any("differ in 2 tokens" in note for note in plan.notes)
    save(200)
    with plan_merge(what) as plan:
        assert any("different vocabularies" in note for note in plan.notes)
    larger = make(tmp_path / "larger", tok=tokenizer(bos=False))
    rewrite(larger, {"model.embed_tokens.weight": torch.ones(400, 32)})
    with pytest.raises(ModelError, match="the embedding has 400 rows"):
        plan_merge(mean(one, larger))


def test_other_architectures_adapters_and_code_are_told(family: Family, tmp_path: Path) -> None:
    llama, bert = family["llama"]["a"], family["bert"]["a"]
    with plan_merge(mean(llama, bert)) as plan:
        assert any("adapted to llama-a (bert and llama" in note for note in plan.notes)
    own = make_model(tmp_path / "own", "llama")
    set_config(own, auto_map={"AutoModel": "evil.Model"}, rope_theta=7.0)
    with plan_merge(mean(own, llama)) as plan:
        assert "auto_map" not in plan.config
        assert any("Python code" in note for note in plan.notes)


def test_the_card_names_models_and_recipe_but_no_folder_of_this_machine(family: Family, tmp_path: Path) -> None:
    one = family["llama"]["a"]
    merge_recipe(mean(one), {}, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith(
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags:\n- merge\n- evomerge\n"
    )
    assert "\n* llama-a" in card, "a folder is no hub id: it is named in the text alone"
    assert str(one) not in card
    assert Recipe.from_json((tmp_path / "out" / "recipe.json").read_text()).method == "linear"
    assert (tmp_path / "out" / "mergekit_config.yml").read_text().startswith("merge_method: linear\n")
    merge_recipe(mean(one), {}, tmp_path / "own", card="# Mine\n")
    assert (tmp_path / "own" / "README.md").read_text() == "# Mine\n"
