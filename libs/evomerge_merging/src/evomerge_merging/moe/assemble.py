"""Dense models of one build as one mixture of experts: Mixtral's format for llama and mistral, Qwen's for qwen2 and 3.

Embeddings, attention and norms are the base's, and each model's feed-forward layers become an expert. The k experts
whose gates like a token most answer for it, weighted by a softmax over them: experts that are all alike give the dense
model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from evomerge_common.domain.recipe import Recipe
from evomerge_common.domain.reference import ModelReference
from evomerge_common.errors import InvalidInput, ModelError, ShapeMismatch
from evomerge_merging.engine import architecture
from evomerge_merging.engine.execute import MAX_SHARD_BYTES, MergeReport, Progress, execute
from evomerge_merging.engine.loadable import check_loads
from evomerge_merging.engine.nodes import Load, Node
from evomerge_merging.engine.plan import OutputTensor, Plan, plan_merge
from evomerge_merging.engine.source import Source
from evomerge_merging.export.folder import cards_of, licences_of
from evomerge_merging.io.model_folder import MemoryStore
from evomerge_merging.io.writer import write_text
from evomerge_merging.moe import gates
from evomerge_merging.moe.yaml import RANDOM_GATES, Expert, Mixture
from evomerge_models import card as cards
from evomerge_models.dtypes import RECIPE_NAMES, ElementType

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    from evomerge_merging.torch_later import torch

_FEED_FORWARD = re.compile(r"^(model\.layers\.(\d+)\.)mlp\.(gate_proj|up_proj|down_proj)\.weight$")
_GATES = "gates"
_NO_SHARED = 32
"""Neurons, all zero, of the shared expert that Qwen2's format has and that nobody asked for."""


@dataclass(frozen=True)
class _Format:
    """What a mixture of a model type is called, and how its tensors are.

    Attributes:
        defaults: what the dense class takes a missing key for, where the mixture's class takes it otherwise.

    """

    model_type: str
    hf_class: str
    block: str
    names: Mapping[str, str]
    defaults: Mapping[str, Any]


_MIXTRAL = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
_QWEN = {name: name for name in _MIXTRAL}
_LLAMA_DEFAULTS = {"rms_norm_eps": 1e-6, "max_position_embeddings": 2048, "sliding_window": None}
_FORMATS = {
    "llama": _Format("mixtral", "MixtralForCausalLM", "block_sparse_moe", _MIXTRAL, _LLAMA_DEFAULTS),
    "mistral": _Format(
        "mixtral", "MixtralForCausalLM", "block_sparse_moe", _MIXTRAL,
        {"rms_norm_eps": 1e-6, "num_key_value_heads": 8, "sliding_window": 4096},
    ),
    "qwen2": _Format("qwen2_moe", "Qwen2MoeForCausalLM", "mlp", _QWEN, {"num_key_value_heads": 32}),
    "qwen3": _Format("qwen3_moe", "Qwen3MoeForCausalLM", "mlp", _QWEN, {"num_key_value_heads": 32, "head_dim": 128}),
}  # fmt: skip


def assemble(
    mixture: Mixture,
    out: Path,
    *,
    models: Mapping[str, Path] | None = None,
    threads: int = 2,
    progress: Progress | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> MergeReport:
    """Writes a mixture of experts as a Hugging Face folder.

    Args:
        mixture: what goes in.
        out: must not exist, or be empty.
        models: see `plan_merge`.
        threads, progress, max_shard_bytes: see `execute`.

    Raises:
        ModelError: a type of model that has no format of experts here.
        ShapeMismatch: an expert's feed-forward layers are not as the base's; transformers would not load the result.
        InvalidInput: prompts that cancel out; `out` is not empty.

    """
    with ExitStack() as stack:
        base = stack.enter_context(plan_merge(Recipe.of_source(mixture.base), models))
        work = _Assembly(mixture, base, _format_of(base, mixture))
        for number, expert in enumerate(mixture.experts):
            recipe = _expert_recipe(expert, expert.scale, mixture.seed + number)
            work.add_expert(expert.model, stack.enter_context(plan_merge(recipe, models)))
        if mixture.shared is not None:
            # Without prompts its own gate is zero, and the sigmoid of that is a half: twice the scale makes up for it.
            scale = mixture.shared.scale * (1 if mixture.gates_shared else 2)
            recipe = _expert_recipe(mixture.shared, scale, mixture.seed + len(mixture.experts))
            work.add_shared(mixture.shared.model, stack.enter_context(plan_merge(recipe, models)))
        plan = work.plan()
        return execute(
            plan, out, threads=threads, progress=progress, max_shard_bytes=max_shard_bytes,
            extras=lambda folder: _write_card(mixture, folder, plan),
        )  # fmt: skip


def _expert_recipe(expert: Expert, scale: float, seed: int) -> Recipe:
    """An expert's model with its noise, and its feed-forward layers' outputs scaled."""
    recipe = Recipe.of_source(expert.model)
    if expert.noise:
        recipe = Recipe.of_models("noise", [(expert.model, {})], parameters={"scale": expert.noise}, seed=seed)
    if scale == 1.0:
        return recipe
    scales = [{"filter": "down_proj", "value": scale}, {"value": 1.0}]
    return Recipe.of_models("passthrough", [(recipe if expert.noise else expert.model, {"scale": scales})])


def _format_of(base: Plan, mixture: Mixture) -> _Format:
    """Refuses what the formats of experts have no room for."""
    kind = base.config.get("model_type")
    found = _FORMATS.get(str(kind))
    if found is None:
        raise ModelError(
            f"{mixture.base}: a mixture of experts is made of {', '.join(_FORMATS)}, not of {kind!r} models"
        )
    if mixture.architecture not in {"", found.model_type}:
        raise InvalidInput(
            f"architecture: {kind} models become {found.model_type} here, not {mixture.architecture}: leave it out"
        )
    biases = [tensor.name for tensor in base.tensors if tensor.name.endswith(".bias")]
    wrong = [name for name in biases if ".mlp." in name or found.model_type == "mixtral"]
    if wrong:
        raise ModelError(f"{mixture.base} has {wrong[0]}, and {found.model_type} has no biases there")
    if found.model_type != "mixtral" and base.config.get("use_sliding_window"):
        raise ModelError(
            f"{mixture.base} attends through a window (use_sliding_window), which {found.model_type} has otherwise"
        )
    if mixture.shared is not None and found.model_type != "qwen2_moe":
        raise InvalidInput(f"shared_experts: {found.model_type} has none; only a mixture of qwen2 models does")
    return found


class _Assembly:
    """The tensors of the mixture, gathered model by model."""

    def __init__(self, mixture: Mixture, base: Plan, form: _Format) -> None:
        self._mixture, self._base, self._form = mixture, base, form
        self._sources: dict[str, Source] = dict(base.sources)
        self._dense: dict[str, OutputTensor] = {}
        self._tensors: list[OutputTensor] = []
        self._own: dict[str, Tensor] = {}
        self._experts = 0
        for tensor in base.tensors:
            if _FEED_FORWARD.match(tensor.name):
                self._dense[tensor.name] = tensor
            else:
                self._add(tensor.name, tensor.node, tensor.dtype)
        self._layers = architecture.depth_of(base.config) or 0
        if not self._dense or len(self._dense) != 3 * self._layers:
            raise ModelError(f"{mixture.base} has not gate_proj, up_proj and down_proj in each of its layers")
        shape = self._dense["model.layers.0.mlp.gate_proj.weight"].shape
        self._neurons, self._hidden = shape

    def add_expert(self, model: ModelReference, plan: Plan) -> None:
        names = {own: f"experts.{self._experts}.{theirs}" for own, theirs in self._form.names.items()}
        self._take(model, plan, names)
        self._experts += 1

    def add_shared(self, model: ModelReference, plan: Plan) -> None:
        self._take(model, plan, {name: f"shared_expert.{name}" for name in self._form.names})

    def _take(self, model: ModelReference, plan: Plan, names: Mapping[str, str]) -> None:
        kind, ours = plan.config.get("model_type"), self._base.config.get("model_type")
        if _FORMATS.get(str(kind)) is None or _FORMATS[str(kind)].model_type != self._form.model_type:
            raise ModelError(f"{model} is of type {kind!r}, the base {self._mixture.base} of type {ours!r}")
        found = {tensor.name: tensor for tensor in plan.tensors}
        self._sources.update(plan.sources)
        for name, dense in self._dense.items():
            if name not in found or found[name].shape != dense.shape:
                has = list(found[name].shape) if name in found else "missing"
                raise ShapeMismatch(
                    f"{name} is {list(dense.shape)} in {self._mixture.base} and {has} in {model}: experts are "
                    "models of one size"
                )
            match = _FEED_FORWARD.match(name)
            assert match is not None
            self._add(f"{match[1]}{self._form.block}.{names[match[3]]}.weight", found[name].node, dense.dtype)

    def _add(self, name: str, node: Node, dtype: ElementType) -> None:
        dtype = RECIPE_NAMES.get(self._mixture.dtype, dtype) if dtype.is_floating_point else dtype
        self._tensors.append(OutputTensor(name, node.shape, dtype, node))

    def _add_own(self, name: str, values: Tensor) -> None:
        dtype = next(iter(self._dense.values())).dtype
        self._own[name] = values
        shape = tuple(values.shape)
        self._add(name, Load(_GATES, _GATES, name, shape, RECIPE_NAMES["float32"]), dtype)

    def plan(self) -> Plan:
        """The whole, with gates."""
        block = self._form.block
        count = len(self._mixture.experts)
        for layer, gates_of_layer in enumerate(self._gates()):
            rows, shared = gates_of_layer[:count], gates_of_layer[count:]
            prefix = f"model.layers.{layer}.{block}"
            self._add_own(f"{prefix}.gate.weight", rows)
            if self._form.model_type == "qwen2_moe":
                gate = shared if len(shared) else torch.zeros(1, self._hidden)
                self._add_own(f"{prefix}.shared_expert_gate.weight", gate)
                if self._mixture.shared is None:
                    for name in ("gate_proj", "up_proj", "down_proj"):
                        zeros = torch.zeros(_NO_SHARED, self._hidden)
                        self._add_own(
                            f"{prefix}.shared_expert.{name}.weight", zeros.T if name == "down_proj" else zeros
                        )
        base = self._base.sources[self._mixture.base.key]
        store = MemoryStore(self._own)
        self._sources[_GATES] = Source(_GATES, _GATES, base.folder, {}, store)
        notes = [
            f"{self._experts} experts, {self._mixture.experts_per_token} a token; gates: {self._mixture.gate}",
            f"all but the feed-forward layers is {self._mixture.base}'s",
        ]
        config = self._config(self._tensors[0].dtype)
        check_loads(config, {tensor.name: tensor.shape for tensor in self._tensors}, base, notes.append)
        return replace(
            self._base, tensors=tuple(self._tensors), config=config, sources=self._sources,
            notes=(*self._mixture.notes, *self._base.notes, *notes),
        )  # fmt: skip

    def _gates(self) -> Tensor:
        """Gates of the experts, and behind them that of the shared one, where it has prompts."""
        mixture = self._mixture
        if mixture.gate in RANDOM_GATES:
            uniform = mixture.gate == "uniform_random"
            count = len(mixture.experts)
            return gates.random_gates(count, self._layers, self._hidden, mixture.seed, uniform=uniform)
        asked = [*mixture.experts, *([mixture.shared] if mixture.shared and mixture.gates_shared else [])]
        base = self._base.sources[mixture.base.key]
        if mixture.gate == "cheap_embed":
            embedding = architecture.input_embedding(list(base.store.tensors))
            if embedding is None:
                raise ModelError(f"{mixture.base} has no token embedding for gate_mode cheap_embed")
            return gates.embedding_gates(asked, self._layers, base.folder, base.store.tensor(embedding))
        if base.base is not None:
            raise InvalidInput(
                f"gate_mode hidden reads with the base, and {mixture.base} is an adapter: merge it first"
            )
        return gates.hidden_gates(asked, base.folder)

    def _config(self, dtype: ElementType) -> dict[str, Any]:
        form, count = self._form, self._mixture.experts_per_token
        config = {**form.defaults, **self._base.config, "model_type": form.model_type, "architectures": [form.hf_class]}
        if "rope_theta" not in config and "rope_parameters" not in config:
            config["rope_theta"] = 10_000.0
        if config.get("num_key_value_heads") is None:
            config["num_key_value_heads"] = config["num_attention_heads"]
        for key in ("dtype", "torch_dtype"):
            if key in config:
                config[key] = dtype.word
        config |= {"num_experts_per_tok": count, "output_router_logits": False, "router_aux_loss_coef": 0.001}
        if form.model_type == "mixtral":
            return {**config, "num_local_experts": self._experts, "router_jitter_noise": 0.0}
        config |= {
            "num_experts": self._experts, "moe_intermediate_size": self._neurons, "norm_topk_prob": True,
            "decoder_sparse_step": 1, "mlp_only_layers": [],
        }  # fmt: skip
        if form.model_type == "qwen2_moe":
            config["shared_expert_intermediate_size"] = self._neurons if self._mixture.shared else _NO_SHARED
        return config


def _in_words(expert: Expert) -> dict[str, Any]:
    """An expert in mergekit-moe's words."""
    return {
        "source_model": str(expert.model.public),
        **({"positive_prompts": list(expert.positive)} if expert.positive else {}),
        **({"negative_prompts": list(expert.negative)} if expert.negative else {}),
        **({"noise_scale": expert.noise} if expert.noise else {}),
        **({"residual_scale": expert.scale} if expert.scale != 1.0 else {}),
    }


def _write_card(mixture: Mixture, folder: Path, plan: Plan) -> None:
    """mergekit_moe_config.yml and README.md."""
    data: dict[str, Any] = {
        "base_model": str(mixture.base.public), "gate_mode": mixture.gate,
        "experts_per_token": mixture.experts_per_token,
        "experts": [_in_words(one) for one in mixture.experts],
    }  # fmt: skip
    if mixture.shared is not None:
        data["shared_experts"] = [_in_words(mixture.shared)]
    text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    write_text(folder / "mergekit_moe_config.yml", text)
    licences = licences_of(plan)
    head = cards.Metadata(
        base_models=cards.hub_ids(mixture.sources()), pipeline_tag=cards.of_folder(folder)[1],
        tags=("moe", "merge", "evomerge"),
    ).drawn_from(cards_of(plan)).under(licences)  # fmt: skip
    notes = "".join(f"* {plan.public(note)}\n" for note in plan.notes)
    write_text(
        folder / cards.CARD,
        f"{head.front_matter()}\n# Mixture of experts\n\n"
        "Made by EvoMerge from dense models; gates were not trained.\n\n"
        f"{notes}\n" + "\n".join(cards.licence_section(licences)) + f"\n```yaml\n{text}```\n",
    )
