"""LoRA and DoRA adapters as sources, against PEFT itself."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from evomerge_common.domain.recipe import Input, Recipe, Slice
from evomerge_common.domain.reference import ModelReference
from evomerge_common.errors import EvoMergeException, ModelError, ModelNotFound, ShapeMismatch, UnsafeFile
from evomerge_merging import execute, merge_in_memory, merge_into, plan_merge
from evomerge_merging.engine.execute import PIECE_ELEMENTS
from evomerge_models.adapter import check_adapter_config
from helpers.tiny_merging import HIDDEN, make_model, weights

transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()

TARGETS = ["q_proj", "v_proj", "down_proj"]
PLAIN: dict[str, Any] = {"r": 8, "lora_alpha": 12, "target_modules": TARGETS}
UNTIED: dict[str, Any] = {"tie_word_embeddings": False}


def load(folder: Path, kind: str = "llama", dtype: torch.dtype = torch.float32) -> Any:
    name = "AutoModelForMaskedLM" if kind == "bert" else "AutoModelForCausalLM"
    return getattr(transformers, name).from_pretrained(folder, dtype=dtype)


def make_adapter(
    folder: Path, base: Path, kind: str = "llama", *, seed: int = 0, dtype: torch.dtype = torch.float32, **config: Any
) -> Path:
    """An adapter as PEFT saves it, every trained number of which is off its beginning."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        model = get_peft_model(load(base, kind, dtype), LoraConfig(**{**PLAIN, **config}))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.05)
        model.save_pretrained(folder)
    return folder


def merged_by_peft(base: Path, adapter: Path, kind: str = "llama", dtype: torch.dtype = torch.float32) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(load(base, kind, dtype), adapter).merge_and_unload()


def on(base: Path, adapter: Path) -> ModelReference:
    return ModelReference(str(base), adapter=str(adapter))


CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "plain": ("llama", {}, {}),
    "rank and alpha patterns, rslora": ("llama", {}, {
        "rank_pattern": {"down_proj": 4, r"model\.layers\.[01]\.self_attn\.q_proj": 2},
        "alpha_pattern": {"v_proj": 32, "^model.layers.1.mlp.down_proj": 3}, "use_rslora": True}),
    "dora": ("llama", {}, {"use_dora": True}),
    "dora with rank and alpha patterns": ("llama", {}, {
        "use_dora": True, "rank_pattern": {"down_proj": 4}, "alpha_pattern": {"v_proj": 32}}),
    "dora of embedding and head": ("llama", UNTIED, {
        "use_dora": True, "target_modules": ["q_proj", "embed_tokens", "lm_head"]}),
    "embeddings in modules_to_save": ("llama", UNTIED, {"modules_to_save": ["embed_tokens", "lm_head"]}),
    "a norm in modules_to_save": ("llama", {}, {"modules_to_save": ["norm"]}),
    "all biases": ("qwen2", {}, {"bias": "all"}),
    "biases of lora layers": ("qwen2", {}, {"bias": "lora_only"}),
    "lora_bias": ("qwen2", {}, {"lora_bias": True, "target_modules": ["q_proj", "v_proj"]}),
    "trained tokens": ("llama", UNTIED, {"trainable_token_indices": [3, 7]}),
    "trained tokens by module": ("llama", {}, {"trainable_token_indices": {"embed_tokens": [39, 0]}}),
    "fan_in_fan_out": ("gpt2", {}, {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    "fan_in_fan_out dora": ("gpt2", {}, {
        "target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True, "use_dora": True}),
    "bert": ("bert", {}, {"target_modules": ["query", "dense"]}),
    "no layers but one": ("mistral", {}, {"layers_to_transform": [2], "layers_pattern": "layers"}),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_equals_pefts_merge_within_a_step(tmp_path: Path, case: str, dtype: torch.dtype) -> None:
    kind, of_base, of_adapter = CASES[case]
    base = make_model(tmp_path / "base", kind, dtype=dtype, **of_base)
    adapter = make_adapter(tmp_path / "adapter", base, kind, dtype=dtype, **of_adapter)
    expected = merged_by_peft(base, adapter, kind, dtype).state_dict()
    with plan_merge(Recipe.of_source(on(base, adapter))) as plan:
        found = merge_in_memory(plan)
    before = weights(base)
    assert found.keys() == before.keys()
    step = 2.0**-7 if dtype == torch.bfloat16 else 2.0**-20
    changed = 0
    for name, tensor in found.items():
        wanted = expected[name].float()
        assert tensor.dtype == dtype
        assert torch.all((tensor.float() - wanted).abs() <= step * wanted.abs() + 1e-7), name
        changed += not torch.equal(tensor, before[name])
    assert changed >= (3 if case == "no layers but one" else 4)


@pytest.mark.parametrize(
    "config",
    [
        {"modules_to_save": ["embed_tokens"]},
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"trainable_token_indices": [1, 2]},
    ],
    ids=str,
)
def test_a_tied_head_answers_as_the_model_that_was_trained(tmp_path: Path, config: dict[str, Any]) -> None:
    base = make_model(tmp_path / "base", tie_word_embeddings=True, spread=0.3)
    adapter = make_adapter(tmp_path / "adapter", base, **config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trained = PeftModel.from_pretrained(load(base), adapter).eval()
    with plan_merge(Recipe.of_source(on(base, adapter))) as plan:
        execute(plan, tmp_path / "out")
    ids = torch.arange(1, 20)[None]
    with torch.no_grad():
        assert torch.allclose(load(tmp_path / "out").eval()(ids).logits, trained(ids).logits, atol=1e-4)


GROWN: dict[str, dict[str, Any]] = {
    "nothing but the rows": {},
    "embedding and head saved": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "embedding saved": {"modules_to_save": ["embed_tokens"]},
    "head saved": {"modules_to_save": ["lm_head"]},
    "embedding saved, tied again": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "new tokens trained": {"trainable_token_indices": {"embed_tokens": [40, 41, 42, 43]}},
    "old and new tokens trained": {"trainable_token_indices": {"embed_tokens": [3, 43]}},
    "other tokens of the head": {"trainable_token_indices": {"embed_tokens": [3, 42], "lm_head": [41, 5]}},
    "lora on the embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "lora on the head": {"target_modules": ["q_proj", "lm_head"]},
    "lora on both": {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
    "lora on the head, embedding saved": {
        "target_modules": ["q_proj", "lm_head"], "modules_to_save": ["embed_tokens"]},
    "a norm and a block saved": {"target_modules": ["q_proj"], "modules_to_save": ["norm", "mlp"]},
}  # fmt: skip


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("case", "rows"), [(case, rows) for case in GROWN for rows in (44, 40) if rows == 44 or "token" not in case]
)
def test_a_grown_vocabulary_answers_as_the_model_that_was_trained(
    tmp_path: Path, case: str, tied: bool, rows: int
) -> None:
    """PEFT saves embeddings in five ways, with copies of what they were before; 40 rows are those of the base."""
    base = make_model(tmp_path / "base", tie_word_embeddings=tied, spread=0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = load(base)
        model.resize_token_embeddings(rows, mean_resizing=False)
        trained = get_peft_model(model, LoraConfig(**{**PLAIN, "task_type": "CAUSAL_LM", **GROWN[case]}))
        with torch.no_grad():
            for number, parameter in enumerate(trained.parameters()):
                if parameter.requires_grad:
                    parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) * 0.2)
        trained.save_pretrained(tmp_path / "adapter")
    lacking = not tied and rows == 44 and case in {"lora on the embedding", "lora on the head"}
    recipe = Recipe.of_source(on(base, tmp_path / "adapter"))
    if lacking:  # PEFT itself makes up the rows that it did not save
        with pytest.raises(ShapeMismatch, match="does not hold the new rows of both"):
            plan_merge(recipe)
        return
    with plan_merge(recipe) as plan:
        execute(plan, tmp_path / "out")
    merged, ids = load(tmp_path / "out").eval(), torch.arange(rows)[None]
    with torch.no_grad():
        assert torch.allclose(merged(ids).logits, trained.eval()(ids).logits, atol=1e-4)
    assert merged.config.vocab_size == rows


def test_a_wrapped_module_that_nothing_replaces_is_refused(tmp_path: Path) -> None:
    base = make_model(tmp_path / "base")
    adapter = make_adapter(tmp_path / "adapter", base, modules_to_save=["norm"])

    def forget(tensors: dict[str, torch.Tensor]) -> None:
        name = next(name for name in tensors if name.endswith("norm.weight"))
        tensors[name.replace(".weight", ".original_module.weight")] = tensors.pop(name)

    change_tensors(adapter, forget)
    with pytest.raises(
        ModelError, match=r"original_module\.weight' is a module that was replaced, but nothing replaces"
    ):
        plan_merge(Recipe.of_source(on(base, adapter)))


def test_a_vocabulary_that_the_adapter_made_larger(tmp_path: Path) -> None:
    base = make_model(tmp_path / "base", **UNTIED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = load(base)
        model.resize_token_embeddings(44)
        trained = get_peft_model(model, LoraConfig(**PLAIN)).eval()
        trained.save_pretrained(tmp_path / "adapter")
    with plan_merge(Recipe.of_source(on(base, tmp_path / "adapter"))) as plan:
        execute(plan, tmp_path / "out")
    ids = torch.arange(40, 44)[None]
    with torch.no_grad():
        assert torch.allclose(load(tmp_path / "out").eval()(ids).logits, trained(ids).logits, atol=1e-4)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, two adapters of it, and one with DoRA."""
    root = tmp_path_factory.mktemp("family")
    make_model(root / "base", **UNTIED)
    make_adapter(root / "one", root / "base", seed=1)
    make_adapter(root / "two", root / "base", seed=2, r=2, target_modules=["q_proj", "up_proj"])
    make_adapter(root / "dora", root / "base", seed=3, use_dora=True)
    return root


def recipe_of(root: Path, method: str, names: tuple[str, ...] = ("one", "two"), **options: Any) -> Recipe:
    base = ModelReference(str(root / "base"))
    inputs = [(on(root / "base", root / name), {"weight": 0.7}) for name in names]
    return Recipe.of_models(method, inputs, base=base, **options)


@pytest.mark.parametrize("method", ["task_arithmetic", "linear", "ties", "dare_ties"])
def test_adapters_merge_like_the_models_that_they_make(family: Path, tmp_path: Path, method: str) -> None:
    for name in ("one", "two", "dora"):
        merged_by_peft(family / "base", family / name).save_pretrained(tmp_path / name)
    names = ("one", "two", "dora")
    base = ModelReference(str(family / "base"))
    whole = Recipe.of_models(
        method, [(ModelReference(str(tmp_path / name)), {"weight": 0.7}) for name in names], base=base
    )
    # masks follow a source's identity, so the comparison with random ones needs the same keys
    parts = recipe_of(family, method, names)
    if method == "dare_ties":
        whole, parts = (replace_density(recipe) for recipe in (whole, parts))
    with plan_merge(whole) as plan:
        expected = merge_in_memory(plan)
    with plan_merge(parts) as plan:
        found = merge_in_memory(plan)
    for name, tensor in expected.items():
        assert torch.allclose(found[name], tensor, atol=2e-6), name


def replace_density(recipe: Recipe) -> Recipe:
    parts = tuple(
        Slice(tuple(Input(i.model, None, {**i.parameters, "density": 1.0}) for i in s.inputs)) for s in recipe.slices
    )
    return Recipe(recipe.method, parts, recipe.base, recipe.parameters)


@pytest.mark.parametrize("method", ["task_arithmetic", "ties"])
def test_what_no_adapter_changes_is_the_bases_own(family: Path, method: str) -> None:
    with plan_merge(recipe_of(family, method)) as plan:
        found = plan.kept()
        assert found is not None
        root, kept = found
        assert root.folder == family / "base"
        merged = merge_in_memory(plan)
    touched = {name for name in merged if any(part in name for part in (*TARGETS, "up_proj"))}
    assert kept == merged.keys() - touched
    base = weights(family / "base")
    assert all(torch.equal(merged[name], base[name]) for name in kept)


def test_adapters_alone_are_on_the_recipes_base_and_need_none_for_task_vectors(family: Path) -> None:
    alone = [(ModelReference(str(family / name)), {"weight": 0.7}) for name in ("one", "two")]
    with plan_merge(recipe_of(family, "task_arithmetic")) as plan:
        expected = merge_in_memory(plan)
    for base in (ModelReference(str(family / "base")), None):
        with plan_merge(Recipe.of_models("task_arithmetic", alone, base=base)) as plan:
            found = merge_in_memory(plan)
            assert base or any("are adapters of" in note for note in plan.notes)
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_bits_do_not_depend_on_threads_or_pieces_with_adapters(family: Path) -> None:
    recipe = recipe_of(family, "task_arithmetic", ("one", "two", "dora"))
    results = []
    for threads, pieces in ((1, PIECE_ELEMENTS), (2, 1 << 14), (3, 1 << 16)):
        with plan_merge(recipe) as plan:
            results.append(merge_in_memory(plan, threads=threads, piece_elements=pieces))
    for other in results[1:]:
        assert all(torch.equal(other[name], results[0][name]) for name in other)


@pytest.mark.parametrize("rows", [40_000, 40])
def test_large_tensors_in_pieces_are_the_product_in_one(tmp_path: Path, rows: int) -> None:
    """Wider than a block of rows, cut into pieces that begin in the middle of one."""
    base = make_model(tmp_path / "base", vocab_size=rows, **UNTIED)
    adapter = make_adapter(tmp_path / "adapter", base, target_modules=["embed_tokens", "lm_head"])
    expected = merged_by_peft(base, adapter).state_dict()
    with plan_merge(Recipe.of_source(on(base, adapter))) as plan:
        found = merge_in_memory(plan, piece_elements=1 << 14)
        other = merge_in_memory(plan, threads=3, piece_elements=3 << 14)
        assert all(torch.equal(found[name], tensor) for name, tensor in other.items())
        targets = {name: torch.zeros_like(tensor) for name, tensor in found.items() if "norm" not in name}
        merge_into(plan, targets, threads=2)
        assert all(torch.equal(found[name], tensor) for name, tensor in targets.items())
        picked = plan.sources["sum over base of " + str(on(base, adapter))].store
        rows_wanted = torch.tensor([rows - 1, 0, rows // 2])
        assert torch.allclose(picked.rows("lm_head.weight", rows_wanted), found["lm_head.weight"][rows_wanted])
        assert torch.equal(picked.tensor("lm_head.weight"), found["lm_head.weight"])
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert torch.allclose(found[name], expected[name], atol=1e-6)


# ---- what cannot be applied ----


def change_config(folder: Path, **fields: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")


def _first(tensors: dict[str, torch.Tensor], part: str) -> str:
    return next(name for name in tensors if part in name)


def _lying_header(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


def _pickle(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def _nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors[_first(tensors, "lora_A")][0, 0] = float("nan")


def _narrow(tensors: dict[str, torch.Tensor]) -> None:
    tensors[_first(tensors, "lora_A")] = torch.zeros(8, HIDDEN - 1)


def _flat(tensors: dict[str, torch.Tensor]) -> None:
    tensors[_first(tensors, "lora_B")] = torch.zeros(HIDDEN)


def _unknown(tensors: dict[str, torch.Tensor]) -> None:
    name = _first(tensors, "q_proj.lora_A")
    for part in ("lora_A", "lora_B"):
        other = name.replace("lora_A", part)
        tensors[other.replace("q_proj", "z_proj")] = tensors.pop(other)


def _alone(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[_first(tensors, "lora_B")]


def _strange(tensors: dict[str, torch.Tensor]) -> None:
    tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_E"] = torch.zeros(8)


def _no_config(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("[]")


BAD: dict[str, tuple[Callable[[Path], None], type[EvoMergeException], str]] = {
    "another kind": (lambda f: change_config(f, peft_type="IA3"), ModelError, "peft_type: 'IA3'"),
    "replicated layers": (lambda f: change_config(f, layer_replication=[[0, 2]]), ModelError, "layer_replication"),
    "parameters": (lambda f: change_config(f, target_parameters=["experts"]), ModelError, "target_parameters"),
    "activated": (lambda f: change_config(f, alora_invocation_tokens=[1]), ModelError, "alora_invocation_tokens"),
    "a key of tomorrow": (lambda f: change_config(f, use_tomorrow=True), ModelError, "use_tomorrow"),
    "pissa": (lambda f: change_config(f, init_lora_weights="pissa"), ModelError, "init_lora_weights: 'pissa'"),
    "rank of a word": (lambda f: change_config(f, r="8"), ModelError, "r: must be"),
    "another rank": (lambda f: change_config(f, r=4), ShapeMismatch, "rank 4"),
    "no magnitudes": (lambda f: change_config(f, use_dora=True), ModelError, "use_dora"),
    "exploding pattern": (lambda f: change_config(f, rank_pattern={"(a+)+$": 2}), ModelError, "rank_pattern"),
    "no config": (_no_config, ModelError, "adapter_config.json"),
    "lying header": (_lying_header, UnsafeFile, "adapter_model.safetensors"),
    "a pickle": (_pickle, UnsafeFile, "is not read"),
    "too narrow": (lambda f: change_tensors(f, _narrow), ShapeMismatch, "B·A"),
    "no matrix": (lambda f: change_tensors(f, _flat), ModelError, "only matrices"),
    "unknown target": (lambda f: change_tensors(f, _unknown), ShapeMismatch, "z_proj"),
    "one factor": (lambda f: change_tensors(f, _alone), ModelError, "counterpart"),
    "a strange tensor": (lambda f: change_tensors(f, _strange), ModelError, "lora_E"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_adapter_is_refused_before_anything_is_computed(family: Path, tmp_path: Path, case: str) -> None:
    damage, error, words = BAD[case]
    adapter = shutil.copytree(family / "one", tmp_path / "bad")
    damage(adapter)
    with pytest.raises(error, match=words):
        plan_merge(Recipe.of_source(on(family / "base", adapter)))


def test_nan_in_a_factor_is_told(family: Path, tmp_path: Path) -> None:
    adapter = shutil.copytree(family / "one", tmp_path / "bad")
    change_tensors(adapter, _nan)
    with plan_merge(Recipe.of_source(on(family / "base", adapter))) as plan, pytest.raises(ModelError, match="NaN"):
        merge_in_memory(plan)


def test_an_adapter_whose_base_is_not_here(family: Path, tmp_path: Path) -> None:
    adapter = shutil.copytree(family / "one", tmp_path / "alone")
    change_config(adapter, base_model_name_or_path="org/base")
    with pytest.raises(ModelNotFound, match=r"LoRA adapter of 'org/base'"):
        plan_merge(Recipe.of_source(ModelReference(str(adapter))))
    change_config(adapter, base_model_name_or_path=None)
    with pytest.raises(ModelError, match="does not tell its base"):
        plan_merge(Recipe.of_source(ModelReference(str(adapter))))


def test_config_keys_that_change_nothing_are_taken() -> None:
    check_adapter_config({"peft_type": "LORA", "lora_dropout": 0.1, "megatron_config": None, "new": False}, "here")
