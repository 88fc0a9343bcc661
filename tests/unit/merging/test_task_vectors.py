"""Task vectors and masks as a library."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from evomerge_common.errors import InvalidInput, ShapeMismatch, UnsafeFile
from evomerge_merging import TaskVector, mask_input_with_mask_rate, mask_model_weights, mask_task_vector
from helpers.tiny_merging import random_tensors, raw_model


def test_arithmetic_of_task_vectors(tmp_path: Path) -> None:
    base, one, two = (random_tensors(i, 100) for i in range(3))
    first, second = TaskVector.between(base, one), TaskVector.between(base, two)
    folder = TaskVector.between(raw_model(tmp_path / "b", base), raw_model(tmp_path / "o", one))
    for name in base:
        torch.testing.assert_close(first.apply_to(base)[name], one[name])
        torch.testing.assert_close((first + second)[name], one[name] + two[name] - 2 * base[name])
        torch.testing.assert_close((first - second)[name], one[name] - two[name], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close((-first).apply_to(one)[name], base[name], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close((0.5 * first)[name], (one[name] - base[name]) / 2)
        assert torch.equal(folder[name], first[name])
    assert (first + (-first)).norm() == 0
    first.save(tmp_path / "v.safetensors")
    assert [p.name for p in tmp_path.iterdir() if "partial" in p.name] == []
    again = TaskVector.load(tmp_path / "v.safetensors")
    assert all(torch.equal(again[name], first[name]) for name in first)
    (tmp_path / "v.safetensors").write_bytes(b"nonsense!")
    with pytest.raises(UnsafeFile):
        TaskVector.load(tmp_path / "v.safetensors")


def test_narrow_and_integer_tensors() -> None:
    base = {"w": torch.ones(3, dtype=torch.bfloat16), "ids": torch.arange(3)}
    vector = TaskVector.between(base, {"w": torch.full((3,), 1.5, dtype=torch.bfloat16), "ids": torch.arange(3)})
    assert list(vector) == ["w"]
    assert vector["w"].dtype == torch.float32
    applied = vector.apply_to(base, 2.0)
    assert applied["w"].tolist() == [2.0] * 3
    assert applied["w"].dtype == torch.bfloat16
    assert torch.equal(applied["ids"], base["ids"])
    with pytest.raises(ShapeMismatch, match="'w'"):
        TaskVector.between(base, {"w": torch.ones(4)})
    with pytest.raises(ShapeMismatch, match="no tensor"):
        vector.apply_to({})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_random_masks_drop_a_share_and_keep_the_expectation(dtype: torch.dtype) -> None:
    tensor = torch.full((300, 200), 2.0, dtype=dtype)
    before = torch.random.get_rng_state()
    masked = mask_input_with_mask_rate(tensor, 0.75, True, "random", seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert masked.shape == tensor.shape
    assert masked.dtype == dtype
    assert set(masked.unique().tolist()) == {0.0, 8.0}
    assert (masked == 0).double().mean().item() == pytest.approx(0.75, abs=0.01)
    assert masked.double().mean().item() == pytest.approx(2.0, rel=0.03)
    assert bool((tensor == 2.0).all())
    assert torch.equal(masked, mask_input_with_mask_rate(tensor, 0.75, True, "random", seed=1))
    assert not torch.equal(masked, mask_input_with_mask_rate(tensor, 0.75, True, "random", seed=2))
    assert set(mask_input_with_mask_rate(tensor, 0.75, False, "random").unique().tolist()) == {0.0, 2.0}


def test_magnitude_masks_drop_the_smallest() -> None:
    tensor = torch.tensor([[3.0, -1.0], [0.5, -4.0], [1.0, 2.0]])
    masked = mask_input_with_mask_rate(tensor, 0.5, False, "magnitude")
    assert masked.tolist() == [[3.0, 0.0], [0.0, -4.0], [0.0, 2.0]]
    assert mask_input_with_mask_rate(tensor, 0.5, True, "magnitude")[0, 0] == 6.0
    assert mask_input_with_mask_rate(tensor, 0.34, False, "magnitude").tolist() == [
        [3.0, -1.0],
        [0.0, -4.0],
        [0.0, 2.0],
    ]


@pytest.mark.parametrize("strategy", ["random", "magnitude"])
def test_the_ends_of_the_scale(strategy: str) -> None:
    tensor = torch.randn(50)
    assert torch.equal(mask_input_with_mask_rate(tensor, 0.0, True, strategy), tensor)
    assert bool((mask_input_with_mask_rate(tensor, 1.0, True, strategy) == 0).all())


def test_nonsense_is_refused() -> None:
    with pytest.raises(InvalidInput, match="0 to 1"):
        mask_input_with_mask_rate(torch.ones(2), 1.2, True, "random")
    with pytest.raises(InvalidInput, match="did you mean 'random'"):
        mask_input_with_mask_rate(torch.ones(2), 0.2, True, "randon")
    with pytest.raises(InvalidInput, match="floats"):
        mask_input_with_mask_rate(torch.arange(2), 0.2, True, "random")


def test_masking_a_model_drops_changes_not_weights() -> None:
    base, tuned = random_tensors(0, 5000), random_tensors(1, 5000)
    result = mask_model_weights(tuned, base, 0.5, seed=4)
    name = "layers.0.a.weight"
    change = result[name] - base[name]
    assert (change == 0).double().mean().item() == pytest.approx(0.5, abs=0.03)
    torch.testing.assert_close(change[change != 0], 2 * (tuned[name] - base[name])[change != 0], rtol=1e-4, atol=1e-4)
    masks = [
        vector != 0 for vector in mask_task_vector(TaskVector({"a": torch.ones(99), "b": torch.ones(99)}), 0.5).values()
    ]
    assert not torch.equal(*masks)
