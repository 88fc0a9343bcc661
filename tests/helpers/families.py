"""Every family of transformers, tiny and random: what merging, leaving out and repeating its layers comes to.

For each architecture that can be built with small settings: merged with itself it is itself, tensor by tensor; linear
equals a plain torch sum; the result loads without a missing key. With the first, a middle or the last layer left out,
and with two repeated, the logits are those of the source whose own layers are skipped or passed twice, or the recipe is
refused before a byte is written. Perplexity and choices score as plain transformers code does (`family_scores`).
"""

from __future__ import annotations

import copy
import gc
import json
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from transformers import CONFIG_MAPPING
from transformers.models.auto import modeling_auto

from evomerge_common.domain.recipe import Input, Recipe, Slice
from evomerge_common.domain.reference import ModelReference
from evomerge_common.errors import InvalidInput
from evomerge_merging import merge_recipe
from evomerge_models.layers import movement
from helpers.family_scores import compare

LAYERS, VOCAB = 4, 96
CUTS = {"first": (1, 2, 3), "middle": (0, 2, 3), "last": (0, 1, 2), "repeated": (0, 1, 1, 2, 2, 3)}
MAPPINGS = ("SEQ_TO_SEQ_CAUSAL_LM", "MASKED_LM", "CAUSAL_LM", "IMAGE_TEXT_TO_TEXT")
"""Of a type in several of them, such as BERT, the first is what it was made for."""

Weights = dict[str, torch.Tensor]
MOST_PARAMETERS = 8_000_000

_SMALL: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": LAYERS, "depth": LAYERS,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64,
    "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "num_experts": 4, "num_local_experts": 4,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_num_experts": 4, "moe_k": 2, "n_shared_experts": 1,
    "n_group": 1, "topk_group": 1, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 8, "sliding_window": 4, "ffn_hidden_size": 48, "embedding_size": 32, "n_embd": 32, "n_inner": 48,
    "n_layer": LAYERS, "n_head": 4, "n_positions": 64, "d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": LAYERS,
    "num_decoder_layers": LAYERS, "num_heads": 4, "encoder_layers": LAYERS, "decoder_layers": LAYERS,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
    "word_embed_proj_dim": 32, "image_size": 16, "patch_size": 4, "rotary_dim": 4, "ffn_dim": 48, "dim": 32,
    "hidden_dim": 48, "n_heads": 4, "n_layers": LAYERS, "state_size": 8, "mamba_d_state": 8, "mamba_n_heads": 8,
    "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_expand": 2, "mamba_d_conv": 4, "mamba_d_ssm": 64,
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "type_vocab_size": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "dropout": 0.0,
    "out_hidden_size": 32, "embed_dim": 32, "lru_width": 32, "attention_window_size": 4, "moe_topk": 2,
    "vocab_size_per_layer_input": VOCAB, "hidden_size_per_layer_input": 8, "laurel_rank": 4,
    "expert_ffn_hidden_size": 16, "num_mtp_layers": 0, "num_nextn_predict_layers": 0, "num_mem_blocks": 1,
    "conv_L_cache": 3, "projection_dim": 32, "index_n_heads": 2, "index_head_dim": 8, "index_topk": 64,
}  # fmt: skip
"""Fields that make any config small, where it has them."""

_MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}}
_SPECIAL: dict[str, dict[str, Any]] = {
    "qwen2_moe": {"mlp_only_layers": [0]},
    "qwen3_moe": {"mlp_only_layers": [0]},
    "bamba": {"attn_layer_indices": [1]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2, "mamba_d_state": 8, "mamba_dt_rank": 4,
              "use_mamba_kernels": False},
    "deepseek_v3": {"first_k_dense_replace": 1},
    "ernie4_5_moe": {"moe_layer_start_index": 1, "moe_layer_end_index": 3},
    "gemma3n_text": {"layer_types": ["sliding_attention", "full_attention"] * 2, "num_kv_shared_layers": 2},
    "qwen2_vl_text": _MROPE,
    "qwen2_5_vl_text": _MROPE,
    "qwen3_vl_text": _MROPE,
    "qwen3_vl_moe_text": _MROPE,
    "gemma3_text": {"sliding_window_pattern": 3},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 4},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1},
    "rwkv": {"rescale_every": 0},
    "smollm3": {"no_rope_layer_interval": 4},
}  # fmt: skip
"""Settings of one family, over the small ones."""


class NotBuilt(Exception):
    """A family that cannot be made small, or not run on a text."""


@dataclass
class Row:
    """What was found of a family; each word is "yes", "refused" or what is wrong."""

    family: str
    kind: str
    itself: str = ""
    linear: str = ""
    search: str = ""
    loads: str = ""
    cuts: dict[str, str] = field(default_factory=dict)
    perplexity: str = ""
    choices: str = ""
    reasons: list[str] = field(default_factory=list)
    not_scored: str = ""
    gguf: str = "-"

    @property
    def wrong(self) -> bool:
        """Whether something is neither right nor refused."""
        merged = (self.itself, self.linear, self.loads, *self.cuts.values())
        refuses = self.search == "any order" and "refused" in merged
        words = (*merged, self.perplexity, self.choices)
        return (
            self.gguf.startswith("wrong")
            or refuses
            or any(word not in {"yes", "refused", "whole", "-"} for word in words)
        )


def families() -> dict[str, tuple[str, str]]:
    """Model types that transformers has a class for, with its kind and the class's name."""
    found: dict[str, tuple[str, str]] = {}
    for kind in MAPPINGS:
        for model_type, name in getattr(modeling_auto, f"MODEL_FOR_{kind}_MAPPING_NAMES").items():
            found.setdefault(model_type, (kind, name if isinstance(name, str) else name[0]))
    return found


def small_config(model_type: str, **settings: Any) -> Any:
    """The family's config with few and narrow layers, its towers as deep as its text model."""
    return CONFIG_MAPPING[model_type](**{**_settings(model_type, CONFIG_MAPPING[model_type]), **settings})


def _settings(model_type: str, config_class: Any) -> dict[str, Any]:
    default = config_class()
    names = {*vars(default), *getattr(default, "attribute_map", {})}
    nested = {}
    for key in getattr(config_class, "sub_configs", {}):
        part = getattr(default, key, None)
        if part is not None:
            of = type(part)
            nested[key] = {"model_type": of.model_type, **_settings(of.model_type, of)}
    own = _SPECIAL.get(model_type, {})
    latent = {"num_key_value_heads": 4} if "kv_lora_rank" in names else {}
    names -= {"head_dim"} if "qk_rope_head_dim" in names else set()
    latent |= {"decoder_start_token_id": 2} if default.is_encoder_decoder else {}
    return {key: value for key, value in _SMALL.items() if key in names} | latent | nested | own


def make(model_type: str, class_name: str, folder: Path, seed: int, **settings: Any) -> Any:
    """A model of the family with weights that follow the seed, saved."""
    config = small_config(model_type, **settings)
    model_class = getattr(transformers, class_name)
    with torch.device("meta"):
        size = sum(one.numel() for one in model_class(copy.deepcopy(config)).parameters())
    if size > MOST_PARAMETERS:
        raise NotBuilt(f"{size / 1e6:.0f} million parameters with small settings")
    torch.manual_seed(0)
    model = model_class(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, one in model.named_parameters():
            noise = 0.15 * torch.randn(one.shape, generator=generator)
            one.copy_(1.0 + noise if "norm" in name.lower() and name.endswith("weight") else noise)
    model.save_pretrained(folder)
    return model


def stored(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder."""
    return {name: one for file in sorted(folder.glob("*.safetensors")) for name, one in load_file(file).items()}


def load(folder: Path, class_name: str) -> tuple[Any, list[str]]:
    """The model of a folder, and names that it missed or left over."""
    model, info = getattr(transformers, class_name).from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32
    )
    return model.eval(), sorted({*info["missing_keys"], *info["unexpected_keys"], *map(str, info["mismatched_keys"])})


def logits(model: Any) -> torch.Tensor:
    """Of two short texts."""
    ids = torch.randint(3, VOCAB, (2, 12), generator=torch.Generator().manual_seed(0))
    extra = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    try:
        with torch.no_grad():
            out = model(input_ids=ids, use_cache=False, **extra)
    except TypeError:
        with torch.no_grad():
            out = model(input_ids=ids, **extra)
    found: torch.Tensor = out[0] if not hasattr(out, "logits") else out.logits
    return found


def layers_of(model: Any) -> Any:
    """The text model's list of layers."""
    text = model.config.get_text_config()
    owners = {"": model.config}
    found = []
    for path, module in model.named_modules():
        config = getattr(module, "config", None)
        owners[path] = config if hasattr(config, "to_dict") else owners.get(path.rpartition(".")[0], model.config)
        if isinstance(module, torch.nn.ModuleList) and len(module) == LAYERS and type(owners[path]) is type(text):
            found.append((path.count("."), path, module))
    return min(found, key=lambda one: one[:2])[2]


def expected(model: Any, order: tuple[int, ...]) -> torch.Tensor:
    """Logits of the source with its own layers skipped or passed again, whatever its config says of places."""

    def again(times: int) -> Any:
        def hook(layer: Any, args: Any, kwargs: Any, out: Any) -> Any:
            given = args[0] if args else kwargs["hidden_states"]
            for _ in range(times - 1):
                hidden = out[0] if isinstance(out, tuple | list) else out
                out = (
                    layer.forward(hidden, *args[1:], **kwargs)
                    if args
                    else layer.forward(**{**kwargs, "hidden_states": hidden})
                )
            if not times:
                out = type(out)([given, *out[1:]]) if isinstance(out, tuple | list) else given
            return out

        return hook

    hooks = [
        layer.register_forward_hook(again(order.count(i)), with_kwargs=True) for i, layer in enumerate(layers_of(model))
    ]
    try:
        return logits(model)
    finally:
        for hook in hooks:
            hook.remove()


def moved_logits(model: Any, order: tuple[int, ...]) -> torch.Tensor:
    """Logits of the source with its own layers in another order, each with what the model gives it at its old place."""
    layers = layers_of(model)
    calls: dict[int, tuple[Any, Any]] = {}

    def hidden(out: Any) -> Any:
        return out[0] if isinstance(out, tuple | list) else out

    def note(layer: int) -> Any:
        def hook(_: Any, args: Any, kwargs: Any, out: Any) -> Any:
            given = args[0] if args else kwargs["hidden_states"]
            calls[layer] = (args[1:], {key: value for key, value in kwargs.items() if key != "hidden_states"})
            if layer < LAYERS - 1:
                return type(out)([given, *out[1:]]) if isinstance(out, tuple | list) else given
            for one in order:
                rest, named = calls[one]
                out = layers[one].forward(given, *rest, **named)
                given = hidden(out)
            return out

        return hook

    hooks = [layer.register_forward_hook(note(i), with_kwargs=True) for i, layer in enumerate(layers)]
    try:
        return logits(model)
    finally:
        for one in hooks:
            one.remove()


def stack(folder: Path, order: tuple[int, ...]) -> Recipe:
    """Layers of one model in an order."""
    reference = ModelReference(str(folder))
    return Recipe("passthrough", tuple(Slice((Input(reference, (i, i + 1), {}),)) for i in order))


def check(model_type: str, kind: str, class_name: str, root: Path) -> Row:
    """Everything about one family.

    Raises:
        NotBuilt: the sources cannot be made.

    """
    one, two = root / "a", root / "b"
    try:
        logits(make(model_type, class_name, one, 1))
        make(model_type, class_name, two, 2)
        weights, others = stored(one), stored(two)
        model, own_faults = load(one, class_name)
        if own_faults and not logits(model).equal(logits(load(one, class_name)[0])):
            raise NotBuilt("transformers does not load what it saved: weights are missing")
    except NotBuilt:
        raise
    except Exception as error:
        raise NotBuilt(f"{type(error).__name__}: {error}"[:160].replace("\n", " ")) from error
    row = Row(model_type, kind)
    try:
        _check(row, model, class_name, root, weights, others, own_faults)
    except InvalidInput as error:
        row.itself = f"refused: {error}"
    return row


def _check(
    row: Row, model: Any, class_name: str, root: Path, weights: Weights, others: Weights, own: list[str]
) -> None:
    one, two = root / "a", root / "b"
    config = json.loads((one / "config.json").read_text())
    row.search = movement(config, {name: tuple(tensor.shape) for name, tensor in weights.items()}) or "any order"
    merge_recipe(Recipe.of_models("linear", [(ModelReference(str(one)), {"weight": 1.0})]), {}, root / "self")
    same = stored(root / "self")
    row.itself = "yes" if same.keys() == weights.keys() and all(same[n].equal(weights[n]) for n in same) else "differs"
    both = [(ModelReference(str(path)), {"weight": 0.5}) for path in (one, two)]
    merge_recipe(Recipe.of_models("linear", both), {}, root / "mean")
    mean = stored(root / "mean")
    sums = {n: (w + others[n]) / 2 if w.is_floating_point() else w for n, w in weights.items()}
    row.linear = "yes" if all(n in mean and torch.allclose(mean[n], sums[n], atol=1e-6) for n in sums) else "differs"
    _, faults = load(root / "mean", class_name)
    row.loads = "yes" if faults == own else f"faults: {faults[:2]}"
    for name, order in CUTS.items():
        row.cuts[name] = _cut(row, model, class_name, one, root / name, order, own)
    scored = compare(one, model, row.kind)
    row.perplexity, row.choices, row.not_scored = scored.perplexity, scored.choices, scored.reason


def _cut(row: Row, model: Any, class_name: str, one: Path, out: Path, order: tuple[int, ...], own: list[str]) -> str:
    try:
        merge_recipe(stack(one, order), {}, out)
    except InvalidInput as error:
        if out.exists():
            return "refused, but written"
        if not row.reasons:
            row.reasons.append(str(error).removeprefix("slices: ").replace(str(one), "the model"))
        return "refused"
    except Exception as error:
        return f"error: {type(error).__name__}: {error}"[:200]
    if len(stored(out)) == len(stored(one)) and len(order) != LAYERS:
        return "whole"  # what counts as layers are blocks of them, all of which are here
    made, faults = load(out, class_name)
    if len(faults) > len(own):
        return f"faults: {faults[:2]}"
    try:
        wanted = expected(model, order)
    except Exception as error:
        return f"no logits: {type(error).__name__}: {error}"[:120]
    if wanted.equal(logits(model)):
        return "-"  # its model calls layers past their hooks: there is nothing to judge by
    difference = float((logits(made) - wanted).abs().max())
    return "yes" if difference <= 1e-4 * max(1.0, float(wanted.abs().max())) else f"logits off by {difference:.3g}"


def rows(only: set[str] | None = None) -> Iterator[tuple[str, Row | str]]:
    """Each family's row, or why it cannot be built."""
    for model_type, (kind, class_name) in sorted(families().items()):
        if only is not None and model_type not in only:
            continue
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                yield model_type, check(model_type, kind, class_name, Path(folder))
            except NotBuilt as error:
                yield model_type, str(error)
        gc.collect()
