"""Mixtures of experts as people write them: mergekit-moe's YAML.

base_model: org/chat                 # embeddings, attention, norms, tokenizer
gate_mode: hidden                    # or cheap_embed, random, uniform_random
experts_per_token: 2
experts:
- {source_model: org/code, positive_prompts: [write a function], negative_prompts: [tell a story]}
- {source_model: org/story, positive_prompts: [tell a story], noise_scale: 0.01, residual_scale: 0.9}
shared_experts:                      # qwen2 alone: one expert that every token passes, by prompts more or less
- {source_model: org/chat, residual_scale: 0.1, positive_prompts: [say hello]}
architecture: qwen                   # mixtral, qwen, qwen3: what the base's type gives anyway
dtype: bfloat16
seed: 0                              # of random gates and noise
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Any

from evomerge_common.domain.fields import Fields
from evomerge_common.domain.recipe import DTYPES
from evomerge_common.domain.reference import ModelReference
from evomerge_common.errors import Path, RecipeError, did_you_mean
from evomerge_common.runtime.documents import read_file
from evomerge_merging.recipes.notices import Notices
from evomerge_merging.recipes.values import dtype_word, seed_of

RANDOM_GATES = ("random", "uniform_random")
GATES = ("hidden", "cheap_embed", *RANDOM_GATES)
FORMATS = {
    "mixtral": "mixtral", "qwen": "qwen2_moe", "qwen2": "qwen2_moe", "qwen2_moe": "qwen2_moe", "qwen3": "qwen3_moe",
    "qwen3_moe": "qwen3_moe",
}  # fmt: skip
"""The model type that each word of `architecture` means."""
KEYS = (
    "base_model", "gate_mode", "experts_per_token", "experts", "shared_experts", "architecture", "dtype", "seed",
    "random_seed",
)  # fmt: skip
_EXPERT_KEYS = ("source_model", "positive_prompts", "negative_prompts", "noise_scale", "residual_scale")


@dataclass(frozen=True)
class Expert:
    """A model whose feed-forward layers become an expert.

    Attributes:
        positive: texts that it is for; negative: texts that it is not for.
        noise: standard deviation of what is added to its weights, so that experts of one model differ in training.
        scale: its output is multiplied by it.

    """

    model: ModelReference
    positive: tuple[str, ...] = ()
    negative: tuple[str, ...] = ()
    noise: float = 0.0
    scale: float = 1.0


@dataclass(frozen=True)
class Mixture:
    """What to assemble.

    Attributes:
        shared: an expert that every token passes.
        architecture: the model type that it must come out as; "": as the base's type gives it.
        notes: what the file says without effect, for people.

    """

    base: ModelReference
    experts: tuple[Expert, ...]
    gate: str = "hidden"
    experts_per_token: int = 2
    shared: Expert | None = None
    dtype: str = ""
    seed: int = 0
    architecture: str = ""
    notes: tuple[str, ...] = ()

    @property
    def gates_shared(self) -> bool:
        """Whether the shared expert's gate is made of prompts of its own."""
        return self.shared is not None and bool(self.shared.positive) and self.gate not in RANDOM_GATES

    def sources(self) -> list[ModelReference]:
        """Every model that is read, the base first."""
        found = [self.base, *(expert.model for expert in self.experts)]
        return list(dict.fromkeys([*found, self.shared.model] if self.shared else found))

    def with_sources(self, change: Callable[[ModelReference], ModelReference]) -> Mixture:
        """The same mixture with every model as `change` returns it."""
        experts = tuple(replace(expert, model=change(expert.model)) for expert in self.experts)
        shared = None if self.shared is None else replace(self.shared, model=change(self.shared.model))
        return replace(self, base=change(self.base), experts=experts, shared=shared)


def is_mixture(path: FilePath) -> bool:
    """Whether a YAML file speaks of experts: then it is no recipe."""
    try:
        data = read_file(path, several=True, error=RecipeError).data
    except RecipeError:
        return False
    return isinstance(data, Mapping) and "experts" in data


def read_mixture(path: FilePath) -> Mixture:
    """Reads a mixture of experts.

    Raises:
        RecipeError: with file, line and key.

    """
    document = read_file(path, error=RecipeError)
    try:
        return _mixture(document.data)
    except RecipeError as error:
        raise document.located(error) from None


def _mixture(data: Any) -> Mixture:
    notices = Notices()
    own = Fields(notices.known(data, KEYS, ()), (), RecipeError)
    for key in ("base_model", "experts"):
        if key not in own:
            raise RecipeError(f"a mixture of experts needs {key}", ())
    gate = own.word("gate_mode", GATES, "hidden", what="gate_mode")
    experts = tuple(
        _expert(one, (*own.at("experts"), i), notices, needs_prompts=gate not in RANDOM_GATES and gate)
        for i, one in enumerate(own.entries("experts"))
    )
    if len(experts) < 2:
        raise own.wrong("a mixture needs at least two experts", "experts")
    number = notices.number(own.data.get("experts_per_token"), own.at("experts_per_token"))
    count = replace(own, data={"experts_per_token": number}).integer("experts_per_token", 2)
    if not 1 <= count <= len(experts):
        raise own.wrong(f"must be from 1 to the {len(experts)} experts, not {count}", "experts_per_token")
    dtype = dtype_word(own, "dtype")
    if dtype and dtype not in DTYPES:
        raise own.wrong(f"unknown type {dtype!r}; {did_you_mean(dtype, DTYPES)}", "dtype")
    shared = _shared(own, notices)
    if gate in RANDOM_GATES and any(one.positive or one.negative for one in (*experts, *([shared] if shared else []))):
        notices.add(f"gate_mode {gate} reads no prompts: they have no effect", own.at("gate_mode"))
    seed = seed_of(own, notices)
    return Mixture(
        _model(own, "base_model"), experts, gate, count, shared, dtype, seed, _architecture(own), notices.sentences
    )


def _architecture(own: Fields) -> str:
    word = own.text("architecture").lower()
    if word == "deepseek":
        raise own.wrong(
            "a DeepSeek mixture runs by Python code of its authors, which EvoMerge neither copies nor runs: leave "
            f"architecture out, or say one of {', '.join(FORMATS)}",
            "architecture",
        )
    if word and word not in FORMATS:
        raise own.wrong(f"unknown architecture {word!r}; {did_you_mean(word, FORMATS)}", "architecture")
    return FORMATS.get(word, "")


def _expert(data: Any, path: Path, notices: Notices, *, needs_prompts: str | bool = False) -> Expert:
    own = Fields(notices.known(data, _EXPERT_KEYS, path), path, RecipeError)
    positive, negative = (own.texts(f"{kind}_prompts", "must be a list of texts") for kind in ("positive", "negative"))
    if needs_prompts and not positive:
        raise RecipeError(
            f"gate_mode {needs_prompts} needs positive_prompts, texts that this expert is for (or say gate_mode: "
            "random)",
            path,
        )
    numbers = {key: notices.number(own.data.get(key), own.at(key)) for key in ("noise_scale", "residual_scale")}
    scales = Fields(numbers, path, RecipeError)
    return Expert(
        _model(own, "source_model"), positive, negative, scales.number("noise_scale", 0.0, low=0.0, high=10.0),
        scales.number("residual_scale", 1.0, low=0.0, high=10.0),
    )  # fmt: skip


def _shared(mixture: Fields, notices: Notices) -> Expert | None:
    if not mixture.data.get("shared_experts"):
        return None
    entries, path = mixture.entries("shared_experts"), mixture.at("shared_experts")
    if len(entries) > 1:
        raise RecipeError("there is room for one shared expert", (*path, 1))
    return _expert(entries[0], (*path, 0), notices)


def _model(own: Fields, key: str) -> ModelReference:
    if key not in own:
        raise RecipeError(f"needs {key}", own.path)
    try:
        return ModelReference.parse(own.text(key))
    except RecipeError as error:
        raise own.wrong(error.problem, key) from None
