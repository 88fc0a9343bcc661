"""What an adapter makes of its base, tensor by tensor: all fitted to its shapes before any computing."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from evomerge_common.errors import ModelError, ShapeMismatch
from evomerge_models.adapter import Adapter, Shapes, module_pattern
from evomerge_models.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS

_PREFIX = "base_model.model."
_KEY = re.compile(
    r"(?P<module>.+?)\.(?:(?P<kind>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)"
    r"(?:\.default)?(?:\.(?P<part>weight|bias))?|(?:token_adapter\.)?base_layer\.(?P<base>weight|bias)"
    r"|token_adapter\.(?P<tokens>trainable_tokens_delta))"
)
_EMBEDDING = re.compile(r"(^|\.)(embed_tokens|wte|word_embeddings|embed_in|tok_embeddings|shared)\.weight$")
_HEAD = re.compile(r"(^|\.)(lm_head|embed_out)\.weight$|(^|\.)cls\.predictions\.decoder\.weight$")
_ORIGINAL = ".original_module."
CONV1D_TYPES = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})
"""Model types whose linear layers store (in, out)."""


@dataclass(frozen=True)
class LowRank:
    """W + scale · B·A for A (rank, in) and B (out, rank), by their names in the adapter's file.

    `transposed`: the base stores W as (in, out), so (B·A)ᵀ is added. `magnitude`: DoRA's vector; the sum's length along
    each output (of an embedding: each column) is then set to it.
    """

    a: str
    b: str
    rank: int
    scale: float
    transposed: bool = False
    magnitude: str = ""


@dataclass(frozen=True)
class Change:
    """What becomes of one tensor, in this order: replaced, low-rank update, something added, single rows replaced.

    Attributes:
        shape: of the result.
        start: the base's tensor that it is made from: itself, or of a head that was tied the embedding.
        replaced, added, rows: names in the adapter's file.

    """

    shape: tuple[int, ...]
    start: str
    replaced: str = ""
    low_rank: LowRank | None = None
    added: str = ""
    factor: float = 1.0
    rows: str = ""
    row_numbers: tuple[int, ...] = ()

    @property
    def is_low_rank(self) -> bool:
        """Whether it is nothing but a low-rank update."""
        update = self.low_rank
        return update is not None and not (self.replaced or self.rows or update.magnitude)


def changes(adapter: Adapter, base: Shapes, *, label: str, model_type: str = "") -> dict[str, Change]:
    """What the adapter changes, by the base's tensor names (and a head's name, where the base has it tied).

    Args:
        adapter: from `read_adapter`.
        base: shapes of the base's tensors.
        label: how to call the base in an error.
        model_type: the base config's.

    Raises:
        ShapeMismatch: a module that the base does not have, or shapes that do not fit.
        ModelError: tensors that this version does not apply.

    """
    return _Fitting(adapter, base, label, model_type).all()


class _Fitting:
    def __init__(self, adapter: Adapter, base: Shapes, label: str, model_type: str) -> None:
        self._adapter, self._base, self._label, self._type = adapter, base, label, model_type
        self._file = adapter.folder / ADAPTER_WEIGHTS
        self._found: dict[str, Change] = {}
        config = adapter.config
        self._ranks = self._patterns("rank_pattern", float(config.get("r", 8)))
        self._alphas = self._patterns("alpha_pattern", float(config.get("lora_alpha", 8)))
        self._embedding = next((name for name in base if _EMBEDDING.search(name)), "")

    def _patterns(self, key: str, default: float) -> list[tuple[re.Pattern[str], float]]:
        given = self._adapter.config.get(key) or {}
        where = f"{self._adapter.folder / ADAPTER_CONFIG}: {key}"
        return [(module_pattern(str(name), where), float(value)) for name, value in given.items()] + [
            (re.compile(""), default)
        ]

    def all(self) -> dict[str, Change]:
        parts: dict[str, dict[str, str]] = {}
        for key in self._adapter.tensors:
            module, part = self._place(key)
            parts.setdefault(module, {})[part] = key
        for module in sorted(parts):
            self._module(module, parts[module])
        return self._found

    def _place(self, key: str) -> tuple[str, str]:
        """Module and part of a tensor's name: "lora_A", "base.weight", "tokens", or "weight" for a plain tensor.

        PEFT wraps a module that is saved, and one with trained tokens: `original_module` is the wrapped one, which a
        saved module takes the place of, and which trained tokens are put into.
        """
        name = key.removeprefix(_PREFIX).replace(".modules_to_save.", ".")
        if _ORIGINAL in name:
            module, _, part = name.replace(_ORIGINAL, ".").rpartition(".")
            return module, f"original.{part}"
        match = _KEY.fullmatch(name)
        if match is not None:
            kind = match["kind"]
            if kind:
                return match["module"], f"{kind}.bias" if match["part"] == "bias" else kind
            return match["module"], f"base.{match['base']}" if match["base"] else "tokens"
        if "lora_" in name or "." not in name:
            raise ModelError(f"{self._file}: tensor {key!r} is none that this version applies")
        module, _, part = name.rpartition(".")
        return module, part

    def _module(self, module: str, parts: Mapping[str, str]) -> None:
        for part, key in parts.items():
            role, _, plain = part.rpartition(".")
            if role == "original":
                if "tokens" in parts and f"base.{plain}" not in parts:
                    self._replace(module, plain, key)
                elif "tokens" not in parts and plain not in parts:
                    raise ModelError(f"{self._file}: {key!r} is a module that was replaced, but nothing replaces it")
            elif part in {"weight", "bias", "base.weight", "base.bias"}:
                self._replace(module, plain, key)
            elif not part.startswith(("lora_", "tokens")):
                self._replace(module, part, key)
        if "tokens" in parts:
            self._tokens(module, parts["tokens"])
        for a, b in (("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B")):
            if (a in parts) != (b in parts):
                raise ModelError(f"{self._file}: {module} has {a if a in parts else b} without its counterpart")
            if a in parts:
                self._low_rank(module, parts[a], parts[b], parts, embedding="embedding" in a)
        if "lora_magnitude_vector" in parts and not {"lora_A", "lora_embedding_A"} & parts.keys():
            raise ModelError(f"{self._file}: {module} has a magnitude vector without factors")

    def _name(self, wanted: str) -> tuple[str, str]:
        """(name in the result, the base's tensor that it starts from)."""
        if wanted in self._base:
            return wanted, wanted
        near = [name for name in self._base if name.endswith("." + wanted) or wanted.endswith("." + name)]
        if len(near) == 1:
            return near[0], near[0]
        if _HEAD.search(wanted) and self._embedding and not any(_HEAD.search(name) for name in self._base):
            return wanted, self._embedding
        module = wanted.rpartition(".")[0]
        raise ShapeMismatch(
            f"{self._file} changes {module!r}, but {self._label} has no tensor {wanted!r}; is it the base that the "
            f"adapter was trained on ({self._adapter.base or 'its config does not say'})?"
        )

    def _change(self, wanted: str) -> tuple[str, Change]:
        name, start = self._name(wanted)
        return name, self._found.get(name) or Change(tuple(self._base[start]), start)

    def _replace(self, module: str, part: str, key: str) -> None:
        name, change = self._change(f"{module}.{part}")
        shape = self._adapter.tensors[key]
        grown = (_EMBEDDING.search(name) or _HEAD.search(name)) and shape[1:] == change.shape[1:]
        if shape != change.shape and not grown:
            raise self._misfit(key, shape, name, change.shape)
        self._found[name] = replace(change, replaced=key, shape=shape)

    def _tokens(self, module: str, key: str) -> None:
        name, change = self._change(f"{module}.weight")
        numbers = self._adapter.config.get("trainable_token_indices")
        if isinstance(numbers, Mapping):
            modules = (module, self._embedding.removesuffix(".weight")) if _HEAD.search(name) else (module,)
            numbers = next(  # of a head that is tied, those of the embedding
                (rows for one in modules for part, rows in numbers.items() if f".{one}".endswith(f".{part}")), None
            )
        where = f"{self._adapter.folder / ADAPTER_CONFIG}: trainable_token_indices"
        if not isinstance(numbers, list) or not all(type(row) is int and 0 <= row < change.shape[0] for row in numbers):
            raise ModelError(f"{where}: must be rows of {name}, which has {change.shape[0]}")
        shape = self._adapter.tensors[key]
        if shape != (len(numbers), *change.shape[1:]):
            raise self._misfit(key, shape, f"{len(numbers)} rows of {name}", (len(numbers), *change.shape[1:]))
        self._found[name] = replace(change, rows=key, row_numbers=tuple(numbers))

    def _low_rank(self, module: str, a: str, b: str, parts: Mapping[str, str], *, embedding: bool) -> None:
        name, change = self._change(f"{module}.weight")
        shape_a, shape_b = self._adapter.tensors[a], self._adapter.tensors[b]
        if len(shape_a) != 2 or len(shape_b) != 2 or len(change.shape) != 2:
            raise ModelError(
                f"{self._file}: {module} has factors of shape {list(shape_a)} and {list(shape_b)}; only matrices are "
                "applied (no convolutions)"
            )
        rank = next(value for pattern, value in self._ranks if pattern.match(module))
        if shape_a[0] != shape_b[1] or shape_a[0] != rank or not rank:
            raise ShapeMismatch(
                f"{self._file}: {module} has factors of shape {list(shape_a)} and {list(shape_b)}, but "
                f"{ADAPTER_CONFIG} says rank {rank:g}; the adapter is damaged, or its config is another's"
            )
        product = (shape_b[0], shape_a[1])
        flipped = product[::-1] == change.shape
        if product != change.shape and not flipped:
            raise self._misfit(f"{module} (B·A)", product, name, change.shape)
        square = product[0] == product[1]
        transposed = embedding or (flipped and (not square or self._type in CONV1D_TYPES))
        alpha = next(value for pattern, value in self._alphas if pattern.match(module))
        scale = alpha / (math.sqrt(rank) if self._adapter.config.get("use_rslora") else rank)
        magnitude = parts.get("lora_magnitude_vector", "")
        if self._adapter.config.get("use_dora") and not magnitude:
            raise ModelError(f"{self._file}: use_dora is set, but {module} has no lora_magnitude_vector")
        if magnitude and math.prod(self._adapter.tensors[magnitude]) != product[0]:
            raise self._misfit(magnitude, self._adapter.tensors[magnitude], f"outputs of {name}", (product[0],))
        update = LowRank(a, b, int(rank), scale, transposed, magnitude)
        self._found[name] = replace(change, low_rank=update)
        if "lora_B.bias" in parts:
            self._bias(module, parts["lora_B.bias"], scale)

    def _bias(self, module: str, key: str, scale: float) -> None:
        wanted = f"{module}.bias"
        if wanted not in self._base and not any(name.endswith("." + wanted) for name in self._base):
            raise ModelError(
                f"{self._adapter.folder / ADAPTER_CONFIG}: lora_bias: {module} has no bias in {self._label}, so the "
                "adapter's cannot be merged into it"
            )
        name, change = self._change(wanted)
        if self._adapter.tensors[key] != change.shape:
            raise self._misfit(key, self._adapter.tensors[key], name, change.shape)
        self._found[name] = replace(change, added=key, factor=scale)

    def _misfit(self, key: str, shape: tuple[int, ...], name: str, wanted: tuple[int, ...]) -> ShapeMismatch:
        return ShapeMismatch(
            f"{self._file}: {key} has shape {list(shape)}, but {name} of {self._label} has {list(wanted)}; give the "
            f"base that the adapter was trained on ({self._adapter.base or 'its config does not say'})"
        )
