"""The registry, the k-th magnitude, the random words: what methods are made of."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from evomerge_common.domain.parameters import value_at
from evomerge_common.domain.recipe import Recipe
from evomerge_common.domain.reference import ModelReference
from evomerge_common.errors import RecipeError
from evomerge_merging import merge_in_memory, plan_merge
from evomerge_merging.methods import Block, PerModel, merge_method, method, methods, registry
from evomerge_merging.numerics import selection
from evomerge_merging.numerics.folds import CELL, Sums
from evomerge_merging.numerics.random_words import keep, mask_key, philox, raw_words, words
from helpers.tiny_merging import random_tensors, raw_model, weights


@pytest.fixture
def scratch_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    methods()
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))


def test_the_first_cut_has_all_its_methods() -> None:
    wanted = "linear slerp task_arithmetic ties dare_linear dare_ties passthrough frankenmerge dfs"
    assert set(wanted.split()) <= set(methods())
    assert all(one.summary for one in methods().values())
    assert method("ties").parameters["lambda"].default == 1.0
    assert method("ties").parameters["normalize"].default is True
    assert method("dare_ties").parameters["rescale"].default is True
    assert method("slerp").parameters["t"].required
    with pytest.raises(RecipeError, match="did you mean 'slerp'"):
        method("serp")


@pytest.mark.usefixtures("scratch_registry")
def test_a_function_becomes_a_method_with_its_signature_as_schema(tmp_path: Path) -> None:
    @merge_method("largest")
    def largest(tensors: Sequence[Tensor], *, bias: PerModel[float] = (0.0,), absolute: bool = False) -> Tensor:
        """The largest value of all."""
        values = torch.stack([tensor + b for tensor, b in zip(tensors, bias, strict=True)])
        return values.abs().amax(0) if absolute else values.amax(0)

    @merge_method("rows", whole=True)
    def rows(tensors: Sequence[Tensor], *, power: int = 1) -> Tensor:
        """Sorts rows by their norm: needs the whole tensor in its shape."""
        order = (tensors[0].norm(dim=-1) ** power).argsort()
        return tensors[0][order] if tensors[0].dim() == 2 else tensors[0]

    one, two = (ModelReference(str(raw_model(tmp_path / n, random_tensors(i, 100)))) for i, n in enumerate("ab"))
    nested = Recipe.of_models("rows", [(Recipe.of_models("largest", [(one, {"bias": 1.0}), (two, {})]), {})])
    with plan_merge(nested) as plan:
        result = merge_in_memory(plan)
    biggest = torch.maximum(weights(tmp_path / "a")["embed.weight"] + 1, weights(tmp_path / "b")["embed.weight"])
    assert torch.equal(result["embed.weight"], biggest[biggest.norm(dim=-1).argsort()])
    assert method("largest").parameters["bias"].per_model
    with pytest.raises(RecipeError, match="whole number"):
        plan_merge(Recipe.of_models("rows", [(one, {})], parameters={"power": 1.5}))


def test_a_signature_that_says_nothing_known_is_refused() -> None:
    with pytest.raises(ValueError, match="takes"):

        @merge_method("bad")
        def bad(models: Sequence[Tensor]) -> Tensor:
            return models[0]

    with pytest.raises(ValueError, match="must be float"):

        @merge_method("worse")
        def worse(tensors: Sequence[Tensor], *, weight: list[float]) -> Tensor:
            return tensors[0]

    with pytest.raises(ValueError, match="two merge methods"):

        @merge_method("linear")
        def linear(tensors: Sequence[Tensor], block: Block) -> Tensor:
            return tensors[0]


def _pieces(size: int, step: int) -> Iterator[tuple[int, int]]:
    yield from ((start, min(start + step, size)) for start in range(0, size, step))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, 3.5, -3.5, 1e-30]), min_size=1, max_size=200),
    st.integers(0, 210), st.integers(1, 64),
)  # fmt: skip
def test_the_cut_keeps_exactly_k_and_the_earlier_of_equals(values: list[float], k: int, step: int) -> None:
    tensor = torch.tensor(values)
    (cut,) = selection.cuts(lambda a, b: [tensor[a:b].abs()], _pieces(len(values), step), len(values), [k])
    result = torch.cat([cut.apply(tensor[a:b], a) for a, b in _pieces(len(values), step)])
    order = sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))[:k]
    expected = torch.zeros(len(values))
    expected[order] = tensor[order]
    assert torch.equal(result, expected)


@pytest.mark.parametrize("kind", ["normal", "ties", "sorted", "constant", "zeros", "misleading", "double"])
def test_large_tensors_are_cut_exactly_even_when_the_sample_misleads(kind: str) -> None:
    size = 600_001
    generator = torch.Generator().manual_seed(0)
    values = {
        "normal": lambda: torch.randn(size, generator=generator),
        "ties": lambda: torch.randn(size, generator=generator).to(torch.bfloat16).float(),
        "sorted": lambda: torch.linspace(-1, 1, size),
        "constant": lambda: torch.full((size,), 0.25),
        "zeros": lambda: torch.zeros(size),
        # Large where the sample looks (the first 1024 of every 32768), small elsewhere.
        "misleading": lambda: torch.randn(size, generator=generator) * (1 + 99 * (torch.arange(size) % 32_768 < 1024)),
        "double": lambda: torch.randn(size, generator=generator, dtype=torch.float64).mul_(1e-200),
    }[kind]()
    counts = [1, 1000, size // 2, size - 1]
    pieces = list(_pieces(size, 1 << 17))
    found = selection.cuts(lambda a, b: [values[a:b].abs()] * len(counts), pieces, size, counts)
    order = values.abs().sort(descending=True, stable=True).indices
    for cut, k in zip(found, counts, strict=True):
        result = torch.cat([cut.apply(values[a:b], a) for a, b in pieces])
        expected = torch.zeros_like(values)
        expected[order[:k]] = values[order[:k]]
        assert torch.equal(result, expected)


def test_a_value_that_many_elements_share_costs_no_pass_over_everything() -> None:
    """Changes between bfloat16 models have few different magnitudes: the sample's interval may be a single one."""
    size = 600_000
    values = torch.randint(1, 20, (size,), generator=torch.Generator().manual_seed(0)).float()
    read: list[int] = []

    def magnitudes(start: int, stop: int) -> list[torch.Tensor]:
        read.append(stop - start)
        return [values[start:stop]]

    selection.cuts(magnitudes, _pieces(size, 1 << 17), size, [size // 2])
    assert sum(read) < 2.1 * size  # the sample, one pass, and part of one for the last of the equals


def test_words_belong_to_elements_and_are_uniform() -> None:
    key = mask_key(1, "source", "tensor")
    whole = words(key, 0, 100_003)
    short = words(key, 0, 100_003, 16)
    for start, stop in ((0, 1), (1, 9), (7, 8), (13, 99_999), (100_002, 100_003)):
        assert torch.equal(words(key, start, stop), whole[start:stop])
        assert torch.equal(words(key, start, stop, 16), short[start:stop])
    assert [keep(short, share).mean() for share in (0.0, 0.25, 1.0)] == pytest.approx([0.0, 0.25, 1.0], abs=0.006)
    assert not torch.equal(words(mask_key(1, "source", "other"), 0, 100), whole[:100])
    counts = np.histogram(whole.numpy(), bins=16, range=(-(2**31), 2**31))[0]
    assert np.abs(counts / len(whole) - 1 / 16).max() < 0.004
    assert abs(float(np.corrcoef(whole[:-1].numpy(), whole[1:].numpy())[0, 1])) < 0.02
    # The generator must never change: recipes are identities.
    assert words(mask_key(0, "a", "b"), 0, 4).tolist() == [-1169268148, 597779619, 878022495, 958504276]
    assert keep(words(key, 0, 1000), 0.0).sum() == 0
    assert keep(words(key, 0, 1000), 1.0).sum() == 1000


def test_sums_do_not_depend_on_pieces() -> None:
    values = torch.randn(5 * CELL + 77, generator=torch.Generator().manual_seed(0))
    results = set()
    for step in (CELL, 2 * CELL, 8 * CELL):
        sums = Sums("x")
        for start, stop in _pieces(len(values), step):
            sums.add(x=values[start:stop])
        results.add(sums["x"])
    assert len(results) == 1
    assert results.pop() == pytest.approx(values.double().sum().item(), rel=1e-4)


def test_a_gradient_is_interpolated_over_depth() -> None:
    assert [value_at([0.0, 1.0, 0.5], "x", depth) for depth in (0.0, 0.25, 0.5, 0.75, 1.0)] == [
        0.0,
        0.5,
        1.0,
        0.75,
        0.5,
    ]
    assert value_at([3.0], "x", 0.7) == 3.0
    entries = [{"filter": "mlp", "value": [1.0, 2.0]}, {"filter": "*", "value": 5.0}]
    assert value_at(entries, "layers.0.mlp.up", 0.5) == 1.5
    assert value_at(entries, "layers.0.attn", 0.5) == 5.0
    assert value_at(entries[:1], "layers.0.attn", 0.5) is None
    assert math.isclose(value_at([0, 0.5, 0.3, 0.7, 1], "x", 1 / 3), 0.5 + (0.3 - 0.5) * (4 / 3 - 1))


def test_words_are_philox_with_kernels_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    # The published known answer of Philox-4x32-7 for a key and a counter of zeros.
    assert philox((0, 0), 0, 1).tolist() == [[0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48]]
    key = mask_key(1, "source", "tensor")
    ranges = [(0, 1), (37, 70_011), (2**33 - 5, 2**33 + 300)]
    drawn = [raw_words(key, *ends, bits) for ends in ranges for bits in (16, 32)]
    monkeypatch.setattr("evomerge_merging.numerics.random_words.library", lambda: None)
    again = [raw_words(key, *ends, bits) for ends in ranges for bits in (16, 32)]
    assert all(np.array_equal(one, other) for one, other in zip(drawn, again, strict=True))
