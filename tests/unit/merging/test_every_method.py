"""What must hold of every registered method, and what each of the later ones promises."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge_common.domain.recipe import Recipe
from evomerge_common.domain.reference import ModelReference
from evomerge_common.errors import RecipeError, ShapeMismatch
from evomerge_merging import merge_in_memory, plan_merge
from evomerge_merging.methods import methods
from evomerge_merging.numerics.random_words import mask_key, words
from evomerge_merging.numerics.ranks import keep_by_rank
from helpers.tiny_merging import random_tensors, raw_model, weights

Tensors = Mapping[str, torch.Tensor]
# Settings under which each method has everything to do.
Models = list[tuple[ModelReference, dict[str, Any]]]
SETTINGS: dict[str, dict[str, Any]] = {
    "arcee_fusion": {},
    "breadcrumbs": {"weight": 0.5, "density": 0.4, "gamma": 0.1},
    "breadcrumbs_ties": {"weight": 0.5, "density": 0.4, "gamma": 0.1, "rescale": True},
    "dare_linear": {"weight": 0.5, "density": 0.4},
    "dare_ties": {"weight": 0.5, "density": 0.4},
    "della": {"weight": 0.5, "density": 0.4, "epsilon": 0.2},
    "della_linear": {"weight": 0.5, "density": 0.4, "epsilon": 0.2},
    "dfs": {"scale": 1.0},
    "expo": {"alpha": 0.3},
    "fisher": {},
    "frankenmerge": {"scale": 0.5},
    "iso_c": {},
    "karcher": {},
    "linear": {"weight": 0.5},
    "mask_delta": {"rate": 0.4},
    "mask_weights": {"rate": 0.0},
    "model_stock": {},
    "multislerp": {"weight": 0.5},
    "nearswap": {"t": 0.3},
    "noise": {"scale": 0.0},
    "noise_delta": {},
    "nuslerp": {"weight": 0.5},
    "passthrough": {"scale": 0.5},
    "permute_delta": {},
    "ram": {},
    "ramplus_tl": {"r": 0.5, "alpha": 2.0, "epsilon": 0.5},
    "regmean": {},
    "sce": {"select_topk": 0.4},
    "slerp": {"t": 0.3},
    "task_arithmetic": {"weight": 0.5},
    "ties": {"weight": 0.5, "density": 0.4},
    "tsv": {},
}
VARIANTS = [
    *SETTINGS.items(),
    ("nuslerp", {"weight": 0.5, "nuslerp_flatten": False}),
    ("nuslerp", {"weight": 0.5, "nuslerp_flatten": False, "nuslerp_row_wise": True}),
    ("model_stock", {"filter_wise": True}),
]
NAMES = [name + ("" if SETTINGS[name] is own else "-" + "-".join(list(own)[-2:])) for name, own in VARIANTS]
WIDE = "layers.0.b.weight"


def tensors_of(seed: int, size: int = 70_000) -> dict[str, torch.Tensor]:
    """Also a matrix and a cube of many pieces, whose rows are no multiple of any."""
    generator = torch.Generator().manual_seed(100 + seed)
    shapes = {WIDE: (300, 123), "layers.1.b.weight": (6, 40, 77)} if size > 1000 else {WIDE: (12, 7)}
    return random_tensors(seed, size) | {n: torch.randn(shape, generator=generator) for n, shape in shapes.items()}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[ModelReference]:
    root = tmp_path_factory.mktemp("models")
    return [ModelReference(str(raw_model(root / f"m{i}", tensors_of(i)))) for i in range(4)]


def recipe(name: str, models: list[ModelReference], own: Mapping[str, Any], *, base: bool = True) -> Recipe:
    """The first model is the base, the others the inputs, as many as the method takes."""
    how = methods()[name]
    inputs = models[1:] if how.traits.inputs is None else models[1 : 1 + how.traits.inputs]
    needed = models[0] if base and how.traits.base != "none" else None
    pairs = [
        (model, {"statistics": calibrated(model, name)} if "statistics" in how.parameters else {}) for model in inputs
    ]
    return Recipe.of_models(name, pairs, base=needed, parameters=own)


def calibrated(model: ModelReference, name: str) -> str:
    """A file of random statistics for the model, beside it."""
    path = Path(f"{model.name}-{name}.safetensors")
    if not path.exists():
        generator = torch.Generator().manual_seed(sum(map(ord, path.name)))
        noise = {n: torch.randn(t.shape, generator=generator) for n, t in weights(Path(model.name)).items()}
        told = {n: t.square() for n, t in noise.items()}
        if name == "regmean":
            told = {n: t.T @ t for n, t in noise.items() if t.dim() == 2}
        save_file({n: t.contiguous() for n, t in told.items()}, path)
    return str(path)


def merged(what: Recipe, models: Mapping[str, Path] | None = None, **options: Any) -> dict[str, torch.Tensor]:
    with plan_merge(what, models or {}) as plan:
        return merge_in_memory(plan, **options)


def source(model: ModelReference) -> dict[str, torch.Tensor]:
    return weights(Path(model.name))


def same(one: Tensors, other: Tensors, tolerance: float = 0.0) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: n + m)


def test_every_registered_method_is_tested_here() -> None:
    assert SETTINGS.keys() == methods().keys()


@pytest.mark.parametrize(("name", "own"), VARIANTS, ids=NAMES)
def test_bits_do_not_depend_on_threads_or_pieces(models: list[ModelReference], name: str, own: dict[str, Any]) -> None:
    what = recipe(name, models, own)
    first = merged(what, threads=1)
    same(first, merged(what, threads=3, piece_elements=16_384))
    same(first, merged(what, threads=2, piece_elements=40_000))
    assert all(torch.isfinite(tensor).all() for tensor in first.values())
    if name not in {"passthrough", "frankenmerge", "dfs"}:
        assert all(not torch.equal(first[n], tensor) for n, tensor in source(models[0]).items() if tensor.numel() > 99)


@pytest.mark.parametrize(("name", "own"), VARIANTS, ids=NAMES)
def test_equal_opposite_tiny_and_zero_tensors_stay_finite(tmp_path: Path, name: str, own: dict[str, Any]) -> None:
    plain = tensors_of(0, 100)
    for case, factors in {
        "equal": (1, 1, 1),
        "opposite": (1, -1, 1),
        "tiny": (1e-30, -1e-30, 0),
        "zero": (0, 0, 0),
    }.items():
        folders = [
            raw_model(tmp_path / f"{case}{i}", {n: t * factor for n, t in plain.items()})
            for i, factor in enumerate(factors)
        ]
        result = merged(recipe(name, [ModelReference(str(folder)) for folder in folders], own))
        assert all(torch.isfinite(tensor).all() for tensor in result.values()), case
        if case == "zero":
            assert all(not tensor.any() for tensor in result.values())


@pytest.mark.parametrize(("name", "own"), VARIANTS, ids=NAMES)
def test_a_model_merged_with_itself_is_itself(models: list[ModelReference], name: str, own: dict[str, Any]) -> None:
    """Whatever the method, if nothing changed of the base; copies under other names, so that none is taken for it."""
    if name in {"passthrough", "frankenmerge"}:
        own = {"scale": 1.0}
    copies = [models[0], *(replace(models[0], digest=f"copy {i}") for i in range(3))]
    where = {copy.key: Path(copy.name) for copy in copies}
    same(merged(recipe(name, copies, own), where), source(models[0]), 2e-6)
    if methods()[name].traits.base == "optional":
        same(merged(recipe(name, copies, own, base=False), where), source(models[0]), 2e-6)


SYMMETRIC = [variant for variant in VARIANTS if methods()[variant[0]].traits.inputs != 1]
"""Methods whose inputs have one part; base and model, or the two ends of an arc, have different ones."""


@pytest.mark.parametrize(("name", "own"), SYMMETRIC, ids=[name for name, _ in SYMMETRIC])
def test_the_order_of_alike_models_does_not_matter(
    models: list[ModelReference], name: str, own: dict[str, Any]
) -> None:
    how = methods()[name]
    swapped = [models[0], *(models[1:][::-1] if how.traits.inputs is None else models[2:0:-1])]
    one, other = merged(recipe(name, models, own)), merged(recipe(name, swapped, own))
    for tensor, value in one.items():
        # Cancelling sums elect another sign when added in another order: hardly ever.
        close = torch.isclose(value, other[tensor], rtol=1e-4, atol=2e-5)
        assert close.float().mean() > 0.999, tensor


def change(result: Tensors, base: Tensors, name: str) -> torch.Tensor:
    return result[name].double() - base[name].double()


@pytest.mark.parametrize("name", ["breadcrumbs", "breadcrumbs_ties"])
@pytest.mark.parametrize("rescale", [False, True])
def test_breadcrumbs_keep_the_middle_of_the_magnitudes(models: list[ModelReference], name: str, rescale: bool) -> None:
    own = {"weight": 1.0, "density": 0.5, "gamma": 0.2, "rescale": rescale}
    base = source(models[0])
    result = merged(recipe(name, models[:2], own))
    for tensor in base:
        delta, left = change(source(models[1]), base, tensor).flatten(), change(result, base, tensor).flatten()
        size = delta.numel()
        order = delta.abs().argsort(descending=True)
        dropped, kept = int(0.2 * size), int(0.5 * size)
        wanted = torch.zeros_like(delta)
        wanted[order[dropped : dropped + kept]] = delta[order[dropped : dropped + kept]]
        if rescale:
            wanted *= delta.abs().sum() / wanted.abs().sum()
        torch.testing.assert_close(left, wanted, rtol=1e-5, atol=2e-6)


def test_breadcrumbs_hold_the_density_before_the_outliers(models: list[ModelReference]) -> None:
    own = {"weight": 1.0, "density": 0.9, "gamma": 0.5}
    base = source(models[0])
    left = change(merged(recipe("breadcrumbs", models[:2], own)), base, WIDE)
    assert int(left.count_nonzero()) == int(0.9 * left.numel())


def test_della_keeps_by_the_rank_in_the_row() -> None:
    rows, columns, density, epsilon = 4000, 11, 0.4, 0.3
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(rows, columns, generator=generator)
    values[:, 5] = values[:, 3]  # equals share the probability of their mean rank
    draw = words(mask_key(0, "a", "b"), 0, values.numel(), 16)
    kept = keep_by_rank(values, draw, density, epsilon).reshape(rows, columns)
    below = (values[:, None] < values[..., None]).sum(-1).numpy()
    equal = (values[:, None] == values[..., None]).sum(-1).numpy()
    probability = density - epsilon + 2 * epsilon * (below + (equal - 1) / 2) / (columns - 1)
    for one in np.unique(probability):
        chosen = kept[probability == one]
        assert chosen.mean() == pytest.approx(one, abs=4.5 * (one * (1 - one) / len(chosen)) ** 0.5), one
    assert kept.mean() == pytest.approx(density, abs=0.01)


@pytest.mark.parametrize("name", ["della", "della_linear"])
def test_della_restores_the_norm_and_changes_with_the_seed(models: list[ModelReference], name: str) -> None:
    own = {"weight": 1.0, "density": 0.4, "epsilon": 0.1}
    base = source(models[0])
    what = recipe(name, models[:2], own)
    result = merged(what)
    for tensor in base:
        delta, left = change(source(models[1]), base, tensor), change(result, base, tensor)
        torch.testing.assert_close(left.abs().sum(), delta.abs().sum(), rtol=1e-4, atol=1e-4)
        kept = left.abs() > 1e-7
        factors = (left / delta)[kept & (delta.abs() > 0.1)]
        assert factors.max() - factors.min() < 1e-4
        if delta.numel() > 1000:
            assert kept.double().mean() == pytest.approx(0.4, abs=5 * (0.24 / delta.numel()) ** 0.5)
    other = merged(replace(what, seed=1))
    assert not torch.equal(result[WIDE], other[WIDE])


@pytest.mark.parametrize("name", ["permute_delta", "noise_delta"])
def test_disorder_and_noise_have_the_norm_of_the_changes_and_another_direction(
    models: list[ModelReference], name: str
) -> None:
    base = source(models[0])
    what = recipe(name, models[:2], {})
    result, other = merged(what), merged(replace(what, seed=1))
    for tensor in base:
        delta, left = change(source(models[1]), base, tensor).flatten(), change(result, base, tensor).flatten()
        assert float(left.norm()) == pytest.approx(float(delta.norm()), rel=1e-5)
        if name == "permute_delta":
            torch.testing.assert_close(left.sort().values, delta.sort().values, rtol=1e-5, atol=2e-6)
        if delta.numel() > 1000:
            assert abs(float(left @ delta / delta.norm() ** 2)) < 5 / delta.numel() ** 0.5
            assert not torch.equal(result[tensor], other[tensor])


def test_disorder_is_the_same_under_a_method_that_reads_by_rows(models: list[ModelReference]) -> None:
    """Rows cut through the cells within which elements change places."""
    inner = recipe("permute_delta", models[:2], {})
    outer = Recipe.of_models("della", [(inner, {"weight": 1.0, "density": 0.5})], base=models[0])
    base, disorder = source(models[0]), merged(inner)
    left = change(merged(outer), base, WIDE)
    kept = left != 0
    assert 0.4 < kept.double().mean() < 0.6
    factors = (left / change(disorder, base, WIDE))[kept & (left.abs() > 0.1)]
    assert factors.max() - factors.min() < 1e-4


def test_an_epsilon_beyond_the_density_is_refused_when_planning(models: list[ModelReference]) -> None:
    with pytest.raises(RecipeError, match=r"lower epsilon below 0\.1"):
        plan_merge(recipe("della", models, {"weight": 1.0, "density": 0.1}))
    with pytest.raises(RecipeError, match="add up to zero"):
        plan_merge(recipe("multislerp", models, {"weight": 0.0}))
    with pytest.raises(RecipeError, match="at least 2 models besides the base"):
        plan_merge(recipe("model_stock", models[:2], {}))


@pytest.mark.parametrize("own", [{}, {"nuslerp_flatten": False}, {"nuslerp_flatten": False, "nuslerp_row_wise": True}])
@pytest.mark.parametrize("base", [False, True])
def test_nuslerp_reaches_both_ends(models: list[ModelReference], own: dict[str, Any], base: bool) -> None:
    for share, end in ((0.0, models[2]), (1.0, models[1])):
        pairs = [(models[1], {"weight": share}), (models[2], {"weight": 1.0 - share})]
        what = Recipe.of_models("nuslerp", pairs, base=models[0] if base else None, parameters=own)
        same(merged(what), source(end), 2e-6)


def test_nuslerp_keeps_the_length_of_each_row(tmp_path: Path) -> None:
    """Rows of length one stay so half way; a straight line would shorten them."""
    plain = [{n: t / t.norm(dim=-1, keepdim=True) for n, t in tensors_of(i).items()} for i in range(2)]
    folders = [raw_model(tmp_path / f"{i}", tensors) for i, tensors in enumerate(plain)]
    pairs = [(ModelReference(str(folder)), {"weight": 1.0}) for folder in folders]
    rows = merged(Recipe.of_models("nuslerp", pairs, parameters={"nuslerp_flatten": False}))
    for tensor in rows.values():
        torch.testing.assert_close(tensor.norm(dim=-1), torch.ones(tensor.shape[:-1]), rtol=1e-5, atol=1e-5)


def test_sphere_means_have_the_mean_length_and_lie_between(models: list[ModelReference]) -> None:
    inputs = [source(model)[WIDE].double() for model in models[1:]]
    length = sum(float(tensor.norm()) for tensor in inputs) / 3
    for name in ("karcher", "multislerp"):
        result = merged(recipe(name, models, SETTINGS[name], base=False))[WIDE].double()
        assert float(result.norm()) == pytest.approx(length, rel=1e-5)
    units = [tensor / tensor.norm() for tensor in inputs]
    mean = merged(recipe("karcher", models, {"max_iter": 100, "tol": 1e-9}))[WIDE].double()
    mean /= mean.norm()
    tangents = [(unit - (unit * mean).sum() * mean) * _stretch(float((unit * mean).sum())) for unit in units]
    assert float(sum(tangents, torch.zeros_like(mean)).norm()) < 1e-4  # at the centre all pulls cancel


def _stretch(cosine: float) -> float:
    angle = float(np.arccos(cosine))
    return float(angle / np.sin(angle))


def test_multislerp_of_two_is_halfway_on_the_arc(models: list[ModelReference]) -> None:
    half = merged(Recipe.of_models("multislerp", [(m, {"weight": 1.0}) for m in models[:2]]))
    one, other = source(models[0]), source(models[1])
    for name, tensor in half.items():
        middle = one[name] / one[name].norm() + other[name] / other[name].norm()
        torch.testing.assert_close(tensor / tensor.norm(), middle / middle.norm(), rtol=1e-4, atol=1e-5)


def test_sce_selects_what_varies_most(models: list[ModelReference]) -> None:
    base = source(models[0])
    result = merged(recipe("sce", models, {"select_topk": 0.25}))
    variance = torch.stack([source(model)[WIDE].double() for model in models[1:]]).var(0, unbiased=False)
    moved = change(result, base, WIDE) != 0
    assert int(moved.sum()) == int(0.25 * variance.numel())
    assert variance[moved].min() >= variance[~moved].max()
    same(merged(recipe("sce", models, {"select_topk": 0.0})), base)


def test_model_stock_stays_where_models_disagree_and_goes_where_they_agree(tmp_path: Path) -> None:
    base = tensors_of(0)
    step = {n: torch.randn(t.shape, generator=torch.Generator().manual_seed(9)) for n, t in base.items()}

    def folder(name: str, factor: float) -> ModelReference:
        return ModelReference(str(raw_model(tmp_path / name, {n: t + factor * step[n] for n, t in base.items()})))

    root = folder("base", 0.0)
    settings: list[dict[str, Any]] = [{}, {"filter_wise": True}]
    for own in settings:
        agree: Models = [
            (folder(f"{own}a", 1.0), {}),
            (folder(f"{own}b", 2.0), {}),
        ]
        result = merged(Recipe.of_models("model_stock", agree, base=root, parameters=own))
        same(result, {n: t + 1.5 * step[n] for n, t in base.items()}, 1e-5)
        oppose: Models = [
            (folder(f"{own}c", 1.0), {}),
            (folder(f"{own}d", -1.0), {}),
        ]
        same(merged(Recipe.of_models("model_stock", oppose, base=root, parameters=own)), base, 1e-5)


def test_nearswap_takes_what_is_near(models: list[ModelReference]) -> None:
    base, other = source(models[0]), source(models[1])
    result = merged(recipe("nearswap", models, {"t": 0.5}))
    near = (base[WIDE] - other[WIDE]).abs() <= 0.5
    torch.testing.assert_close(result[WIDE][near], other[WIDE][near])
    moved = (result[WIDE] - base[WIDE]).abs()[~near]
    torch.testing.assert_close(moved, torch.full_like(moved, 0.5), rtol=1e-4, atol=1e-5)
    same(merged(recipe("nearswap", models, {"t": 0.0})), base)
    same(merged(recipe("nearswap", models, {"t": 1e9})), other)


def test_arcee_fusion_takes_few_elements_and_those_whole(models: list[ModelReference]) -> None:
    base, other = source(models[0]), source(models[1])
    result = merged(recipe("arcee_fusion", models, {}))
    for name in base:
        taken = result[name] != base[name]
        torch.testing.assert_close(result[name][taken], other[name][taken], rtol=1e-5, atol=1e-5)
        assert taken.float().mean() < 0.25
    assert (result[WIDE] != base[WIDE]).any()


def test_expo_goes_beyond_the_model(models: list[ModelReference]) -> None:
    base, other = source(models[0]), source(models[1])
    result = merged(recipe("expo", models, {"alpha": 0.5}))
    same(result, {n: base[n] + 1.5 * (other[n] - base[n]) for n in base}, 1e-6)
    same(merged(recipe("expo", models, {"alpha": 0.0})), other, 1e-6)
    same(merged(recipe("expo", models, {"alpha": -1.0})), base, 1e-6)


def test_iso_c_makes_all_singular_values_the_mean(models: list[ModelReference]) -> None:
    base = source(models[0])
    total = sum((change(source(model), base, WIDE) for model in models[1:]), torch.zeros(300, 123).double())
    result = change(merged(recipe("iso_c", models, {})), base, WIDE)
    mean = torch.linalg.svdvals(total).mean()
    torch.testing.assert_close(torch.linalg.svdvals(result), mean.expand(123), rtol=1e-3, atol=1e-3)
    assert torch.linalg.matrix_norm(result.T @ total, "nuc") == pytest.approx(float((result * total).sum()), rel=1e-3)


def test_tsv_keeps_what_does_not_interfere(tmp_path: Path) -> None:
    """Tasks in orthogonal directions come through whole; other tensors are averaged."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(12, 12, generator=generator))[0]
    base = {"w": torch.randn(12, 12, generator=generator), "b": torch.zeros(12)}
    steps = [basis[:, [i]] @ basis[[i]] * (i + 1.0) for i in range(3)]
    folders = [raw_model(tmp_path / "base", base)]
    folders += [
        raw_model(tmp_path / f"{i}", {"w": base["w"] + step, "b": base["b"] + i}) for i, step in enumerate(steps)
    ]
    result = merged(recipe("tsv", [ModelReference(str(folder)) for folder in folders], {}))
    torch.testing.assert_close(result["w"], base["w"] + sum(steps), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(result["b"], torch.ones(12))


def test_fisher_weighs_each_element_by_its_information(models: list[ModelReference]) -> None:
    what = recipe("fisher", models, {})
    told = [load_file(calibrated(model, "fisher"))[WIDE].double() for model in models[1:]]
    values = [source(model)[WIDE].double() for model in models[1:]]
    mean = sum(f * v for f, v in zip(told, values, strict=True)) / sum(told)
    torch.testing.assert_close(merged(what)[WIDE].double(), mean, rtol=1e-4, atol=1e-5)


def test_regmean_is_the_least_squares_fit_of_all_models_outputs(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    pairs, inputs, outputs = [], [], []
    for i in range(2):
        weight, bias = torch.randn(5, 8, generator=generator), torch.full((5,), float(i))
        texts = torch.randn(30, 8, generator=generator)
        folder = raw_model(tmp_path / f"{i}", {"fc.weight": weight, "fc.bias": bias})
        save_file({"fc.weight": texts.T @ texts}, tmp_path / f"{i}.safetensors")
        pairs.append((ModelReference(str(folder)), {"statistics": str(tmp_path / f"{i}.safetensors")}))
        inputs.append(texts)
        outputs.append(texts @ weight.T)
    result = merged(Recipe.of_models("regmean", pairs, parameters={"alpha": 1.0}))
    fit = torch.linalg.lstsq(torch.cat(inputs), torch.cat(outputs)).solution.T
    torch.testing.assert_close(result["fc.weight"], fit, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(result["fc.bias"], torch.full((5,), 0.5))
    save_file({"fc.weight": torch.zeros(8, 8)}, tmp_path / "0.safetensors")
    # A model whose layer no text excited has no say.
    other = weights(tmp_path / "1")["fc.weight"]
    torch.testing.assert_close(merged(Recipe.of_models("regmean", pairs))["fc.weight"], other, rtol=1e-4, atol=1e-4)


def test_statistics_that_are_not_there_or_do_not_fit_are_told(models: list[ModelReference], tmp_path: Path) -> None:
    pairs = [(model, {"statistics": str(tmp_path / "none.safetensors")}) for model in models[:2]]
    with pytest.raises(RecipeError, match="cannot be read"):
        plan_merge(Recipe.of_models("fisher", pairs))
    save_file({WIDE: torch.ones(2, 3)}, tmp_path / "none.safetensors")
    with pytest.raises(ShapeMismatch, match=r"must be 36,900 floats"):
        merged(Recipe.of_models("fisher", pairs))
    with pytest.raises(ShapeMismatch, match=r"\[123, 123\]"):
        merged(Recipe.of_models("regmean", pairs))
