"""What must hold of every merge, whatever the weights."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from evomerge_common.domain.recipe import Input, Recipe, Slice
from evomerge_common.domain.reference import ModelReference
from evomerge_common.errors import (
    DiskFull,
    InvalidInput,
    ModelError,
    NonFiniteWeights,
    RecipeError,
    ShapeMismatch,
    UnsafeFile,
)
from evomerge_merging import (
    execute,
    mask_input_with_mask_rate,
    merge_in_memory,
    merge_recipe,
    plan_merge,
    read_recipe_text,
)
from evomerge_merging.engine.expression import Evaluation
from evomerge_merging.engine.nodes import Apply, whole_bytes
from evomerge_merging.io.dtypes import torch_dtype
from helpers.tiny_merging import random_tensors, raw_model, rewrite, set_config, weights

METHODS: dict[str, dict[str, Any]] = {
    "linear": {"weight": 0.5},
    "slerp": {"t": 0.3},
    "task_arithmetic": {"weight": 0.5},
    "ties": {"weight": 0.5, "density": 0.4},
    "dare_linear": {"weight": 0.5, "density": 0.4},
    "dare_ties": {"weight": 0.5, "density": 0.4},
}
LARGE = "layers.0.a.weight"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[ModelReference]:
    root = tmp_path_factory.mktemp("models")
    return [ModelReference(str(raw_model(root / f"m{i}", random_tensors(i)))) for i in range(4)]


def recipe(
    method: str, inputs: Sequence[ModelReference | Recipe], base: ModelReference | Recipe | None = None, **own: Any
) -> Recipe:
    parameters = {**METHODS.get(method, {}), **own}
    seed = parameters.pop("seed", 0)
    return Recipe.of_models(method, [(item, {}) for item in inputs], base=base, parameters=parameters, seed=seed)


def merged(what: Recipe, **options: Any) -> dict[str, torch.Tensor]:
    with plan_merge(what) as plan:
        return merge_in_memory(plan, **options)


def source(model: ModelReference) -> dict[str, torch.Tensor]:
    return weights(Path(model.name))


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], tolerance: float = 0.0) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("method", METHODS)
def test_bits_do_not_depend_on_threads_or_pieces(models: list[ModelReference], method: str, tmp_path: Path) -> None:
    inputs: list[Any] = models[1:2] if method == "slerp" else models[1:]
    what = recipe(method, inputs, models[0])
    first = merged(what, threads=1)
    same(first, merged(what, threads=3, piece_elements=16_384))
    same(first, merged(what, threads=2, piece_elements=40_000))
    with plan_merge(what) as plan:
        report = execute(plan, tmp_path / "out", threads=2)
    same(first, weights(tmp_path / "out"))
    assert report.bytes == (tmp_path / "out" / "model.safetensors").stat().st_size
    assert report.parameters == sum(tensor.numel() for tensor in first.values())


@pytest.mark.parametrize("method", ["linear", "dare_ties", "ties", "slerp"])
def test_a_source_that_becomes_shorter_during_the_merge_is_an_error(method: str, tmp_path: Path) -> None:
    """Whoever reads it then, a kernel or Python: no bus error, and nothing is left."""
    folders = [raw_model(tmp_path / f"m{i}", random_tensors(i, 100)) for i in range(3)]
    last = folders[-1] / "model.safetensors"
    base, *inputs = [ModelReference(str(folder)) for folder in folders]
    what = recipe(method, list(inputs[-1:] if method == "slerp" else inputs), None if method == "linear" else base)
    with plan_merge(what) as plan:
        os.truncate(last, last.stat().st_size // 2)
        with pytest.raises(UnsafeFile, match="shorter"):
            execute(plan, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m0", "m1", "m2"]


@pytest.mark.parametrize("room", [1, 1 << 30], ids=["one at a time", "all threads"])
def test_whole_tensors_share_their_memory(
    models: list[ModelReference], room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Methods that want whole tensors take from one room, however many threads there are."""
    inside, most = 0, 0
    prepare = Evaluation.prepare

    def counted(self: Evaluation) -> None:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        together.wait(0.05)  # nobody sets it: time for the other threads to come in, if they may
        prepare(self)
        with lock:
            inside -= 1

    lock, together = threading.Lock(), threading.Event()
    what = recipe("iso_c", models[1:], models[0])
    expected = merged(what, threads=1)
    monkeypatch.setattr(Evaluation, "prepare", counted)
    monkeypatch.setattr(sys.modules["evomerge_merging.engine.execute"], "WHOLE_TENSOR_BYTES", room)
    same(expected, merged(what, threads=3))
    assert most == 1 if room == 1 else most > 1


def test_a_plan_tells_the_memory_of_whole_tensors(
    models: list[ModelReference], monkeypatch: pytest.MonkeyPatch
) -> None:
    with plan_merge(recipe("iso_c", models[1:], models[0])) as plan:
        sizes = sorted((whole_bytes(tensor.node) for tensor in plan.tensors), reverse=True)
        pieces = plan.memory_bytes(threads=2, piece_elements=1000) - sum(sizes[:2])
        monkeypatch.setattr("evomerge_merging.engine.plan.WHOLE_TENSOR_BYTES", sizes[0] - 1)
        assert plan.memory_bytes(threads=2, piece_elements=1000) == pieces + sizes[0]
    assert pieces == 2 * 1000 * 4 * 16


@pytest.mark.parametrize("method", METHODS)
def test_a_model_merged_with_itself_is_itself(models: list[ModelReference], method: str) -> None:
    base = models[0] if method == "slerp" else None
    twin = replace(models[0], digest="another name of the same files")
    inputs: list[Any] = [models[0], twin]
    what = recipe(method, inputs, base)
    with plan_merge(what, {twin.key: Path(models[0].name)}) as plan:
        same(merge_in_memory(plan), source(models[0]), 1e-6)


def test_linear_is_the_weighted_mean_in_any_order(models: list[ModelReference]) -> None:
    shares = [0.7, 0.2, 0.4]
    pairs = [(model, {"weight": share}) for model, share in zip(models, shares, strict=False)]
    result = merged(Recipe.of_models("linear", pairs))
    same(result, merged(Recipe.of_models("linear", pairs[::-1])), 1e-6)
    tensors = [source(model)[LARGE].double() for model, _ in pairs]
    mean = sum(share * tensor for share, tensor in zip(shares, tensors, strict=True)) / sum(shares)
    torch.testing.assert_close(result[LARGE].double(), mean, rtol=1e-6, atol=1e-6)
    doubled = merged(Recipe.of_models("linear", [(m, {"weight": 2 * p["weight"]}) for m, p in pairs]))
    same(result, doubled)


def test_slerp_reaches_both_ends_and_keeps_the_norm_of_orthogonal_tensors(models: list[ModelReference]) -> None:
    same(merged(recipe("slerp", [models[1]], models[0], t=0.0)), source(models[0]), 1e-6)
    same(merged(recipe("slerp", [models[1]], models[0], t=1.0)), source(models[1]), 1e-6)
    # Long random tensors are nearly orthogonal and of one length, which half way of an arc keeps (a line would not).
    half = merged(recipe("slerp", [models[1]], models[0], t=0.5))[LARGE]
    assert half.norm().item() == pytest.approx(source(models[0])[LARGE].norm().item(), rel=0.01)
    same(merged(recipe("slerp", models[:2])), merged(recipe("slerp", [models[1]], models[0])))


@pytest.mark.parametrize("factor", [1.0, -1.0, 0.0, 1e-30])
def test_slerp_of_parallel_opposite_and_zero_tensors_is_finite(tmp_path: Path, factor: float) -> None:
    one = raw_model(tmp_path / "a", random_tensors(0, 100))
    other = raw_model(tmp_path / "b", {name: tensor * factor for name, tensor in random_tensors(0, 100).items()})
    result = merged(recipe("slerp", [ModelReference(str(one)), ModelReference(str(other))], t=0.5))
    assert all(torch.isfinite(tensor).all() for tensor in result.values())


def test_task_arithmetic_adds_and_subtracts_what_was_learned(models: list[ModelReference]) -> None:
    base, one = models[:2]
    same(merged(recipe("task_arithmetic", [one], base, weight=1.0)), source(one), 1e-6)
    same(merged(recipe("task_arithmetic", [one], base, weight=0.0)), source(base))
    forgotten = merged(recipe("task_arithmetic", [one], base, weight=-1.0))
    same(forgotten, {n: 2 * t - source(one)[n] for n, t in source(base).items()}, 1e-5)
    same(merged(recipe("task_arithmetic", [one, base], base, weight=1.0)), source(one), 1e-6)
    half = merged(recipe("task_arithmetic", [one], base, weight=1.0, **{"lambda": 0.5}))
    same(half, merged(recipe("task_arithmetic", [one], base, weight=0.5)), 1e-6)


def _shrinking(values: torch.Tensor, place: int) -> float:
    return -abs(float(values[place]))


def _ties(base: torch.Tensor, tensors: list[torch.Tensor], weight: float, density: float) -> torch.Tensor:
    """TIES as its paper writes it, in the plainest words."""
    deltas = []
    for tensor in tensors:
        delta = (tensor - base).double().flatten()
        order = sorted(range(len(delta)), key=partial(_shrinking, delta))
        keep = torch.zeros(len(delta), dtype=torch.bool)
        keep[order[: int(density * len(delta))]] = True
        deltas.append(delta * keep * weight)
    sign = torch.where(sum(deltas) >= 0, 1.0, -1.0)
    total, count = torch.zeros_like(sign), torch.zeros_like(sign)
    for delta in deltas:
        agrees = torch.sign(delta) == sign
        total, count = total + delta * agrees, count + weight * agrees
    return base + (total / count.clamp_min(1e-30).where(count > 0, torch.ones_like(count))).reshape(base.shape)


def test_ties_trims_elects_and_averages_what_agrees(models: list[ModelReference]) -> None:
    result = merged(recipe("ties", list(models[1:]), models[0]))
    for name in ("embed.weight", "layers.1.a.weight", "norm.weight"):
        expected = _ties(source(models[0])[name], [source(model)[name] for model in models[1:]], 0.5, 0.4)
        torch.testing.assert_close(result[name].double(), expected, rtol=1e-5, atol=1e-6)


def test_dare_drops_the_share_it_should_and_keeps_the_l1_norm(models: list[ModelReference]) -> None:
    base, one = models[:2]
    for seed in (0, 1):
        result = merged(recipe("dare_linear", [one], base, weight=1.0, density=0.3, seed=seed))[LARGE]
        delta = (source(one)[LARGE] - source(base)[LARGE]).double()
        change = (result - source(base)[LARGE]).double()
        kept = change.abs() > 1e-9
        assert kept.double().mean().item() == pytest.approx(0.3, abs=0.01)
        assert change.abs().sum().item() == pytest.approx(delta.abs().sum().item(), rel=1e-4)
        assert (change / delta)[kept].median().item() == pytest.approx(1 / 0.3, rel=0.05)
    plain = merged(recipe("dare_linear", [one], base, weight=1.0, density=0.3, rescale=False))[LARGE]
    change = (plain - source(base)[LARGE]).double()
    assert (change[change.abs() > 1e-6] / delta[change.abs() > 1e-6]).median().item() == pytest.approx(1.0, rel=1e-3)


def test_masks_follow_seed_source_and_tensor_and_nothing_else(models: list[ModelReference]) -> None:
    def masks(**own: Any) -> dict[str, torch.Tensor]:
        result = merged(recipe("dare_linear", [models[1]], models[0], weight=1.0, **own))
        return {name: (tensor - source(models[0])[name]).abs() > 1e-9 for name, tensor in result.items()}

    first, again, other = masks(seed=3), masks(seed=3), masks(seed=4)
    same(first, again)
    assert (first[LARGE] != other[LARGE]).float().mean().item() == pytest.approx(2 * 0.4 * 0.6, abs=0.02)
    assert masks(seed=3, density=0.4, rescale=False)[LARGE].equal(first[LARGE])
    # A denser mask of the same seed holds the thinner one: neighbours in the search are neighbours in weights.
    assert bool((masks(seed=3, density=0.6)[LARGE] | ~first[LARGE]).all())


def test_a_recipe_of_recipes_is_the_chain_of_its_merges(models: list[ModelReference], tmp_path: Path) -> None:
    inner = recipe("ties", list(models[1:3]), models[0])
    other = recipe("dare_ties", list(models[1:3]), models[0], seed=5)
    merge_recipe(inner, {}, tmp_path / "inner")
    merge_recipe(other, {}, tmp_path / "other")
    chain = recipe("slerp", [ModelReference(str(tmp_path / "inner")), ModelReference(str(tmp_path / "other"))])
    # Float32 models lose nothing when they are written; but sums over a tensor are added up in another order where
    # torch makes the inner merges of one pass, and the native kernels those of three.
    same(merged(recipe("slerp", [inner, other])), merged(chain), tolerance=1e-6)
    deep: Recipe | ModelReference = models[0]
    for _ in range(5):
        deep = recipe("linear", [deep, models[1]])
    assert isinstance(deep, Recipe)
    expected = source(models[0])[LARGE] / 32 + source(models[1])[LARGE] * 31 / 32
    torch.testing.assert_close(merged(deep)[LARGE], expected, rtol=1e-5, atol=1e-6)


def test_gradients_filters_and_precedence(models: list[ModelReference]) -> None:
    one, other = models[:2]
    gradient = Recipe.of_models("linear", [(one, {"weight": [0.0, 1.0]}), (other, {"weight": 0.5})])
    result = merged(gradient)
    same({n: result[n] for n in ("embed.weight", LARGE, "norm.weight")},
         {n: source(other)[n] for n in ("embed.weight", LARGE, "norm.weight")})  # fmt: skip
    mixed = (source(one)["layers.1.a.weight"] + 0.5 * source(other)["layers.1.a.weight"]) / 1.5
    torch.testing.assert_close(result["layers.1.a.weight"], mixed)
    filtered = Recipe.of_models(
        "linear",
        [(one, {"weight": [{"filter": "norm", "value": 0.0}]}), (other, {})],
        parameters={"weight": [{"filter": "embed", "value": 3.0}, {"value": 1.0}], "normalize": False},
    )
    result = merged(filtered)
    torch.testing.assert_close(result["norm.weight"], source(other)["norm.weight"])
    torch.testing.assert_close(
        result["embed.weight"], 3 * (source(one)["embed.weight"] + source(other)["embed.weight"])
    )


def test_without_a_base_the_common_ancestor_is_taken_else_the_average(tmp_path: Path) -> None:
    base = raw_model(tmp_path / "base", random_tensors(0, 50))
    tuned = [raw_model(tmp_path / f"t{i}", random_tensors(i, 50), _name_or_path=str(base)) for i in (1, 2)]
    card = tuned[1] / "README.md"
    set_config(tuned[1], _name_or_path="")
    card.write_text(f"---\nbase_model:\n- {base}\n---\nA model.\n")
    references = [ModelReference(str(path)) for path in (*tuned, base)]
    what = recipe("ties", list(references))
    with plan_merge(what) as plan:
        assert any("they were made from" in note and str(base) in note for note in plan.notes)
        same(merge_in_memory(plan), merged(recipe("ties", list(references[:2]), references[2])))
    card.unlink()
    with plan_merge(recipe("task_arithmetic", list(references[:2]), weight=1.0)) as plan:
        assert any("average" in note for note in plan.notes)
        mean = {n: (t + weights(tuned[1])[n]) / 2 for n, t in weights(tuned[0]).items()}
        same(merge_in_memory(plan), mean, 1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_in_a_source_is_told_and_nothing_is_left(tmp_path: Path, value: float) -> None:
    good, bad = (raw_model(tmp_path / name, random_tensors(1)) for name in ("good", "bad"))
    tensor = weights(bad)[LARGE]
    tensor[66_000] = value
    rewrite(bad, {LARGE: tensor})
    with pytest.raises(NonFiniteWeights, match=rf"bad: tensor '{LARGE}' .* element 66000"):
        merge_recipe(
            recipe("ties", [ModelReference(str(bad))], ModelReference(str(good))), {}, tmp_path / "deep" / "out"
        )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad", "good"]


def test_a_result_that_does_not_fit_its_type_is_told(models: list[ModelReference]) -> None:
    what = replace(recipe("linear", [models[0]], weight=1e6, normalize=False), out_dtype="float16")
    with pytest.raises(NonFiniteWeights, match=r"do not fit into float16"):
        merged(what)


def test_large_finite_values_are_no_infinity(tmp_path: Path) -> None:
    huge = raw_model(tmp_path / "m", {"layers.0.w": torch.full((1000,), 3e38), "layers.1.w": torch.ones(2)})
    result = merged(Recipe.of_source(ModelReference(str(huge))))
    assert bool((result["layers.0.w"] == 3e38).all())


def test_element_types(tmp_path: Path) -> None:
    tensors = random_tensors(0, 300)
    tensors |= {"ids": torch.arange(5), "layers.0.wide": torch.randn(4, dtype=torch.float64) * 1e200}
    tensors |= {"layers.1.narrow": torch.randn(4).to(torch.float8_e4m3fn)}
    one = ModelReference(str(raw_model(tmp_path / "a", tensors)))
    two = ModelReference(str(raw_model(tmp_path / "b", {**tensors, "ids": torch.arange(5) + 9})))
    result = merged(recipe("linear", [one, two]))
    assert {name: tensor.dtype for name, tensor in result.items()} == {n: t.dtype for n, t in tensors.items()}
    assert torch.equal(result["ids"], tensors["ids"])
    assert torch.equal(result["layers.0.wide"], tensors["layers.0.wide"])
    with plan_merge(replace(recipe("linear", [one]), dtype="bfloat16")) as plan:
        assert plan.config["torch_dtype"] == "bfloat16"
        result = {tensor.name: torch_dtype(tensor.dtype) for tensor in plan.tensors}
    assert result["ids"] == torch.int64
    assert result[LARGE] == torch.bfloat16


def test_shapes_that_do_not_fit_are_told_before_anything_is_written(
    tmp_path: Path, models: list[ModelReference]
) -> None:
    wide = raw_model(tmp_path / "wide", {**random_tensors(0), "norm.weight": torch.ones(9)})
    with pytest.raises(ShapeMismatch, match=r"norm\.weight is \[8\] in .*m0 and \[9\] in .*wide"):
        plan_merge(recipe("linear", [models[0], ModelReference(str(wide))]))
    short = raw_model(
        tmp_path / "short", {n: t for n, t in random_tensors(0).items() if "1" not in n}, num_hidden_layers=1
    )
    with pytest.raises(ShapeMismatch, match="different depth"):
        plan_merge(recipe("linear", [models[0], ModelReference(str(short))]))
    lacking = raw_model(tmp_path / "lacking", {**random_tensors(0), "layers.0.b": torch.ones(1)})
    with pytest.raises(ShapeMismatch, match=r"layers\.0\.b .* missing in .*m0"):
        plan_merge(recipe("linear", [ModelReference(str(lacking)), models[0]]))
    other = raw_model(tmp_path / "other", random_tensors(0), model_type="different")
    with pytest.raises(ModelError, match="'different'"):
        plan_merge(recipe("linear", [models[0], ModelReference(str(other))]))


def test_layers_that_are_not_there_are_told(models: list[ModelReference]) -> None:
    with pytest.raises(RecipeError, match=r"layers 0 to 3 .* has layers 0 to 2"):
        plan_merge(Recipe("passthrough", (Slice((Input(models[0], (0, 3)),)),)))


def test_too_little_room_is_told_at_once(
    models: list[ModelReference], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(DiskFull, match="1,000 left"):
        merge_recipe(recipe("linear", [models[0]]), {}, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_in_it_is_left_alone(models: list[ModelReference], tmp_path: Path) -> None:
    (tmp_path / "keep.txt").write_text("mine")
    with pytest.raises(InvalidInput, match="not empty"):
        merge_recipe(recipe("linear", [models[0]]), {}, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["keep.txt"]


def test_progress_counts_every_byte_once(models: list[ModelReference]) -> None:
    seen: list[tuple[int, int]] = []
    with plan_merge(recipe("ties", list(models[1:]), models[0])) as plan:
        progress: Callable[[int, int], None] = lambda done, total: seen.append((done, total))  # noqa: E731
        merge_in_memory(plan, progress=progress, piece_elements=16_384)
        assert seen[-1] == (plan.bytes, plan.bytes)
        assert [done for done, _ in seen] == sorted(done for done, _ in seen)
        assert plan.read_bytes == 4 * plan.bytes


def test_a_killed_merge_leaves_nothing_under_its_name_and_the_next_one_tidies_up(
    models: list[ModelReference], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    script = (
        "import sys, time, pathlib; from evomerge_merging import *; from evomerge_common.domain.recipe import *\n"
        "r = Recipe.of_models('linear', [(ModelReference(sys.argv[1]), {'weight': 1.0})])\n"
        "merge_recipe(r, {}, pathlib.Path(sys.argv[2]), progress=lambda *_: time.sleep(60))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, models[0].name, str(out)])
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob(".out.partial-*/model.safetensors")):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not out.exists()
    merge_recipe(recipe("linear", [models[0]]), {}, out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_chains_of_linear_merges_are_one_sum_over_their_sources(models: list[ModelReference]) -> None:
    base, one, two, three = models
    chain: Recipe = recipe("task_arithmetic", [one, two], base, weight=0.4)
    for other in (two, three, one):
        chain = recipe("task_arithmetic", [chain, other], base, weight=[0.7, 0.2], **{"lambda": 0.9, "normalize": True})
        chain = recipe("linear", [chain, recipe("linear", [three, recipe("ties", [one], base)])], weight=[0.3, 1.0])
    with plan_merge(chain) as plan:
        flat = merge_in_memory(plan)
        assert plan.recipe.digest == chain.digest
        for tensor in plan.tensors:
            assert isinstance(tensor.node, Apply)
            assert tensor.node.base is None
            assert sorted(
                child.method.name if isinstance(child, Apply) else child.source for child in tensor.node.inputs
            ) == (sorted([model.name for model in models] + ["ties"]))
    by_hand: dict[Recipe, dict[str, torch.Tensor]] = {}

    def value(what: Recipe | ModelReference) -> dict[str, torch.Tensor]:
        if isinstance(what, ModelReference):
            return {name: tensor.double() for name, tensor in source(what).items()}
        if what not in by_hand:
            inputs = [value(item.model) for item in what.slices[0].inputs]
            if what.method == "ties":
                by_hand[what] = {name: tensor.double() for name, tensor in merged(what).items()}
            else:
                by_hand[what] = {name: sum_of(what, name, inputs) for name in inputs[0]}
        return by_hand[what]

    def sum_of(what: Recipe, name: str, inputs: list[dict[str, torch.Tensor]]) -> torch.Tensor:
        depth = {"layers.0.a.weight": 0.0, "layers.1.a.weight": 1.0}.get(name, 0.0)
        weight = what.parameters["weight"]
        w = weight[0] + (weight[1] - weight[0]) * depth if isinstance(weight, list) else weight
        if what.method == "linear":
            return sum(item[name] for item in inputs) / len(inputs)
        assert what.base is not None
        origin = value(what.base)[name]
        total = w * len(inputs) if what.parameters.get("normalize") else 1.0
        return origin + what.parameters.get("lambda", 1.0) / total * sum(w * (item[name] - origin) for item in inputs)

    expected = value(chain)
    same(flat, {name: tensor.float() for name, tensor in expected.items()}, 2e-6)


@pytest.mark.parametrize("strategy", ["random", "magnitude"])
@pytest.mark.parametrize("on", ["delta", "weight"])
def test_a_weight_mask_is_the_librarys_mask_before_the_merge(
    models: list[ModelReference], strategy: str, on: str
) -> None:
    base, one = models[:2]
    text = f"""
merge_method: linear
base_model: {base}
models: [{{model: {one}, parameters: {{weight: 1}}}}]
weight_mask: {{rate: 0.3, strategy: {strategy}, on: {on}, exclude: [norm]}}
"""
    result = merged(read_recipe_text(text))
    for name, tensor in result.items():
        origin = source(base)[name] if on == "delta" else torch.zeros(())
        left, whole = tensor - origin, source(one)[name] - origin
        if "norm" in name:
            torch.testing.assert_close(left, whole)
            continue
        present = left.abs() > 1e-7
        torch.testing.assert_close(left[present], whole[present] / 0.7, rtol=1e-3, atol=1e-5)
        if strategy == "magnitude":
            assert int((~present).sum()) == int(0.3 * tensor.numel())
            expected = mask_input_with_mask_rate(whole, 0.3, True, strategy)
            torch.testing.assert_close(left, expected, rtol=1e-3, atol=1e-5)
        elif tensor.numel() > 1000:
            assert present.float().mean().item() == pytest.approx(0.7, abs=0.01)
