"""A merge is of the models as transformers loads them, whatever their folders hold and say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file

from evomerge_common.domain.recipe import Recipe
from evomerge_common.domain.reference import ModelReference
from evomerge_common.errors import ModelError, QuantisedModel, RecipeError, ShapeMismatch
from evomerge_merging import merge_recipe, read_recipe_text
from evomerge_merging.engine.stored import TIED_BY_DEFAULT
from evomerge_models.describe import describe_model
from helpers.tiny_merging import load_model, make_model, rewrite, set_config, weights
from helpers.tiny_tokenizers import make_tokenizer

Tensors = dict[str, torch.Tensor]


def mean(folders: Sequence[Path], out: Path) -> tuple[str, ...]:
    """Merges folders by equal weights, and gives the plan's notes."""
    recipe = Recipe.of_models("linear", [(ModelReference(str(one)), {"weight": 0.5}) for one in folders])
    return merge_recipe(recipe, {}, out).notes


def loaded(folder: Path) -> Tensors:
    state: Tensors = load_model(folder).state_dict()
    return state


def assert_mean(out: Path, one: Tensors, other: Tensors) -> None:
    found = loaded(out)
    assert found
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, (one[name] + other[name]) / 2, atol=1e-6, rtol=0, msg=name)


def in_both_orders(one: Path, other: Path, tmp_path: Path) -> list[tuple[Path, tuple[str, ...]]]:
    pairs = ((one, other), (other, one))
    return [(tmp_path / f"out{i}", mean(pair, tmp_path / f"out{i}")) for i, pair in enumerate(pairs)]


# ---- which file counts ----


def with_stale_index(folder: Path, *, shards: bool) -> Path:
    """A folder saved in shards, and again as one file."""
    old = make_model(folder.parent / f"{folder.name}-old", seed=9)
    make_model(folder, seed=1)
    half = sorted(weights(old))[::2]
    files = {
        "model-00001-of-00002.safetensors": {k: v for k, v in weights(old).items() if k in half},
        "model-00002-of-00002.safetensors": {k: v for k, v in weights(old).items() if k not in half},
    }
    index = {"weight_map": {name: file for file, tensors in files.items() for name in tensors}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    if shards:
        for file, tensors in files.items():
            save_file(tensors, folder / file, {"format": "pt"})
    return folder


@pytest.mark.parametrize("shards", [True, False])
def test_one_file_counts_more_than_an_index_beside_it(tmp_path: Path, shards: bool) -> None:
    one, other = with_stale_index(tmp_path / "one", shards=shards), make_model(tmp_path / "other", seed=2)
    (one / "tokenizer.json").write_text("{}")
    assert describe_model(one).files == ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json")
    (one / "tokenizer.json").unlink()
    for out, _ in in_both_orders(one, other, tmp_path):
        assert_mean(out, loaded(one), loaded(other))


@pytest.mark.parametrize("zip_archive", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bin_files_of_both_formats_are_read(tmp_path: Path, zip_archive: bool, dtype: torch.dtype) -> None:
    one, other = make_model(tmp_path / "one", seed=1, dtype=dtype), make_model(tmp_path / "other", seed=2, dtype=dtype)
    expected = loaded(one)
    torch.save(weights(one), one / "pytorch_model.bin", _use_new_zipfile_serialization=zip_archive)
    (one / "model.safetensors").unlink()
    mean([one], tmp_path / "copy")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded(tmp_path / "copy").items())
    mean([one, other], tmp_path / "out")


# ---- words about a quantisation ----

LEFT_OVER: list[dict[str, Any]] = [
    {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    {"quant_method": "gptq", "bits": 4, "group_size": 128},
    {"quant_method": "fp8", "weight_block_size": [128, 128]},
]


@pytest.mark.parametrize("words", LEFT_OVER, ids=lambda words: str(words["quant_method"]))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_plain_tensors_count_more_than_a_quantisation_left_in_the_config(
    tmp_path: Path, words: dict[str, Any], dtype: torch.dtype
) -> None:
    one, other = make_model(tmp_path / "one", seed=1, dtype=dtype), make_model(tmp_path / "other", seed=2, dtype=dtype)
    expected = weights(one)
    set_config(one, quantization_config=words)
    mean([one], tmp_path / "copy")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(tmp_path / "copy").items())
    for out, notes in in_both_orders(one, other, tmp_path):
        assert "quantization_config" not in json.loads((out / "config.json").read_text())
        assert any("quantization_config is left out" in note for note in notes)
        load_model(out)


@pytest.mark.parametrize(
    "codes",
    [
        lambda t: {"q_proj.weight": torch.zeros(8, 1, dtype=torch.uint8)},
        lambda t: {"q_proj.weight": torch.zeros(8, 8, dtype=torch.int8)},
        lambda t: {"q_proj.qweight": torch.zeros(8, 8, dtype=torch.int32)},
    ],
)
def test_codes_under_such_a_config_are_refused(tmp_path: Path, codes: Callable[[Any], Tensors]) -> None:
    one = make_model(tmp_path / "one")
    rewrite(one, codes(None))
    set_config(one, quantization_config=LEFT_OVER[0])
    with pytest.raises(QuantisedModel, match="its tensors are codes"):
        mean([one], tmp_path / "out")


# ---- names ----


def renamed(folder: Path, out: Path, change: Callable[[str], str | None]) -> Path:
    """A copy of a folder, its tensors under other names (None: left out)."""
    tensors = {new: tensor for name, tensor in weights(folder).items() if (new := change(name)) is not None}
    out.mkdir()
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    (out / "config.json").write_text((folder / "config.json").read_text())
    return out


def in_class_of(folder: Path, other: Path) -> Tensors:
    """A folder's tensors as transformers loads them into another folder's class."""
    name = json.loads((other / "config.json").read_text())["architectures"][0]
    state: Tensors = getattr(transformers, name).from_pretrained(folder).state_dict()
    return state


def old_spelling(name: str) -> str:
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


RENAMINGS: dict[str, tuple[str, Callable[[str], str | None]]] = {
    "bert gamma and beta": ("bert", old_spelling),
    "bert of one class, gamma and beta": ("bert_pooled", old_spelling),
    "bert with prefix": ("bert_pooled", lambda name: f"bert.{name}"),
    "llama without prefix": ("llama", lambda name: name.removeprefix("model.")),
    "qwen3 without prefix": ("qwen3", lambda name: name.removeprefix("model.")),
    "gpt2 without prefix": ("gpt2", lambda name: name.removeprefix("transformer.")),
}


@pytest.mark.parametrize("kind", RENAMINGS)
def test_a_renaming_is_the_one_of_transformers(tmp_path: Path, kind: str) -> None:
    family, change = RENAMINGS[kind]
    plain, other = make_model(tmp_path / "plain", family, seed=1), make_model(tmp_path / "other", family, seed=2)
    odd = renamed(other, tmp_path / "odd", change)
    for out, notes in in_both_orders(plain, odd, tmp_path):
        assert_mean(out, loaded(plain), loaded(other))
        assert any(note.startswith("names: ") for note in notes)
        assert not any("orthogonal" in note or "role" in note for note in notes)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
@pytest.mark.parametrize("family", ["llama", "bert"])
def test_what_a_trainer_wraps_around_names_is_taken_away(tmp_path: Path, prefix: str, family: str) -> None:
    plain, other = make_model(tmp_path / "plain", family, seed=1), make_model(tmp_path / "other", family, seed=2)
    odd = renamed(other, tmp_path / "odd", lambda name: prefix + name)
    for out, notes in in_both_orders(plain, odd, tmp_path):
        assert_mean(out, loaded(plain), loaded(other))
        assert any("is taken away" in note for note in notes)
    mean([odd], tmp_path / "copy")
    load_model(tmp_path / "copy")


def test_two_names_of_one_tensor_are_refused(tmp_path: Path) -> None:
    plain, odd = make_model(tmp_path / "plain", "bert", seed=1), make_model(tmp_path / "odd", "bert", seed=2)
    name = "bert.embeddings.LayerNorm.weight"
    rewrite(odd, {old_spelling(name): weights(odd)[name] + 1})
    with pytest.raises(ModelError, match=r"holds bert\.embeddings\.LayerNorm\.weight twice"):
        mean([plain, odd], tmp_path / "out")


def vision_model(folder: Path, seed: int) -> Path:
    """A LLaVA with a CLIP tower as deep as its Llama."""
    sizes: dict[str, Any] = {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    }  # fmt: skip
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**sizes, image_size=8, patch_size=4, projection_dim=16),
        text_config=transformers.LlamaConfig(**sizes, vocab_size=40, max_position_embeddings=64),
        image_token_index=39,
    )
    torch.manual_seed(seed)
    model = transformers.LlavaForConditionalGeneration(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    model.save_pretrained(folder)
    return folder


def test_both_layouts_of_a_vision_language_model_are_one(tmp_path: Path) -> None:
    plain, other = vision_model(tmp_path / "plain", 1), vision_model(tmp_path / "other", 2)
    odd = renamed(other, tmp_path / "odd", lambda name: name)
    state = {name: tensor.clone() for name, tensor in loaded(other).items()}
    assert state.keys() != weights(plain).keys()  # a module's own names, and those that save_pretrained writes
    save_file(state, odd / "model.safetensors", {"format": "pt"})
    for out, notes in in_both_orders(plain, odd, tmp_path):
        assert_mean(out, loaded(plain), loaded(other))
        assert any(note.startswith("names: ") for note in notes)


# ---- heads ----


def body(folder: Path, out: Path, *, name: str, prefix: str, **fields: Any) -> Path:
    """A model's body without its head, as an embedding model is saved."""
    renamed(folder, out, lambda name: name.removeprefix(prefix) if "lm_head" not in name else None)
    set_config(out, architectures=[name], **fields)
    return out


@pytest.mark.parametrize(
    ("family", "name", "fields"),
    [
        ("mistral", "MistralModel", {}),
        ("llama", "LlamaModel", {}),
        ("qwen2", "Qwen2Model", {"tie_word_embeddings": True}),
    ],
)
def test_a_model_without_a_head_has_no_part_in_one(
    tmp_path: Path, family: str, name: str, fields: dict[str, Any]
) -> None:
    causal, other = make_model(tmp_path / "lm", family, seed=1), make_model(tmp_path / "other", family, seed=2)
    headless = body(other, tmp_path / "body", name=name, prefix="model.", **fields)
    (first, notes), (second, others) = in_both_orders(causal, headless, tmp_path)
    head = loaded(causal)["lm_head.weight"]
    assert torch.equal(loaded(first)["lm_head.weight"], head)
    assert_mean(first, loaded(causal), {**loaded(other), "lm_head.weight": head})
    assert_mean(second, in_class_of(causal, headless), loaded(headless))
    assert any("lm_head.weight is missing" in note for note in notes)
    assert any("lm_head.weight of" in note and "is left out" in note for note in others)


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_stored_head_counts_more_than_the_flag(tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    tied = make_model(tmp_path / "tied", family, seed=1, dtype=dtype, tie_word_embeddings=True)
    own = make_model(tmp_path / "own", family, seed=2, dtype=dtype)
    set_config(own, tie_word_embeddings=True)
    state = loaded(own)
    assert not torch.equal(state["lm_head.weight"], state["model.embed_tokens.weight"])
    notes = mean([own], tmp_path / "copy")
    assert any("the head is kept" in note for note in notes)
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded(tmp_path / "copy").items())
    for out, _ in in_both_orders(tied, own, tmp_path):
        expected = ((loaded(tied)["lm_head.weight"].float() + state["lm_head.weight"].float()) / 2).to(dtype)
        torch.testing.assert_close(loaded(out)["lm_head.weight"], expected, atol=1e-6, rtol=0.01)
        assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False


def test_a_head_that_is_the_embedding_once_more_stays_tied(tmp_path: Path) -> None:
    tied = make_model(tmp_path / "tied", seed=1, tie_word_embeddings=True)
    rewrite(tied, {"lm_head.weight": weights(tied)["model.embed_tokens.weight"].clone()})
    mean([tied], tmp_path / "out")
    assert "lm_head.weight" not in weights(tmp_path / "out")
    load_model(tmp_path / "out")


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3"])
@pytest.mark.parametrize("flag", [False, None])
def test_a_head_that_is_neither_stored_nor_tied_is_refused(tmp_path: Path, family: str, flag: bool | None) -> None:
    one, other = make_model(tmp_path / "one", family, seed=1), make_model(tmp_path / "other", family, seed=2)
    for folder in (one, other):
        rewrite(folder, {"lm_head.weight": None})
        data = json.loads((folder / "config.json").read_text())
        data.pop("tie_word_embeddings", None)
        data |= {} if flag is None else {"tie_word_embeddings": flag}
        (folder / "config.json").write_text(json.dumps(data))
    with pytest.raises(ShapeMismatch, match=r"has no lm_head\.weight, and its config does not tie it"):
        mean([one, other], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_model_types_that_tie_by_default_are_those_of_transformers() -> None:
    for kind in TIED_BY_DEFAULT:
        assert transformers.CONFIG_MAPPING[kind]().tie_word_embeddings, kind


# ---- blocks beyond the layers ----


def with_predictor(folder: Path, seed: int, *, family: str) -> Path:
    """A model with one more block than layers, as one that predicts several tokens is stored."""
    make_model(folder, family, seed=seed, layers=2)
    block = {name: t.clone() for name, t in weights(make_model(folder.parent / f"{folder.name}-3", family, seed=seed,
             layers=3)).items() if name.startswith("model.layers.2.")}  # fmt: skip
    block["model.layers.2.eh_proj.weight"] = torch.full((16, 32), float(seed))
    block["model.layers.2.embed_tokens.weight"] = torch.full((40, 16), float(seed))
    rewrite(folder, block)
    set_config(folder, num_nextn_predict_layers=1)
    return folder


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_layers_are_counted_without_the_blocks_beyond_them(tmp_path: Path, family: str) -> None:
    one = with_predictor(tmp_path / "one", 1, family=family)
    other = with_predictor(tmp_path / "other", 2, family=family)
    plain = make_model(tmp_path / "plain", family, seed=3, layers=2)
    mean([one, other], tmp_path / "both")
    assert (weights(tmp_path / "both")["model.layers.2.eh_proj.weight"] == 1.5).all()
    (first, notes), (second, others) = in_both_orders(one, plain, tmp_path)
    assert any("block 2" in note and "is missing in" in note for note in notes)
    assert any("block 2" in note and "is left out" in note for note in others)
    assert (weights(first)["model.layers.2.embed_tokens.weight"] == 1).all()
    assert not any(".2." in name for name in weights(second))
    name = "model.layers.1.mlp.up_proj.weight"
    for out in (first, second):
        torch.testing.assert_close(weights(out)[name], (weights(one)[name] + weights(plain)[name]) / 2)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_gradient_ends_with_the_last_layer(tmp_path: Path, family: str) -> None:
    one = with_predictor(tmp_path / "one", 1, family=family)
    plain = make_model(tmp_path / "plain", family, seed=3, layers=2)
    models = "\n".join(
        f"- {{model: {folder}, parameters: {{weight: {gradient}}}}}"
        for folder, gradient in ((one, [1, 0]), (plain, [0, 1]))
    )
    merge_recipe(read_recipe_text(f"merge_method: linear\nmodels:\n{models}\n"), {}, tmp_path / "out")
    found = weights(tmp_path / "out")
    for layer, folder in ((0, one), (1, plain)):
        name = f"model.layers.{layer}.mlp.up_proj.weight"
        assert torch.equal(found[name], weights(folder)[name])


def test_a_slice_leaves_the_blocks_beyond_the_layers_out(tmp_path: Path) -> None:
    one = with_predictor(tmp_path / "one", 1, family="llama")
    slices = "".join(f"- sources: [{{model: {one}, layer_range: [{start}, {start + 1}]}}]\n" for start in (0, 1, 1))
    report = merge_recipe(read_recipe_text(f"merge_method: passthrough\nslices:\n{slices}"), {}, tmp_path / "out")
    assert any("block 2" in note and "is left out" in note for note in report.notes)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_nextn_predict_layers"] == 0
    load_model(tmp_path / "out")
    name = "mlp.up_proj.weight"
    found = weights(tmp_path / "out")
    assert torch.equal(found[f"model.layers.2.{name}"], weights(one)[f"model.layers.1.{name}"])
    text = f"merge_method: passthrough\nslices:\n- sources: [{{model: {one}, layer_range: [0, 3]}}]\n"
    with pytest.raises(RecipeError, match="has layers 0 to 2"):
        merge_recipe(read_recipe_text(text), {}, tmp_path / "refused")


# ---- files beside the weights ----

PROCESSORS = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_processor_is_the_bases_or_its_absence_is_told(tmp_path: Path, name: str) -> None:
    one, other = make_model(tmp_path / "one", seed=1), make_model(tmp_path / "other", seed=2)
    (one / name).write_text('{"size": 8}')
    (first, _), (second, notes) = in_both_orders(one, other, tmp_path)
    assert (first / name).read_text() == '{"size": 8}'
    assert not (second / name).exists()
    assert any(note.startswith(f"{name} of") and "is left out" in note for note in notes)
    (other / name).write_text('{"size": 9}')
    assert any("differs" in note for note in mean([one, other], tmp_path / "both"))


def sentence_model(folder: Path, seed: int, *modules: str) -> Path:
    make_model(folder, "bert_pooled", seed=seed)
    entries = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    for i, path in enumerate(modules, 1):
        entries.append({"idx": i, "name": str(i), "path": path, "type": "sentence_transformers.models.Any"})
        if path[0].isdigit():
            (folder / path).mkdir()
            (folder / path / "config.json").write_text(json.dumps({"of": seed}))
    (folder / "modules.json").write_text(json.dumps(entries))
    for name in ("sentence_bert_config.json", "config_sentence_transformers.json"):
        (folder / name).write_text("{}")
    return folder


@pytest.mark.parametrize("modules", [("1_Pooling",), ("1_Pooling", "2_Normalize"), ("1_Pooling", "2_Dense")])
def test_modules_of_sentence_transformers_are_kept(tmp_path: Path, modules: tuple[str, ...]) -> None:
    folders = [sentence_model(tmp_path / f"m{i}", i, *modules) for i in (1, 2)]
    if "2_Dense" in modules:
        save_file({"linear.weight": torch.ones(4, 4)}, folders[0] / "2_Dense" / "model.safetensors")
    notes = mean(folders, tmp_path / "out")
    for name in ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"):
        assert (tmp_path / "out" / name).read_text() == (folders[0] / name).read_text()
    for path in modules:
        assert json.loads((tmp_path / "out" / path / "config.json").read_text()) == {"of": 1}
    assert any("2_Dense" in note and "not merged" in note for note in notes) == ("2_Dense" in modules)
    load_model(tmp_path / "out")


@pytest.mark.parametrize("path", ["../secret", "gone"])
def test_modules_elsewhere_are_not_copied(tmp_path: Path, path: str) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "config.json").write_text("{}")
    notes = mean([sentence_model(tmp_path / "m", 1, path)], tmp_path / "out")
    assert any("modules.json is left out" in note for note in notes)
    assert not (tmp_path / "out" / "modules.json").exists()


def test_a_module_that_keeps_no_file_stays_and_one_without_weights_is_told(tmp_path: Path) -> None:
    folder = sentence_model(tmp_path / "m", 1, "1_Pooling", "2_Normalize")
    shutil.rmtree(folder / "2_Normalize")  # as a hub has it: git keeps no empty folder
    modules = json.loads((folder / "modules.json").read_text())
    modules[2]["type"] = "sentence_transformers.models.Normalize"
    (folder / "modules.json").write_text(json.dumps(modules))
    mean([folder], tmp_path / "out")
    assert (tmp_path / "out" / "modules.json").is_file()
    assert (tmp_path / "out" / "2_Normalize").is_dir()
    modules[1]["type"] = "sentence_transformers.models.Dense"
    (folder / "modules.json").write_text(json.dumps(modules))
    assert any("no weights in safetensors" in note for note in mean([folder], tmp_path / "other"))


def test_a_source_without_a_tokenizer_takes_the_bases(tmp_path: Path) -> None:
    rows = make_tokenizer(tmp_path / "one")
    one = make_model(tmp_path / "one", seed=1, vocab_size=rows)
    checkpoint = make_model(tmp_path / "checkpoint", seed=2, vocab_size=rows)
    for out, notes in in_both_orders(one, checkpoint, tmp_path):
        assert (out / "tokenizer.json").read_bytes() == (one / "tokenizer.json").read_bytes()
        assert any("has no tokenizer" in note for note in notes)
