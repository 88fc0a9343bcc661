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

from evomerge_common.domain.recipe import DTYPES, ModelReference, check_keys
from evomerge_common.errors import Path, RecipeError, did_you_mean
from evomerge_common.runtime.documents import read_file
from evomerge_merging.recipes.values import dtype_word, listed, whole_number, word

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
    check_keys(data, KEYS, ())
    for key in ("base_model", "experts"):
        if key not in data:
            raise RecipeError(f"a mixture of experts needs {key}", ())
    gate = word(data.get("gate_mode", "hidden"), ("gate_mode",))
    if gate not in GATES:
        raise RecipeError(f"unknown gate_mode {gate!r}; {did_you_mean(gate, GATES)}", ("gate_mode",))
    experts = tuple(_expert(one, ("experts", i), gate) for i, one in enumerate(listed(data["experts"], ("experts",))))
    if len(experts) < 2:
        raise RecipeError("a mixture needs at least two experts", ("experts",))
    count = whole_number(data.get("experts_per_token", 2), ("experts_per_token",))
    if not 1 <= count <= len(experts):
        raise RecipeError(f"must be from 1 to the {len(experts)} experts, not {count}", ("experts_per_token",))
    dtype = dtype_word(data, "dtype", ())
    if dtype and dtype not in DTYPES:
        raise RecipeError(f"unknown type {dtype!r}; {did_you_mean(dtype, DTYPES)}", ("dtype",))
    return Mixture(
        _model(data, "base_model", ()), experts, gate, count, _shared(data), dtype,
        whole_number(data.get("seed", 0), ("seed",)),
    )  # fmt: skip


def _expert(data: Any, path: Path, gate: str) -> Expert:
    check_keys(data, _EXPERT_KEYS, path)
    positive, negative = (_texts(data, key, path) for key in _EXPERT_KEYS[1:])
    if gate != "random" and not positive:
        raise RecipeError(
            f"gate_mode {gate} needs positive_prompts, texts that this expert is for (or say gate_mode: random)", path
        )
    return Expert(_model(data, "source_model", path), positive, negative)


def _shared(data: Mapping[str, Any]) -> SharedExpert | None:
    if not data.get("shared_experts"):
        return None
    entries = listed(data["shared_experts"], ("shared_experts",))
    if len(entries) > 1:
        raise RecipeError("there is room for one shared expert", ("shared_experts", 1))
    path: Path = ("shared_experts", 0)
    check_keys(entries[0], _SHARED_KEYS, path)
    scale = entries[0].get("residual_scale", 1.0)
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 <= scale <= 10:
        raise RecipeError(f"must be a number from 0 to 10, not {scale!r}", (*path, "residual_scale"))
    return SharedExpert(_model(entries[0], "source_model", path), float(scale))


def _model(data: Mapping[str, Any], key: str, path: Path) -> ModelReference:
    if key not in data:
        raise RecipeError(f"needs {key}", path)
    try:
        return ModelReference.parse(word(data[key], (*path, key)))
    except RecipeError as error:
        raise RecipeError(error.problem, (*path, key)) from None


def _texts(data: Mapping[str, Any], key: str, path: Path) -> tuple[str, ...]:
    found = data.get(key) or []
    if not isinstance(found, list) or not all(isinstance(text, str) and text.strip() for text in found):
        raise RecipeError("must be a list of texts", (*path, key))
    return tuple(found)
