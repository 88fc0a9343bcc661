"""Mixtures of experts as people write them: mergekit-moe's YAML.

base_model: org/chat                 # embeddings, attention, norms, tokenizer
gate_mode: hidden                    # or cheap_embed, random
experts_per_token: 2
experts:
- {source_model: org/code, positive_prompts: [write a function], negative_prompts: [tell a story]}
- {source_model: org/story, positive_prompts: [tell a story]}
shared_experts:                      # qwen2 alone: one expert that every token passes
- {source_model: org/chat, residual_scale: 0.1}
dtype: bfloat16
seed: 0                              # of random gates
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Any

from evomerge_common.domain.fields import Fields
from evomerge_common.domain.recipe import DTYPES, ModelReference
from evomerge_common.errors import Path, RecipeError, did_you_mean
from evomerge_common.runtime.documents import read_file
from evomerge_merging.recipes.from_yaml import MAX_SEED
from evomerge_merging.recipes.values import dtype_word

GATES = ("hidden", "cheap_embed", "random")
KEYS = ("base_model", "gate_mode", "experts_per_token", "experts", "shared_experts", "dtype", "seed")
_EXPERT_KEYS = ("source_model", "positive_prompts", "negative_prompts")
_SHARED_KEYS = ("source_model", "residual_scale")


@dataclass(frozen=True)
class Expert:
    """A model whose feed-forward layers become an expert.

    Attributes:
        positive: texts that it is for; negative: texts that it is not for.

    """

    model: ModelReference
    positive: tuple[str, ...] = ()
    negative: tuple[str, ...] = ()


@dataclass(frozen=True)
class SharedExpert:
    """An expert that every token passes, its output times `scale`."""

    model: ModelReference
    scale: float = 1.0


@dataclass(frozen=True)
class Mixture:
    """What to assemble."""

    base: ModelReference
    experts: tuple[Expert, ...]
    gate: str = "hidden"
    experts_per_token: int = 2
    shared: SharedExpert | None = None
    dtype: str = ""
    seed: int = 0

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
    own = Fields.of(data, KEYS, (), RecipeError)
    for key in ("base_model", "experts"):
        if key not in data:
            raise RecipeError(f"a mixture of experts needs {key}", ())
    gate = own.word("gate_mode", GATES, "hidden", what="gate_mode")
    experts = tuple(_expert(one, (*own.at("experts"), i), gate) for i, one in enumerate(own.entries("experts")))
    if len(experts) < 2:
        raise own.wrong("a mixture needs at least two experts", "experts")
    count = own.integer("experts_per_token", 2)
    if not 1 <= count <= len(experts):
        raise own.wrong(f"must be from 1 to the {len(experts)} experts, not {count}", "experts_per_token")
    dtype = dtype_word(own, "dtype")
    if dtype and dtype not in DTYPES:
        raise own.wrong(f"unknown type {dtype!r}; {did_you_mean(dtype, DTYPES)}", "dtype")
    seed = own.integer("seed", 0, high=MAX_SEED)
    return Mixture(_model(own, "base_model"), experts, gate, count, _shared(own), dtype, seed)


def _expert(data: Any, path: Path, gate: str) -> Expert:
    own = Fields.of(data, _EXPERT_KEYS, path, RecipeError)
    positive, negative = (own.texts(key, "must be a list of texts") for key in _EXPERT_KEYS[1:])
    if gate != "random" and not positive:
        raise RecipeError(
            f"gate_mode {gate} needs positive_prompts, texts that this expert is for (or say gate_mode: random)", path
        )
    return Expert(_model(own, "source_model"), positive, negative)


def _shared(mixture: Fields) -> SharedExpert | None:
    if not mixture.data.get("shared_experts"):
        return None
    entries, path = mixture.entries("shared_experts"), mixture.at("shared_experts")
    if len(entries) > 1:
        raise RecipeError("there is room for one shared expert", (*path, 1))
    own = Fields.of(entries[0], _SHARED_KEYS, (*path, 0), RecipeError)
    return SharedExpert(_model(own, "source_model"), own.number("residual_scale", 1.0, low=0.0, high=10.0))


def _model(own: Fields, key: str) -> ModelReference:
    if key not in own:
        raise RecipeError(f"needs {key}", own.path)
    try:
        return ModelReference.parse(own.text(key))
    except RecipeError as error:
        raise own.wrong(error.problem, key) from None
