"""The native kernels do what the methods' definitions in torch say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge_common.domain.recipe import Recipe
from evomerge_common.domain.reference import ModelReference
from evomerge_common.errors import NonFiniteWeights
from evomerge_merging import merge_in_memory, native, plan_merge
from evomerge_merging.engine.expression import Evaluation
from helpers.tiny_merging import random_tensors, raw_model

RECIPES: dict[str, dict[str, Any]] = {
    "linear": {},
    "slerp": {"t": 0.3},
    "task_arithmetic": {"lambda": 0.7},
    "ties": {"density": 0.4},
    "dare_linear": {"density": 0.4},
    "dare_ties": {"density": 0.4},
    "breadcrumbs": {"density": 0.5, "gamma": 0.1},
    "breadcrumbs_ties": {"density": 0.5, "gamma": 0.1, "rescale": True},
    "della": {"density": 0.5, "epsilon": 0.2},
    "della_linear": {"density": 0.5, "epsilon": 0.2},
    "passthrough": {"scale": 0.5},
}


_TOLERANCES = {
    torch.float32: (2e-6, 2e-6, 1.0),
    torch.bfloat16: (2**-7, 1e-4, 1e-3),
    torch.float16: (2**-10, 1e-4, 1e-2),
}
"""By type of the result: a rounding step, what is near zero, the share of elements that may differ by it."""


@pytest.fixture(params=[torch.float32, torch.bfloat16, torch.float16], ids=str)
def models(request: pytest.FixtureRequest, tmp_path: Path) -> list[ModelReference]:
    base = random_tensors(0, 70_001)
    paths = []
    for i in range(4):
        change = random_tensors(i, 70_001)
        tensors = {name: (t + 0.3 * i * change[name]).to(request.param) for name, t in base.items()}
        paths.append(raw_model(tmp_path / f"m{i}", tensors))
    return [ModelReference(str(path)) for path in paths]


def _recipe(name: str, models: list[ModelReference]) -> Recipe:
    parameters = dict(RECIPES[name])
    count = 1 if name in {"slerp", "passthrough"} else 3
    if count > 1:
        parameters["weight"] = 0.6
    base = None if name in {"linear", "passthrough"} else models[0]
    return Recipe.of_models(name, [(model, {}) for model in models[1 : count + 1]], base=base, parameters=parameters)


@pytest.mark.parametrize("name", RECIPES)
def test_they_equal_the_definition(name: str, models: list[ModelReference], monkeypatch: pytest.MonkeyPatch) -> None:
    assert native.library() is not None, "no native kernels: is there a C compiler?"
    with plan_merge(_recipe(name, models)) as plan:
        sources = {key: source.store for key, source in plan.sources.items()}
        assert not any(Evaluation(t.node, sources, piece_elements=1 << 18).needs_torch(t.dtype) for t in plan.tensors)
        fast = merge_in_memory(plan, piece_elements=16_384)
        monkeypatch.setattr("evomerge_merging.engine.expression.readable", lambda loads: False)
        slow = merge_in_memory(plan)
    for tensor, wanted in slow.items():
        # Factors that restore a norm come from sums in another order: the last bit of a rounded result may differ.
        step, near, share = _TOLERANCES[wanted.dtype]
        torch.testing.assert_close(fast[tensor], wanted, rtol=step, atol=near)
        if wanted.numel() > 1000:
            assert (fast[tensor] != wanted).float().mean() <= share


def test_what_is_not_to_be_rescaled_is_not(models: list[ModelReference], monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = [(model, {"weight": 0.6}) for model in models[1:]]
    own = {"density": 0.5, "rescale": False}
    with plan_merge(Recipe.of_models("della_linear", inputs, base=models[0], parameters=own)) as plan:
        fast = merge_in_memory(plan)
        monkeypatch.setattr("evomerge_merging.engine.expression.readable", lambda loads: False)
        slow = merge_in_memory(plan)
    for tensor, wanted in slow.items():
        step, near, _ = _TOLERANCES[wanted.dtype]
        torch.testing.assert_close(fast[tensor], wanted, rtol=step, atol=near)


def test_they_leave_it_to_torch_to_say_what_is_not_finite(tmp_path: Path) -> None:
    tensors = random_tensors(0)
    one = raw_model(tmp_path / "a", tensors)
    tensors["embed.weight"][1, 2] = float("nan")
    two = raw_model(tmp_path / "b", tensors)
    inputs = [(ModelReference(str(two)), {"weight": 1.0, "density": 0.5})]
    with (
        plan_merge(Recipe.of_models("ties", inputs, base=ModelReference(str(one)))) as plan,
        pytest.raises(NonFiniteWeights, match=r"embed\.weight"),
    ):
        merge_in_memory(plan)


def test_every_number_of_float16_is_read_exactly(tmp_path: Path) -> None:
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.float16)
    finite = every[torch.isfinite(every)].reshape(32, -1)
    model = ModelReference(str(raw_model(tmp_path / "m", {"layers.0.a.weight": finite})))
    what = Recipe.of_models("passthrough", [(model, {})], dtype="float32")
    with plan_merge(what) as plan:
        found = merge_in_memory(plan)["layers.0.a.weight"]
    assert torch.equal(found.view(torch.int32), finite.float().view(torch.int32))
