"""Statistics of real (tiny) models, from texts to merge."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from evomerge_common.domain.recipe import Recipe
from evomerge_common.domain.reference import ModelReference
from evomerge_merging import merge_recipe
from evomerge_merging.methods.calibration import fisher_statistics, regmean_statistics
from helpers.tiny_merging import VOCAB, load_model, make_model


def texts(seed: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    tokens = [torch.randint(0, VOCAB, (1, 12), generator=generator) for _ in range(4)]
    return [{"input_ids": one, "labels": one} for one in tokens]


@pytest.mark.parametrize("measure", [fisher_statistics, regmean_statistics])
def test_from_texts_to_a_merged_model(tmp_path: Path, measure: Callable[..., dict[str, torch.Tensor]]) -> None:
    base = make_model(tmp_path / "base", layers=2)
    pairs = []
    for seed in (1, 2):
        folder = make_model(tmp_path / f"m{seed}", seed=seed, layers=2, near=base)
        model = load_model(folder)
        told = measure(model, texts(seed))
        if measure is fisher_statistics:
            assert told.keys() == dict(model.named_parameters()).keys()
            assert all((value >= 0).all() for value in told.values())
        else:
            assert told["model.layers.1.mlp.down_proj.weight"].shape == (24, 24)
            assert all(torch.allclose(value, value.T) for value in told.values())
        save_file(told, tmp_path / f"m{seed}.safetensors")
        pairs.append((ModelReference(str(folder)), {"statistics": str(tmp_path / f"m{seed}.safetensors")}))
    method = measure.__name__.removesuffix("_statistics")
    merge_recipe(Recipe.of_models(method, pairs), {}, tmp_path / "out")
    merge_recipe(Recipe.of_models("linear", [(m, {"weight": 0.5}) for m, _ in pairs]), {}, tmp_path / "plain")
    merged, plain = load_model(tmp_path / "out"), load_model(tmp_path / "plain")
    assert torch.isfinite(merged(**texts(3)[0]).loss)
    assert not torch.equal(merged.model.layers[1].mlp.up_proj.weight, plain.model.layers[1].mlp.up_proj.weight)
    with pytest.raises(ValueError, match="no calibration texts"):
        measure(merged, [])
    assert not merged.model.layers[0].mlp.up_proj._forward_pre_hooks


def test_regmean_is_nearer_to_both_models_outputs_than_the_average(tmp_path: Path) -> None:
    """On the first layer's inputs, which are alike in the merge and its sources but for the embedding."""
    base = make_model(tmp_path / "base", layers=1)
    folders = [make_model(tmp_path / f"m{seed}", seed=seed, layers=1, near=base) for seed in (1, 2)]
    name = "model.layers.0.self_attn.q_proj.weight"
    pairs, inner, weight = [], [], []
    for folder in folders:
        model = load_model(folder)
        told = regmean_statistics(model, texts(0 if folder is folders[0] else 9))
        save_file(told, tmp_path / f"{folder.name}.safetensors")
        pairs.append((ModelReference(str(folder)), {"statistics": str(tmp_path / f"{folder.name}.safetensors")}))
        inner.append(told[name].double())
        weight.append(dict(model.named_parameters())[name].detach().double())

    def error(of: torch.Tensor) -> float:
        return sum(float(torch.trace((of - w) @ g @ (of - w).T)) for w, g in zip(weight, inner, strict=True))

    merge_recipe(Recipe.of_models("regmean", pairs, parameters={"alpha": 1.0}), {}, tmp_path / "out")
    result = dict(load_model(tmp_path / "out").named_parameters())[name].detach().double()
    assert error(result) < 0.999 * error(sum(weight) / 2)
