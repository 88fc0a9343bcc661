"""A merge is of the models as transformers loads them, whatever their folders hold and say."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from evomerge_common.domain.recipe import ModelReference, Recipe
from evomerge_common.errors import QuantisedModel
from evomerge_merging import merge_recipe
from evomerge_models.describe import describe_model
from helpers.tiny_merging import load_model, make_model, rewrite, set_config, weights

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
