"""A LoRA or DoRA adapter as PEFT writes it: what it changes in its base model, from config and headers alone.

An adapter is adapter_config.json and adapter_model.safetensors. Every key of the config that changes what the weights
mean is understood or refused by name, and every tensor is fitted to the base's shapes before anything is computed.
Format: https://huggingface.co/docs/peft/developer_guides/checkpoint; LoRA: Hu et al. 2021; rsLoRA: Kalajdzievski
2023; DoRA: Liu et al. 2024.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from evomerge_common.errors import ModelError, NotAModel, ShapeMismatch, UnsafeFile
from evomerge_models.model_folder import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    SUPPORT_FILES,
    TOKENIZER_FILES,
    ModelDescription,
    describe_model,
    read_json_object,
    read_safetensors_header,
    tensor_shapes,
    weights_among,
)

CONFIG = ADAPTER_CONFIG
WEIGHTS, BIN_WEIGHTS = ADAPTER_WEIGHTS
PAIR = "base_and_adapter.json"
"""Marks a folder that stands for a base with an adapter applied: paths of both, relative to the folder or absolute."""
PAIRS = "evomerge-pair-"
"""How the names of such folders begin that live as long as a process."""

_INERT = frozenset(
    {
        "auto_mapping", "base_model_name_or_path", "revision", "peft_type", "task_type", "inference_mode",
        "peft_version", "r", "target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out",
        "bias", "use_rslora", "modules_to_save", "layers_to_transform", "layers_pattern", "rank_pattern",
        "alpha_pattern", "megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config", "use_dora",
        "qalora_group_size", "runtime_config", "lora_bias", "ensure_weight_tying", "trainable_token_indices",
        "init_lora_weights", "velora_config",
    }
)  # fmt: skip
"""Config keys that are read here, or that only matter in training."""
_CHANGES_BASE = ("pissa", "corda", "olora", "loftq", "lora_ga")
"""Initialisations that subtract from the base what the factors start with."""
_PREFIX = "base_model.model."
_KEY = re.compile(
    r"(?P<module>.+?)\.(?:(?P<kind>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)"
    r"(?:\.default)?(?:\.(?P<part>weight|bias))?|base_layer\.(?P<base>weight|bias)"
    r"|token_adapter\.(?P<tokens>trainable_tokens_delta))"
)
_EMBEDDING = re.compile(r"(^|\.)(embed_tokens|wte|word_embeddings|embed_in|tok_embeddings|shared)\.weight$")
_HEAD = re.compile(r"(^|\.)(lm_head|embed_out)\.weight$|(^|\.)cls\.predictions\.decoder\.weight$")
CONV1D_TYPES = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})
"""Model types whose linear layers store (in, out)."""
_PLAIN = re.compile(r"\^?[\w.\-]+")
_MAX_PATTERN = 300

Shapes = Mapping[str, tuple[int, ...]]


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


@dataclass(frozen=True)
class Adapter:
    """An adapter folder, read and found sound in itself."""

    folder: Path
    config: Mapping[str, Any]
    tensors: Shapes = field(repr=False)

    @property
    def base(self) -> str:
        """The model that it says it was trained on, such as "org/name@revision"; "" when it does not say."""
        name, revision = self.config.get("base_model_name_or_path"), self.config.get("revision")
        if not isinstance(name, str):
            return ""
        pinned = isinstance(revision, str) and revision not in {"", "main"} and not name.startswith((".", "/", "~"))
        return f"{name}@{revision}" if pinned else name

    @property
    def parameters(self) -> int:
        """Numbers in its tensors."""
        return sum(math.prod(shape) for shape in self.tensors.values())


# ---- references ----


def split_reference(reference: str, *places: Path) -> tuple[str, str]:
    """(base, adapter) of "base+adapter"; (reference, "") of anything else, a folder with a plus sign in its name too.

    `places` are the folders that a relative name may start from, the current one if none are given.
    """
    text = reference.strip()

    def exists(name: str) -> bool:
        return any((place / Path(name).expanduser()).exists() for place in places or (Path(),))

    if not exists(text):
        cuts = [i for i, sign in enumerate(text) if sign == "+"]
        place = next((cut for cut in cuts if exists(text[:cut].strip())), cuts[0] if cuts else -1)
        if place > 0:
            return text[:place].strip(), text[place + 1 :].strip()
    return text, ""


def base_beside(adapter: Path, *places: Path) -> str:
    """The base that an adapter says it was trained on: a folder, also relative to it or to `places`; else a hub id.

    Raises:
        ModelError: it does not say, or is unsound.

    """
    told = read_adapter(adapter).base
    if not told:
        raise ModelError(
            f"{adapter} is a LoRA adapter that does not tell its base: write base+adapter, or set the base"
        )
    for place in (Path(), adapter, *places):
        if (folder := place / Path(told).expanduser()).is_dir():
            return str(folder)
    return told


# ---- folders ----


def is_adapter(names: Iterable[str]) -> bool:
    """Whether a folder or repository with these files is an adapter without a model of its own."""
    top = set(names)
    return CONFIG in top and not weights_among(top)


def is_adapter_folder(folder: Path) -> bool:
    """See `is_adapter`."""
    return folder.is_dir() and is_adapter(item.name for item in folder.iterdir())


def write_pair(folder: Path, base: Path, adapter: Path) -> None:
    """Makes an empty folder stand for base + adapter: links to the small files, and `PAIR`.

    The adapter's tokenizer, where it brings one, goes before the base's; weights are neither copied nor linked.

    Args:
        folder: exists already.
        base: a model folder, relative to `folder` or absolute.
        adapter: an adapter folder, likewise.

    """
    there = {item.name for item in (folder / adapter).iterdir()}
    of_adapter = there & SUPPORT_FILES - {"config.json", "generation_config.json"} if there & TOKENIZER_FILES else set()
    of_base = {item.name for item in (folder / base).iterdir()} & SUPPORT_FILES
    if of_adapter:
        of_base &= {"config.json", "generation_config.json"}
    for names, place in ((of_base, base), (of_adapter, adapter)):
        for name in names:
            (folder / name).symlink_to(place / name)
    (folder / PAIR).write_text(json.dumps({"base": str(base), "adapter": str(adapter)}) + "\n", "utf-8")


def read_pair(folder: Path) -> tuple[Path, Path] | None:
    """Base and adapter of a folder that stands for both; None for any other folder.

    Raises:
        NotAModel: one of them is gone.

    """
    path = folder / PAIR
    if not path.is_file():
        return None
    data = read_json_object(path)
    if not all(isinstance(data.get(key), str) for key in ("base", "adapter")):
        raise NotAModel(f"{path} does not name a base and an adapter; fetch the model again")
    base, adapter = ((folder / data[key]).resolve() for key in ("base", "adapter"))
    for place in (base, adapter):
        if not place.is_dir():
            raise NotAModel(f"{folder} stands for a base with an adapter, but {place} is gone; fetch the model again")
    return base, adapter


def describe_pair(base: Path, adapter: Path) -> ModelDescription:
    """What a base with an adapter applied is, after checking that they fit each other. Headers alone are read.

    Raises:
        ModelError: one of them is unsound, or they do not fit.

    """
    whole, read = describe_model(base), read_adapter(adapter)
    shapes = tensor_shapes(base)
    if shapes:
        changes(read, shapes, label=str(base), model_type=str(read_json_object(base / "config.json").get("model_type")))
    size = (adapter / WEIGHTS).stat().st_size
    return replace(whole, bytes=whole.bytes + size)


# ---- one adapter ----


def read_adapter(folder: Path) -> Adapter:
    """Reads config and header.

    Raises:
        NotAModel: a file is missing, or the config is none.
        ModelError: a key of the config that this version does not apply, by name.
        UnsafeFile: a pickle, or a header that lies.

    """
    config = read_json_object(folder / CONFIG)
    check_adapter_config(config, str(folder / CONFIG))
    if not (folder / WEIGHTS).is_file():
        if (folder / BIN_WEIGHTS).is_file():
            raise UnsafeFile(
                f"{folder} has {BIN_WEIGHTS} only, a pickle, which is not read; load it with PEFT where you trust "
                f"it and save it again as {WEIGHTS}"
            )
        raise NotAModel(f"{folder} has no {WEIGHTS}; its download is not complete, or it is no adapter")
    header = read_safetensors_header(folder / WEIGHTS)
    if not header:
        raise NotAModel(f"{folder / WEIGHTS} holds no tensor")
    return Adapter(folder, config, {name: tuple(entry["shape"]) for name, entry in header.items()})


def check_adapter_config(config: Mapping[str, Any], where: str) -> None:
    """Refuses whatever would make the weights mean something else than this module applies, naming the key.

    Raises:
        ModelError: see above.

    """

    def refuse(key: str, why: str) -> ModelError:
        return ModelError(f"{where}: {key}: {why}")

    kind = config.get("peft_type")
    if kind != "LORA":
        raise refuse("peft_type", f"{kind!r} adapters are not applied; LORA ones are (DoRA and rsLoRA among them)")
    for key, value in config.items():
        if key not in _INERT and value not in (None, False, "", 0, [], {}):
            raise refuse(key, f"{str(value)[:60]!r} is not supported; merge the adapter into its base with PEFT first")
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        raise refuse(
            "init_lora_weights",
            f"{start!r} changes the base's weights too, which this folder does not hold; save the adapter converted to "
            "plain LoRA (path_initial_model_for_weight_conversion of PEFT's save_pretrained)",
        )
    for key in ("r", "lora_alpha"):
        value = config.get(key, 8)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
            raise refuse(key, f"must be a number above zero, not {value!r}")
    for key in ("rank_pattern", "alpha_pattern"):
        patterns = config.get(key) or {}
        if not isinstance(patterns, Mapping):
            raise refuse(key, f"must be modules and numbers, not {str(patterns)[:60]!r}")
        for name, value in patterns.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 2**31:
                raise refuse(key, f"{name!r} must have a number above zero, not {value!r}")
            _pattern(str(name), f"{where}: {key}")
    bias = config.get("bias", "none")
    if bias not in {"none", "all", "lora_only", None}:
        raise refuse("bias", f"must be none, all or lora_only, not {bias!r}")


def _pattern(text: str, where: str) -> re.Pattern[str]:
    """A name or regular expression of modules, at the end of a module's name as PEFT matches it."""
    if not _PLAIN.fullmatch(text) and (len(text) > _MAX_PATTERN or re.search(r"\)[*+{?]|[*+}][*+{]", text)):
        # What strangers wrote must not keep a machine busy: repeated groups can take exponential time.
        raise ModelError(f"{where}: the pattern {text[:60]!r} is too involved; name the modules instead")
    try:
        return re.compile(rf"(?:.*\.)?(?:{text})$")
    except re.error as error:
        raise ModelError(f"{where}: {text[:60]!r} is no regular expression: {error}") from error


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
        self._file = adapter.folder / WEIGHTS
        self._found: dict[str, Change] = {}
        config = adapter.config
        self._ranks = self._patterns("rank_pattern", float(config.get("r", 8)))
        self._alphas = self._patterns("alpha_pattern", float(config.get("lora_alpha", 8)))
        self._embedding = next((name for name in base if _EMBEDDING.search(name)), "")

    def _patterns(self, key: str, default: float) -> list[tuple[re.Pattern[str], float]]:
        given = self._adapter.config.get(key) or {}
        where = f"{self._adapter.folder / CONFIG}: {key}"
        return [(_pattern(str(name), where), float(value)) for name, value in given.items()] + [
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
        """Module and part of a tensor's name: "lora_A", "base.weight", "tokens", or "weight" for a plain tensor."""
        name = key.removeprefix(_PREFIX).replace(".modules_to_save.", ".")
        match = _KEY.fullmatch(name)
        if match is not None:
            kind = match["kind"]
            if kind:
                return match["module"], f"{kind}.bias" if match["part"] == "bias" else kind
            return match["module"], f"base.{match['base']}" if match["base"] else "tokens"
        if "lora_" in name or "." not in name or "original_module" in name:
            raise ModelError(f"{self._file}: tensor {key!r} is none that this version applies")
        module, _, part = name.rpartition(".")
        return module, part

    def _module(self, module: str, parts: Mapping[str, str]) -> None:
        for part, key in parts.items():
            if part in {"weight", "bias", "base.weight", "base.bias"}:
                self._replace(module, part.removeprefix("base."), key)
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
            f"adapter was trained on ({self._adapter.base or 'not told'})?"
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
        told = self._adapter.config.get("trainable_token_indices")
        if isinstance(told, Mapping):
            told = next((value for part, value in told.items() if f".{module}".endswith(f".{part}")), None)
        where = f"{self._adapter.folder / CONFIG}: trainable_token_indices"
        if not isinstance(told, list) or not all(type(row) is int and 0 <= row < change.shape[0] for row in told):
            raise ModelError(f"{where}: must be rows of {name}, which has {change.shape[0]}")
        shape = self._adapter.tensors[key]
        if shape != (len(told), *change.shape[1:]):
            raise self._misfit(key, shape, f"{len(told)} rows of {name}", (len(told), *change.shape[1:]))
        self._found[name] = replace(change, rows=key, row_numbers=tuple(told))

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
                f"{self._file}: {module} has factors of shape {list(shape_a)} and {list(shape_b)}, but {CONFIG} says "
                f"rank {rank:g}; the adapter is damaged, or its config is another's"
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
                f"{self._adapter.folder / CONFIG}: lora_bias: {module} has no bias in {self._label}, so the adapter's "
                "cannot be merged into it"
            )
        name, change = self._change(wanted)
        if self._adapter.tensors[key] != change.shape:
            raise self._misfit(key, self._adapter.tensors[key], name, change.shape)
        self._found[name] = replace(change, added=key, factor=scale)

    def _misfit(self, key: str, shape: tuple[int, ...], name: str, wanted: tuple[int, ...]) -> ShapeMismatch:
        return ShapeMismatch(
            f"{self._file}: {key} has shape {list(shape)}, but {name} of {self._label} has {list(wanted)}; give the "
            f"base that the adapter was trained on ({self._adapter.base or 'not told'})"
        )
