"""Adapters made from models: PEFT loads them, and says how near they come."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file

from evomerge_common.domain.recipe import Recipe
from evomerge_common.domain.reference import ModelReference
from evomerge_common.errors import InvalidInput, ModelError, ShapeMismatch
from evomerge_merging import export_adapter, extract_lora, merge_in_memory, plan_merge
from evomerge_merging.lora.low_rank import decompose, reduce
from helpers.tiny_merging import make_model, rewrite, set_config, weights
from unit.merging.test_lora_sources import load, make_adapter, on

transformers.utils.logging.set_verbosity_error()
UNTIED: dict[str, Any] = {"tie_word_embeddings": False}


def tuned(base: Path, folder: Path, kind: str, *, rank: int = 4, embeddings: bool = False, **options: Any) -> Path:
    """The base with an update of a rank in every linear layer, and other norms and biases."""
    make_model(folder, kind, **options)
    generator = torch.Generator().manual_seed(1)
    changed: dict[str, torch.Tensor | None] = {}
    for name, tensor in weights(base).items():
        vocabulary = any(part in name for part in ("embed", "wte", "wpe", "lm_head"))
        if vocabulary and not embeddings:
            changed[name] = tensor
        elif tensor.dim() == 2 and not vocabulary:
            left = torch.randn(tensor.shape[0], rank, generator=generator)
            changed[name] = tensor + 0.02 * left @ torch.randn(rank, tensor.shape[1], generator=generator)
        else:
            changed[name] = tensor + 0.02 * torch.randn(tensor.shape, generator=generator)
    rewrite(folder, changed)
    return folder


def by_peft(base: Path, adapter: Path, kind: str = "llama") -> dict[str, torch.Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message=".*(missing|unexpected) .*keys")
        model = PeftModel.from_pretrained(load(base, kind), adapter)
        result: dict[str, torch.Tensor] = model.merge_and_unload().state_dict()
    return result


@pytest.mark.parametrize(
    ("kind", "options", "embeddings"),
    [
        ("llama", UNTIED, False), ("llama", UNTIED, True), ("qwen2", {}, False), ("gpt2", {}, False),
        ("bert", {}, False), ("llama", {"tie_word_embeddings": True}, True),
    ],
)  # fmt: skip
def test_base_and_adapter_are_the_finetuned_model(
    tmp_path: Path, kind: str, options: dict[str, Any], embeddings: bool
) -> None:
    base = make_model(tmp_path / "base", kind, **options)
    model = tuned(base, tmp_path / "model", kind, embeddings=embeddings, **options)
    report = extract_lora(ModelReference(str(model)), ModelReference(str(base)), tmp_path / "out", rank=4)
    assert report.relative_error < 1e-5
    expected, found = weights(model), by_peft(base, tmp_path / "out", kind)
    with plan_merge(Recipe.of_source(on(base, tmp_path / "out"))) as plan:
        ours = merge_in_memory(plan)
    assert ours.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.allclose(found[name], tensor, atol=1e-6), name
        assert torch.allclose(ours[name], tensor, atol=1e-6), name
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (4, 4, str(base))
    assert report.bytes < (model / "model.safetensors").stat().st_size


def test_errors_are_those_of_the_adapter(tmp_path: Path) -> None:
    base = make_model(tmp_path / "base", **UNTIED)
    model = tuned(base, tmp_path / "model", "llama", rank=12, **UNTIED)
    report = extract_lora(ModelReference(str(model)), ModelReference(str(base)), tmp_path / "out", rank=5)
    found, expected, before = by_peft(base, tmp_path / "out"), weights(model), weights(base)
    lost = changed = 0.0
    for one in report.modules:
        delta = (expected[one.tensor] - before[one.tensor]).double()
        missing = (expected[one.tensor] - found[one.tensor]).double()
        lost, changed = lost + float(missing.square().sum()), changed + float(delta.square().sum())
        assert one.relative_error == pytest.approx(float(missing.norm() / delta.norm()), abs=1e-5)
        if one.rank:
            s = torch.linalg.svdvals(delta)
            assert one.relative_error == pytest.approx(float(s[5:].norm() / s.norm()), abs=1e-5)
    assert report.relative_error == pytest.approx((lost / changed) ** 0.5, abs=1e-5)
    assert 0.2 < report.relative_error < 0.9


def test_ranks_that_differ_are_told_by_pattern(tmp_path: Path) -> None:
    base = make_model(tmp_path / "base", **UNTIED)
    rewrite(base, {})
    change = {"model.layers.0.self_attn.q_proj.weight": torch.outer(torch.arange(16.0), torch.ones(16))}
    model = tuned(base, tmp_path / "model", "llama", rank=3, **UNTIED)
    rewrite(model, {name: weights(base)[name] + 0.01 * delta for name, delta in change.items()})
    extract_lora(ModelReference(str(model)), ModelReference(str(base)), tmp_path / "out", rank=3)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["rank_pattern"] == config["alpha_pattern"] == {"model.layers.0.self_attn.q_proj": 1}
    found = by_peft(base, tmp_path / "out")
    assert all(torch.allclose(found[name], tensor, atol=1e-6) for name, tensor in weights(model).items())


@pytest.mark.parametrize("embeddings", ["save", "lora", "skip"])
def test_embeddings_as_asked(tmp_path: Path, embeddings: str) -> None:
    base = make_model(tmp_path / "base", vocab_size=120, **UNTIED)
    model = tuned(base, tmp_path / "model", "llama", embeddings=True, vocab_size=120, **UNTIED)
    report = extract_lora(
        ModelReference(str(model)), ModelReference(str(base)), tmp_path / "out", rank=4, embeddings=embeddings
    )
    names = set(load_file(tmp_path / "out" / "adapter_model.safetensors"))
    vocabulary = ("model.embed_tokens.weight", "lm_head.weight")
    assert report.skipped == (tuple(sorted(vocabulary)) if embeddings == "skip" else ())
    assert ("base_model.model.model.embed_tokens.lora_embedding_A" in names) == (embeddings == "lora")
    assert ("base_model.model.lm_head.weight" in names) == (embeddings == "save")
    found, expected = by_peft(base, tmp_path / "out"), weights(model)
    for name in vocabulary:
        assert torch.allclose(found[name], expected[name], atol=1e-6) == (embeddings == "save")
    nearer = (found["lm_head.weight"] - expected["lm_head.weight"]).norm() < 0.99 * (
        weights(base)["lm_head.weight"] - expected["lm_head.weight"]
    ).norm()
    assert nearer == (embeddings != "skip")


def test_threads_change_nothing(tmp_path: Path) -> None:
    base = make_model(tmp_path / "base", **UNTIED)
    model = tuned(base, tmp_path / "model", "llama", rank=9, **UNTIED)
    for threads in (1, 3):
        extract_lora(
            ModelReference(str(model)), ModelReference(str(base)), tmp_path / f"{threads}", rank=4, threads=threads
        )
    files = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("1", "3")]
    assert files[0] == files[1]


def test_large_matrices_are_decomposed_nearly_as_well_as_exactly() -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(700, 900, generator=generator) * torch.logspace(0, -2, 900)
    found = decompose(matrix, 24, key="x")
    s = torch.linalg.svdvals(matrix)
    best = float(s[24:].norm() / s.norm())
    assert found.rank == 24
    assert best <= found.relative_error * 1.00001
    assert found.relative_error < best * 1.005
    assert torch.equal(found.left, decompose(matrix, 24, key="x").left)


def test_factors_are_reduced_as_their_product_would_be() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(90, 30, generator=generator), torch.randn(30, 50, generator=generator)
    s = torch.linalg.svdvals(left @ right)
    found = reduce(left, right, 7)
    assert found.relative_error == pytest.approx(float(s[7:].norm() / s.norm()), rel=1e-4)
    whole = reduce(left, right, None)
    assert (whole.rank, whole.relative_error) == (30, 0.0)
    assert reduce(torch.randn(20, 30), torch.randn(30, 50), None).rank == 20


@pytest.mark.parametrize("method", ["task_arithmetic", "linear"])
def test_a_sum_of_adapters_is_an_adapter(tmp_path: Path, method: str) -> None:
    base = make_model(tmp_path / "base", **UNTIED)
    make_adapter(tmp_path / "one", base, seed=1)
    make_adapter(tmp_path / "two", base, seed=2, r=2, target_modules=["q_proj", "up_proj"])
    inputs = [(on(base, tmp_path / name), {"weight": weight}) for name, weight in (("one", 0.8), ("two", 0.5))]
    recipe = Recipe.of_models(method, inputs, base=ModelReference(str(base)))
    with plan_merge(recipe) as plan:
        expected = merge_in_memory(plan)
    report = export_adapter(recipe, tmp_path / "out")
    assert report.relative_error == 0.0
    assert {one.rank for one in report.modules} == {2, 8, 10}
    found = by_peft(base, tmp_path / "out")
    assert all(torch.allclose(found[name], tensor, atol=2e-6) for name, tensor in expected.items())
    small = export_adapter(recipe, tmp_path / "small", rank=4)
    assert {one.rank for one in small.modules} == {2, 4}
    assert 0.1 < small.relative_error < 1.0
    assert small.bytes < report.bytes


def test_what_is_no_sum_of_updates_needs_a_rank(tmp_path: Path) -> None:
    base = make_model(tmp_path / "base", **UNTIED)
    for seed, name in enumerate(("one", "two")):
        make_adapter(tmp_path / name, base, seed=seed)
    inputs = [(on(base, tmp_path / name), {"weight": 1.0, "density": 0.5}) for name in ("one", "two")]
    recipe = Recipe.of_models("ties", inputs, base=ModelReference(str(base)))
    with pytest.raises(ModelError, match="give a rank"):
        export_adapter(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    report = export_adapter(recipe, tmp_path / "out", rank=16)
    assert report.relative_error < 1e-5, "the matrices have 16 rows"


def test_what_cannot_be_an_adapter_is_refused(tmp_path: Path) -> None:
    base = make_model(tmp_path / "base")
    other = make_model(tmp_path / "other", hidden_size=8, num_attention_heads=2, num_key_value_heads=1)
    mistral = make_model(tmp_path / "mistral", "mistral")
    references = {name: ModelReference(str(tmp_path / name)) for name in ("base", "other", "mistral")}
    out = tmp_path / "out"
    with pytest.raises(ShapeMismatch, match="give the base of this model"):
        extract_lora(references["other"], references["base"], out, rank=4)
    with pytest.raises(ModelError, match="of type 'mistral'"):
        extract_lora(references["mistral"], references["base"], out, rank=4)
    with pytest.raises(ModelError, match="nothing for an adapter to hold"):
        extract_lora(references["base"], references["base"], out, rank=4)
    with pytest.raises(InvalidInput, match="rank must be 1 or more"):
        extract_lora(references["mistral"], references["mistral"], out, rank=0)
    with pytest.raises(ModelError, match="not adapters of one base"):
        export_adapter(Recipe.of_source(references["base"]), out)
    assert not out.exists()
    assert base.exists()
    assert other.exists()
    set_config(mistral, model_type="mistral")
