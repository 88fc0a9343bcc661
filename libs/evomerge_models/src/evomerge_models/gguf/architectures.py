"""What an architecture is called, holds and is told of in GGUF and in Hugging Face models (its rows: `table.py`).

Names of GGUF: the gguf package's `TENSOR_NAMES` and `Keys`. Layouts: llama keeps pairs of rotary dimensions side by
side where transformers keeps the halves apart; gemma's norms are stored with the 1 that transformers adds; GPT-2's
projections are transposed; experts are one tensor.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Config = Mapping[str, Any]
NEEDED = object()
"""Default of a hyperparameter that a file or config must have."""
ANY_BIAS = ("*",)
EXPERTS = "*"
"""Stands for an expert's number in a Hugging Face name."""
_ENDINGS = frozenset({"weight", "bias"})


@dataclass(frozen=True)
class Field:
    """One hyperparameter by both names.

    Attributes:
        ours: GGUF's key without the architecture's name.
        theirs: config.json's key; where it has several for one thing, the first is written.
        kind: int (at least 1), float or bool.
        default: what is meant where nothing is said, or a function of the config that says it; None: it may be missing.

    """

    ours: str
    theirs: tuple[str, ...]
    kind: type = int
    default: Any = NEEDED

    def of(self, config: Config) -> Any:
        """What a config says, else the default; None: nothing (or 0 where that means nothing)."""
        found = next((config[key] for key in self.theirs if config.get(key) is not None), None)
        if found is None or (found == 0 and self.default is None):
            return self.fallback(config)
        return self.kind(found)

    def fallback(self, config: Config) -> Any:
        """The default; None: there is none."""
        if self.default is NEEDED:
            return None
        return self.default(config) if callable(self.default) else self.default


@dataclass(frozen=True)
class Place:
    """Where a Hugging Face tensor goes.

    Attributes:
        name: GGUF tensor.
        expert: which of the experts that are stacked in it; -1: it is all of it.
        half: GGUF's is the first (0) or second (1) half of its rows; -1: all of them.

    """

    name: str
    expert: int = -1
    half: int = -1


@dataclass(frozen=True)
class Architecture:
    """One architecture of GGUF and the model type that it stands for.

    Attributes:
        name: `general.architecture`.
        model_type, hf_class: config.json's `model_type` and `architectures`.
        inner: GGUF name → Hugging Face name inside of layers, without `.weight` and `.bias` (or both with them). In the
            latter a * stands for an expert's number, [0] and [1] for the halves of its rows.
        fields: hyperparameters.
        outer: as `inner`, outside of layers.
        prefix, layers: before every tensor but the head, and before a layer's number.
        head, own_head: the head's name; True: llama.cpp needs it in the file, False: it has none but the embedding.
        fixed: config key → what llama.cpp has built in (values that come to the same; the first is read).
        reads: what a config says besides when it is read.
        writes: what GGUF's metadata say besides.
        derived: config keys that the model's class makes itself.
        flags: config key → the tensor of layer 0 that is there when it is true.
        biases: parts that may have one.
        rotary: projections whose rows are reordered; grouped: queries, keys and values lie together by groups;
            transposed: stored the other way round; norm_shift: what is added to norms.
        positions: it has rotary ones; factors: they can have factors (llama3, longrope); both: two kinds of layers have
            their own; one_base: but of one base; betas: YaRN's may be others than 32 and 1; alpha: "dynamic" ones with
            an alpha have another base and no other scaling.
        window: layers that are multiples of it see all, others a window, where the config does not say otherwise; 0:
            all see all. window_depth: the depth at which that is so; 0: any. no_rope: layers that are multiples of it
            have no positions; 0: all have.
        plain_heads: a head is as wide as hidden size by heads. own_keys: no heads share keys.
        deep: of models whose config says how queries are scaled: the depth at which llama.cpp scales them as if heads
            were plain; 0: the config does not say it.
        latent: keys and values come from a narrow common vector, and a part of each head alone has positions.
        ignored: Hugging Face tensors that GGUF has no place for and that are not needed to go on with a text.

    """

    name: str
    model_type: str
    hf_class: str
    inner: Mapping[str, str]
    fields: tuple[Field, ...]
    outer: Mapping[str, str] = field(default_factory=lambda: {"token_embd": "embed_tokens", "output_norm": "norm"})
    prefix: str = "model."
    layers: str = "layers"
    head: str = "lm_head"
    own_head: bool | None = None
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    reads: Config = field(default_factory=dict)
    writes: Config = field(default_factory=dict)
    derived: tuple[str, ...] = ()
    flags: Mapping[str, str] = field(default_factory=dict)
    biases: tuple[str, ...] = ("attn_q", "attn_k", "attn_v")
    rotary: tuple[str, ...] = ()
    grouped: bool = False
    transposed: tuple[str, ...] = ()
    norm_shift: float = 0.0
    positions: bool = True
    factors: bool = False
    both: bool = False
    one_base: bool = False
    betas: bool = False
    alpha: bool = False
    window: int = 0
    window_depth: int = 0
    no_rope: int = 0
    plain_heads: bool = False
    own_keys: bool = False
    deep: int = 0
    latent: bool = False
    ignored: str = r"(^|\.)(rotary_emb\.inv_freq)$"

    @property
    def has_experts(self) -> bool:
        """Whether its layers hold experts of which a router picks some."""
        return "ffn_gate_inp" in self.inner

    @functools.cached_property
    def _places(self) -> dict[str, list[tuple[str, int]]]:
        """Hugging Face name inside a layer, * for an expert → GGUF's names of it, each with the half that it is."""
        found: dict[str, list[tuple[str, int]]] = {}
        for ours, theirs in self.inner.items():
            name, _, half = theirs.removesuffix("]").partition("[")
            found.setdefault(name, []).append((ours, int(half or -1)))
        return found

    def places(self, name: str) -> list[Place]:
        """Where a Hugging Face tensor, with or without the base model's prefix, goes; none: nowhere."""
        stem, _, ending = name.rpartition(".")
        if ending in _ENDINGS and self.head and stem == self.head:
            return [Place(f"output.{ending}")] if ending == "weight" or self._may_have_bias("output") else []
        name = name.removeprefix(self.prefix)
        stem = stem.removeprefix(self.prefix)
        for ours, theirs in self.outer.items():
            if stem == theirs and (ending == "weight" or self._may_have_bias(ours)):
                return [Place(f"{ours}.{ending}")]
        match = re.fullmatch(rf"{re.escape(self.layers)}\.(\d+)\.(.+)", name)
        if not match:
            return []
        expert = re.search(r"(?<=experts\.)\d+(?=\.)", match[2])
        inside = match[2] if expert is None else match[2].replace(f"experts.{expert[0]}.", f"experts.{EXPERTS}.", 1)
        number = -1 if expert is None else int(expert[0])
        if inside in self._places:  # by its whole name
            return [Place(f"blk.{match[1]}.{ours}", number, half) for ours, half in self._places[inside]]
        stem, _, ending = inside.rpartition(".")
        if ending not in _ENDINGS:
            return []
        return [
            Place(f"blk.{match[1]}.{ours}.{ending}", number, half)
            for ours, half in self._places.get(stem, ())
            if ending == "weight" or self._may_have_bias(ours)
        ]

    def to_hf(self, name: str) -> Place | None:
        """Hugging Face's name of a GGUF tensor (* for each expert's number), and its part there; None: it has none."""
        stem, _, ending = name.rpartition(".")
        if ending not in _ENDINGS:
            return None
        if stem == "output" and self.head:
            return Place(f"{self.head}.{ending}")
        if stem in self.outer:
            return Place(f"{self.prefix}{self.outer[stem]}.{ending}")
        match = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
        if not match:
            return None
        whole = self.inner.get(f"{match[2]}.{ending}")
        theirs = whole or self.inner.get(match[2])
        if theirs is None:
            return None
        inside, _, half = theirs.removesuffix("]").partition("[")
        ended = inside if whole else f"{inside}.{ending}"
        return Place(f"{self.prefix}{self.layers}.{int(match[1])}.{ended}", half=int(half or -1))

    def loses(self, name: str, config: Config) -> bool:
        """Whether a GGUF tensor is a bias that the model of this config has no place for, and would do without."""
        stem, _, ending = name.rpartition(".")
        part = stem.rpartition(".")[2]
        if ending != "bias" or f"{part}.bias" in self.inner:
            return False
        block = part.partition("_")[0]  # attn or ffn
        asked = [key for key, there in self.flags.items() if there.startswith(f"{block}_") and there.endswith(".bias")]
        if part.endswith("norm"):  # which no flag is about
            asked = []
        return not self._may_have_bias(part) or not all(config.get(key) for key in asked)

    def said(self, ours: str, config: Config) -> Any:
        """What a config says of a hyperparameter; None: nothing, or it is none of this architecture."""
        return next((one.of(config) for one in self.fields if one.ours == ours), None)

    def _may_have_bias(self, part: str) -> bool:
        return self.biases == ANY_BIAS or part in self.biases

    def is_ignored(self, name: str) -> bool:
        """Whether a Hugging Face tensor can be left out."""
        return re.search(self.ignored, name) is not None

    def row_order(self, name: str, rows: int, heads: int, kv_heads: int) -> np.ndarray[Any, Any] | None:
        """Which of transformers' rows is each row of a GGUF tensor, int64 [rows]; None: they stay where they are.

        Raises:
            ValueError: the rows are not those of so many heads.

        """
        part = name.split(".")[-2]
        numbers = np.arange(rows)
        if part in self.rotary:  # halves (i, i + d/2) become neighbours (2i, 2i + 1)
            return numbers.reshape({"attn_q": heads, "attn_k": kv_heads}[part], 2, -1).swapaxes(1, 2).ravel()
        if part == "attn_qkv" and self.grouped:  # each group's queries, key and value become all queries, keys, values
            groups = numbers.reshape(kv_heads, heads // kv_heads + 2, -1)
            return np.concatenate([groups[:, :-2].ravel(), groups[:, -2].ravel(), groups[:, -1].ravel()])
        return None

    def is_transposed(self, name: str) -> bool:
        """Whether a GGUF tensor is the transpose of Hugging Face's."""
        return name.endswith(".weight") and name.split(".")[-2] in self.transposed

    def shift_of(self, name: str) -> float:
        """What a GGUF tensor has more than Hugging Face's."""
        return self.norm_shift if name.endswith("norm.weight") else 0.0

    def query_scale(self, config: Config) -> tuple[str, float]:
        """What queries go through last, and by what it must be multiplied for llama.cpp to scale them as the config."""
        part = "attn_q_norm.weight" if "attn_q_norm" in self.inner else "attn_q.weight"
        scalar = config.get("query_pre_attn_scalar")
        if not scalar or not self.deep:
            return part, 1.0
        return part, float((self.query_scalar(config) / float(scalar)) ** 0.5)

    def query_scalar(self, config: Config) -> int:
        """By the root of what llama.cpp divides queries."""
        if config["num_hidden_layers"] == self.deep:
            return int(config["hidden_size"]) // int(config["num_attention_heads"])
        return head_dim(config)


def head_dim(config: Config) -> int:
    """Width of an attention head's query and key."""
    if config.get("qk_nope_head_dim"):
        return int(config["qk_nope_head_dim"]) + int(config["qk_rope_head_dim"])
    return int(config.get("head_dim") or int(config["hidden_size"]) // int(config["num_attention_heads"]))


def field_of(ours: str, theirs: str, kind: type = int, default: Any = NEEDED) -> Field:
    """A hyperparameter; `theirs` may name several keys, with a bar between."""
    return Field(ours, tuple(theirs.split("|")), kind, default)
