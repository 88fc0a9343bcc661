"""Layers that are left out, repeated or moved go on doing what they did, or the recipe is refused before a byte."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge_common.domain.recipe import Input, Recipe, Slice
from evomerge_common.domain.reference import ModelReference
from evomerge_common.errors import RecipeError, ShapeMismatch
from evomerge_merging import merge_recipe, plan_merge
from evomerge_merging.engine import architecture, layer_fields
from helpers import families
from helpers.families import expected, logits, stored
from helpers.tiny_merging import load_model, rewrite

# Family, its class, settings, fields that the hub's older configs lack, and where each layer of the result comes from.
_MOVED: dict[str, tuple[str, dict[str, Any], tuple[str, ...], tuple[int, ...], dict[str, Any]]] = {
    "gemma2": (
        "Gemma2ForCausalLM", {}, ("layer_types",), (0, 1, 2, 2, 3),
        {"layer_types": ["sliding_attention", "full_attention", *["sliding_attention"] * 2, "full_attention"]},
    ),
    "smollm3": (
        "SmolLM3ForCausalLM", {}, ("layer_types", "no_rope_layers"), (0, 1, 3), {"no_rope_layers": [1, 1, 0]},
    ),
    "qwen3_moe": ("Qwen3MoeForCausalLM", {}, (), (1, 2, 3), {"mlp_only_layers": []}),
    "gemma3_text": (
        "Gemma3ForCausalLM", {}, ("layer_types",), (0, 1, 3, 2),
        {"layer_types": ["sliding_attention"] * 3 + ["full_attention"]},
    ),
    "bamba": ("BambaForCausalLM", {}, (), (1, 0, 2, 1), {"attn_layer_indices": [0, 3]}),
    "jamba": ("JambaForCausalLM", {}, (), (0, 2, 3), {"attn_layer_offset": 2}),
    "llama4_text": ("Llama4ForCausalLM", {"moe_layers": [0, 2]}, (), (0, 1, 3), {"moe_layers": [0]}),
    "deepseek_v3": ("DeepseekV3ForCausalLM", {}, (), (1, 2, 3), {"first_k_dense_replace": 0}),
    "ernie4_5_moe": ("Ernie4_5_MoeForCausalLM", {}, (), (0, 0, 1, 2), {"moe_layer_start_index": 2}),
}  # fmt: skip


def source(folder: Path, family: str, class_name: str, drop: tuple[str, ...] = (), **settings: Any) -> Any:
    model = families.make(family, class_name, folder, 1, **settings)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({key: config[key] for key in config if key not in drop}))
    return model


@pytest.mark.parametrize("family", _MOVED)
def test_moved_layers_go_on_doing_what_they_did(family: str, tmp_path: Path) -> None:
    class_name, settings, drop, order, fields = _MOVED[family]
    model = source(tmp_path / "in", family, class_name, drop, **settings)
    merge_recipe(families.stack(tmp_path / "in", order), {}, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {key: config[key] for key in fields} == fields
    wanted, got = families.moved_logits(model, order), logits(load_model(tmp_path / "out"))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "class_name", "order", "why"),
    [
        ("jamba", "JambaForCausalLM", (0, 1, 1, 2), "layer 2 of the result comes from layer 1"),
        ("deepseek_v3", "DeepseekV3ForCausalLM", (1, 0, 2), "layer 0 of the result|layer 1 of the result"),
        ("gemma3n_text", "Gemma3nForCausalLM", (0, 2, 1, 3), "holds values of all layers in one tensor"),
        ("modernbert", "ModernBertForMaskedLM", (1, 2, 3), "attn_norm"),
    ],
)
def test_what_a_config_cannot_say_is_refused_before_a_byte(
    family: str, class_name: str, order: tuple[int, ...], why: str, tmp_path: Path
) -> None:
    source(tmp_path / "in", family, class_name)
    with pytest.raises(RecipeError, match=why):
        merge_recipe(families.stack(tmp_path / "in", order), {}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("family", "class_name"),
    [
        ("gemma3", "Gemma3ForConditionalGeneration"),
        ("llava", "LlavaForConditionalGeneration"),
        ("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration"),
    ],
)
def test_the_text_models_layers_are_sliced_not_a_tower_as_deep(family: str, class_name: str, tmp_path: Path) -> None:
    model = source(tmp_path / "in", family, class_name)
    names = stored(tmp_path / "in")
    stack = architecture.layer_stack(names, json.loads((tmp_path / "in" / "config.json").read_text()))
    assert stack is not None
    assert "vision" not in stack.prefix
    assert "visual" not in stack.prefix
    merge_recipe(families.stack(tmp_path / "in", (0, 2, 3)), {}, tmp_path / "out")
    made = stored(tmp_path / "out")
    assert all(made[name].equal(one) for name, one in names.items() if not stack.split(name))
    torch.testing.assert_close(logits(load_model(tmp_path / "out")), expected(model, (0, 2, 3)), rtol=1e-4, atol=1e-4)


def test_a_result_that_would_not_load_is_refused_whatever_the_recipe(tmp_path: Path) -> None:
    source(tmp_path / "in", "llama", "LlamaForCausalLM")
    source(tmp_path / "biased", "llama", "LlamaForCausalLM", attention_bias=True)
    recipe = Recipe(
        "linear",
        (Slice((Input(ModelReference(str(tmp_path / "in")), None, {"weight": 1.0}),)),),
        base=ModelReference(str(tmp_path / "biased")),
    )
    with pytest.raises(ShapeMismatch, match=r"would not load: .*bias.* missing"), plan_merge(recipe):
        pass


def test_a_merge_of_one_build_is_planned_without_transformers(tmp_path: Path) -> None:
    source(tmp_path / "in", "llama", "LlamaForCausalLM")
    program = (
        "import sys; sys.modules['transformers'] = None\n"
        "from evomerge_merging import plan_merge, read_recipe_text\n"
        f"text = 'merge_method: linear\\nmodels: [{{model: {tmp_path / 'in'}, parameters: {{weight: 1}}}}]'\n"
        "plan_merge(read_recipe_text(text))\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_layers_in_their_own_places_are_not_asked_about(tmp_path: Path) -> None:
    source(tmp_path / "in", "jamba", "JambaForCausalLM")
    with plan_merge(families.stack(tmp_path / "in", (0, 1, 2, 3))) as plan:
        config = json.loads((tmp_path / "in" / "config.json").read_text())
        assert {key: plan.config[key] for key in config if "layer" in key} == {
            key: config[key] for key in config if "layer" in key
        }


def test_fields_that_follow_the_layers() -> None:
    config = {
        "num_hidden_layers": 4, "mlp_only_layers": [0, 3], "hybrid_override_pattern": "M-*E",
        "eos_token_id": [1, 2, 3, 4],
        "intermediate_size": [5, 6, 7, 8], "per_layer_config": {"1": {"a": 1}}, "layer_types": ["a", "b", "c", "d"],
    }  # fmt: skip
    origin = [(config, layer) for layer in (3, 1, 1)]
    found = layer_fields.rewritten(config, origin, 4, every_list=True)
    assert found == {
        "num_hidden_layers": 3, "mlp_only_layers": [0], "hybrid_override_pattern": "E--",
        "eos_token_id": [1, 2, 3, 4],
        "intermediate_size": [8, 6, 6], "per_layer_config": {"1": {"a": 1}, "2": {"a": 1}},
        "layer_types": ["d", "b", "b"],
    }  # fmt: skip
    assert layer_fields.rewritten(config, origin, 4)["intermediate_size"] == [5, 6, 7, 8]


def test_a_head_that_the_sources_lack_too_is_no_fault_of_the_merge(tmp_path: Path) -> None:
    source(tmp_path / "in", "llama", "LlamaForCausalLM")
    rewrite(tmp_path / "in", {"model.norm.weight": None})
    with plan_merge(families.stack(tmp_path / "in", (0, 1, 1, 2, 3))) as plan:
        assert plan.config["num_hidden_layers"] == 5
