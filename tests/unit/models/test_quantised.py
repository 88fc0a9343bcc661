"""Quantised models are refused with their kind, from config and headers alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evomerge_common.errors import ModelError, QuantisedModel
from evomerge_models.describe import describe_model
from evomerge_models.quantised import check_plain, is_stale, without_quantisation
from helpers.hub_server import write_model_folder, write_safetensors

# As their own libraries write them.
CONFIGS: dict[str, dict[str, Any]] = {
    "GPTQ, 4 bits": {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True},
    "AWQ, 4 bits": {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": True},
    "bitsandbytes, 4 bits": {
        "quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False, "bnb_4bit_quant_type": "nf4",
    },
    "bitsandbytes, 8 bits": {"quant_method": "bitsandbytes", "load_in_4bit": False, "load_in_8bit": True},
    "compressed-tensors": {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {}},
    "float8 with scales": {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"},
    "MXFP4": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]},
    "hqq": {"quant_method": "hqq"},
}  # fmt: skip
TENSORS: dict[str, dict[str, str]] = {
    "GPTQ or AWQ": {"l.0.q_proj.qweight": "I32", "l.0.q_proj.qzeros": "I32", "l.0.q_proj.scales": "F16"},
    "compressed-tensors": {"l.0.q_proj.weight_packed": "I32", "l.0.q_proj.weight_scale": "BF16"},
    "bitsandbytes, 8 bits": {"l.0.q_proj.weight": "I8", "l.0.q_proj.SCB": "F32"},
    "bitsandbytes, 4 bits": {"l.0.q_proj.weight": "U8", "l.0.q_proj.weight.absmax": "U8"},
    "float8 with scales": {"l.0.q_proj.weight": "F8_E4M3", "l.0.q_proj.weight_scale_inv": "F32"},
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_config_tells(kind: str) -> None:
    for config in ({"quantization_config": CONFIGS[kind]}, {"text_config": {"quantization_config": CONFIGS[kind]}}):
        with pytest.raises(QuantisedModel, match=rf"org/m is quantised \({kind}\)"):
            check_plain(config, {}, "org/m")


@pytest.mark.parametrize("kind", TENSORS)
def test_tensors_tell(kind: str) -> None:
    with pytest.raises(QuantisedModel, match=rf"quantised \({kind}\)"):
        check_plain({"model_type": "llama"}, {"embed.weight": "F16", **TENSORS[kind]}, "org/m")


def test_plain_models_pass() -> None:
    check_plain({}, {}, "m")
    check_plain({"quantization_config": None, "text_config": {}}, {"a.weight": "BF16", "a.logit_scale": "F32"}, "m")
    check_plain({}, {"a.weight": "F8_E4M3", "b.weight_scale": "F32"}, "m")  # a type like another


def test_a_folder_is_refused_by_its_tensors(tmp_path: Path) -> None:
    header = write_model_folder(tmp_path / "header")
    write_safetensors(header / "model.safetensors", {"l.0.q_proj.qweight": (4, 4), "l.0.q_proj.scales": (4,)})
    with pytest.raises(QuantisedModel, match="Give the model that it was made from"):
        describe_model(header)
    assert issubclass(QuantisedModel, ModelError)


@pytest.mark.parametrize("kind", CONFIGS)
def test_plain_tensors_count_more_than_what_the_config_says(tmp_path: Path, kind: str) -> None:
    folder = write_model_folder(tmp_path / "m")
    data = json.loads((folder / "config.json").read_text())
    for config in ({"quantization_config": CONFIGS[kind]}, {"text_config": {"quantization_config": CONFIGS[kind]}}):
        (folder / "config.json").write_text(json.dumps({**data, **config}))
        describe_model(folder)
        assert is_stale(config, {"a": "F16", "position_ids": "I64"})
        assert not is_stale(config, {"a": "F16", "b": "U8"})
        assert not is_stale(config, {})
        assert "quantization_config" not in json.dumps(without_quantisation({**data, **config}))
