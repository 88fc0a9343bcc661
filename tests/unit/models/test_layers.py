"""What may be done with a model's layers, by names and config alone: a search draws nothing else."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest

from evomerge_common.domain.reference import ModelReference
from evomerge_common.domain.search_space import SearchSpace
from evomerge_merging import plan_merge
from evomerge_models.describe import describe_model
from evomerge_models.layers import IN_PLACE, MOVABLE, WHOLE, hops_scale, layer_stack, movement
from evomerge_selector.domain.operators import mutate, random_genome
from helpers import families
from helpers.tiny_models import tokenizer


def config(**fields: Any) -> dict[str, Any]:
    return {"num_hidden_layers": 3, **fields}


def shapes(*layers: str) -> dict[str, tuple[int, ...]]:
    return {"embed_tokens.weight": (9, 4), **{f"layers.{i}.{rest}": (4, 4) for i, rest in enumerate(layers)}}


ALIKE = shapes("o_proj.weight", "o_proj.weight", "o_proj.weight")
MIXED = shapes("o_proj.weight", "mamba.out_proj.weight", "o_proj.weight")


@pytest.mark.parametrize(
    ("fields", "tensors", "word"),
    [
        ({}, ALIKE, MOVABLE),
        ({}, {}, MOVABLE),
        ({"is_encoder_decoder": True}, ALIKE, WHOLE),
        ({}, {"embed_tokens.weight": (9, 4), "shared.weight": (4, 4)}, WHOLE),
        ({}, MIXED, IN_PLACE),
        ({"layer_types": ["a", "b", "a"]}, MIXED, MOVABLE),
        ({"attn_layer_indices": [0, 2]}, MIXED, MOVABLE),
        ({"layer_types": ["a", "a", "a"]}, MIXED, IN_PLACE),
        ({"first_k_dense_replace": 1}, ALIKE, IN_PLACE),
        ({"first_k_dense_replace": 0}, ALIKE, MOVABLE),
        ({"text_config": {"num_hidden_layers": 3, "num_kv_shared_layers": 1}}, ALIKE, IN_PLACE),
        ({}, {**ALIKE, **{f"ffns.{i}.weight": (4, 4) for i in range(3)}}, IN_PLACE),
        ({"model_type": "big_bird"}, ALIKE, IN_PLACE),
    ],
)
def test_what_may_be_done_with_layers(fields: dict[str, Any], tensors: dict[str, tuple[int, ...]], word: str) -> None:
    assert movement(config(**fields), tensors) == word


def test_norms_after_a_block_keep_the_hidden_states_scale() -> None:
    assert hops_scale(config(), ALIKE)
    assert not hops_scale(config(), {**ALIKE, "layers.0.post_feedforward_layernorm.weight": (4,)})


def test_the_text_models_stack_is_the_one_beside_the_token_embedding() -> None:
    tower = {f"vision_tower.layers.{i}.{rest}": (4, 4) for i in range(3) for rest in ("a.weight", "b.weight")}
    text = {f"language_model.model.{name}": shape for name, shape in ALIKE.items()}
    found = layer_stack({**tower, **text}, config())
    assert found is not None
    assert found.prefix == "language_model.model.layers"
    assert layer_stack({**tower, "language_model.embed_tokens.weight": (9, 4)}, config()) is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "class_name", "word"),
    [
        ("jamba", "JambaForCausalLM", IN_PLACE),
        ("deepseek_v3", "DeepseekV3ForCausalLM", IN_PLACE),
        ("bamba", "BambaForCausalLM", MOVABLE),
        ("gemma2", "Gemma2ForCausalLM", MOVABLE),
        ("t5", "T5ForConditionalGeneration", WHOLE),
    ],
)
def test_what_a_search_draws_can_be_planned(family: str, class_name: str, word: str, tmp_path: Path) -> None:
    for name in "ab":
        families.make(family, class_name, tmp_path / name, 1)
        tokenizer().save_pretrained(tmp_path / name)
    told = describe_model(tmp_path / "a")
    assert told.layers == word
    paths = () if word == WHOLE else ("frankenmerge", "dfs")
    space = SearchSpace(
        tuple(ModelReference(str(tmp_path / name)) for name in "ab"),
        None,
        told.num_layers,
        2,
        (*paths, "linear"),
        layers=told.layers,
        fixed_scale=not told.hops_scale,
    )
    rng = Random(0)
    for method in space.methods:
        genome = random_genome(space, rng, method=method)
        for _ in range(6):
            genome = mutate(genome, space, rng)
            plan_merge(space.recipe(genome)).close()
