"""Which files of a folder or repository make a model: chosen by name, listed by an index, small ones read as JSON.

A usable folder has config.json, weights (safetensors; PyTorch's .bin only where there are none) and a tokenizer, all
at its top level; or it is a LoRA adapter (`adapter`), or stands for a base with one (`pair`).
Of everything else in it (other frameworks' weights, ONNX, Python code) nothing is read or fetched.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evomerge_common.errors import ModelError, ModelNotFound, NotAModel, UnsafeFile
from evomerge_models.gguf_names import GGUF, check_gguf_file, which_gguf

MAX_JSON_BYTES = 64_000_000
"""An index of a model with a million tensors is about this large."""
MAX_SMALL_BYTES = 512_000_000
"""Tokenizers may be large; what is larger than this is left alone."""

CONFIG = "config.json"
MODULES = "modules.json"
"""What sentence-transformers puts behind the model, each in a folder of its own, such as 1_Pooling."""
PROCESSOR_FILES = frozenset({"preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"})
"""How a model's images and videos are prepared."""
COMPANION_FILES = PROCESSOR_FILES | {
    MODULES, "sentence_bert_config.json", "config_sentence_transformers.json",
}  # fmt: skip
"""Small files of processors and of sentence-transformers: a merge copies them, for a model is not whole without."""
SUPPORT_FILES = COMPANION_FILES | frozenset(
    {
        CONFIG, "generation_config.json",
        "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
        "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt", "merges.txt",
        "chat_template.jinja", "chat_template.json",
    }
)  # fmt: skip
CONFIG_FILES = COMPANION_FILES | frozenset({CONFIG, "generation_config.json"})
"""What a base keeps of its own when its adapter brings a tokenizer."""
TOKENIZER_FILES = frozenset(
    {"tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt"}
)
ADAPTER_CONFIG, ADAPTER_WEIGHTS, ADAPTER_PICKLE = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
)
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
BIN_SINGLE, BIN_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
_STANDARD = ((INDEX, SINGLE, ".safetensors"), (BIN_INDEX, BIN_SINGLE, ".bin"))
_SHARD = re.compile(r"(model|pytorch_model)-\d+-of-(?P<of>\d+)\.(safetensors|bin)")
_ANEW = "save the model anew, or fetch it again where it came from a hub"
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_OF_MODULE = re.compile(r"\d+_\w+/[A-Za-z0-9_][A-Za-z0-9._-]*\.(json|safetensors|txt)", re.ASCII)


@dataclass(frozen=True)
class Selection:
    """The files of a folder or repository that make its model, sorted: names at the top level, or of a module's file
    (1_Pooling/config.json).
    """

    support: tuple[str, ...]
    weights: tuple[str, ...]

    @property
    def is_adapter(self) -> bool:
        """Whether it is a LoRA adapter, which needs a base."""
        return ADAPTER_CONFIG in self.support

    @property
    def files(self) -> tuple[str, ...]:
        """All of them, sorted."""
        return tuple(sorted({*self.support, *self.weights}))


@dataclass(frozen=True)
class WeightFiles:
    """The weights of a folder: file names, in the index's order where there is one, and the index's name.

    `placed` holds the file of each tensor as the index has it; it is empty without an index.
    """

    files: tuple[str, ...]
    index: str = ""
    placed: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def are_safetensors(self) -> bool:
        """Whether they are safetensors files, not pickles."""
        return self.files[0].endswith(".safetensors")


# ---- by name ----


def select_files(names: Iterable[str], where: str, file: str = "") -> Selection:
    """Chooses what to take from the names of a folder or repository.

    Args:
        names: of its files.
        where: how to call it in an error.
        file: the one GGUF file that is wanted; "": the files that make a model.

    Raises:
        ModelError: GGUF files alone; a part of a GGUF file.
        ModelNotFound: it has no such file.
        NotAModel: config, weights or tokenizer are missing.
        UnsafeFile: an adapter whose weights are a pickle.

    """
    names = set(names)
    if file:
        check_gguf_file(names, where, file)
        return Selection((), (file,))
    top = {name for name in names if _PLAIN_NAME.fullmatch(name)}
    if is_adapter(top):
        check_adapter_files(top, where)
        return Selection(tuple(sorted(tokenizer_of_adapter(top) | {ADAPTER_CONFIG})), (ADAPTER_WEIGHTS,))
    found = f"it has {', '.join(sorted(top)[:8])}{' …' if len(top) > 8 else ''}" if top else "it is empty"
    if CONFIG not in top and not any(name.endswith(".gguf") for name in top):
        raise NotAModel(f"{where} has no config.json, so it is no model folder ({found}); give the folder that has it")
    weights = weights_among(top)
    if not weights or CONFIG not in top:
        raise _no_weights(top, where)
    _check_listed(weights, top, where)
    if not top & TOKENIZER_FILES:
        raise NotAModel(f"{where} has no tokenizer (tokenizer.json, tokenizer.model, vocab.json or vocab.txt); {found}")
    stale = weights[0] in {SINGLE, BIN_SINGLE}
    indexes = set() if stale else {INDEX if weights[0].endswith(".safetensors") else BIN_INDEX} & top
    modules = {name for name in names if _OF_MODULE.fullmatch(name)} if MODULES in top else set()
    return Selection(tuple(sorted(top & SUPPORT_FILES | indexes | modules)), weights)


def weights_among(top: Collection[str]) -> tuple[str, ...]:
    """The weights of a model among a folder's file names, sorted; an adapter's are none.

    Safetensors before .bin; the standard names before others (a `consolidated` copy would double the download).
    """

    def others(ending: str) -> tuple[str, ...]:
        return tuple(sorted(n for n in top if n.endswith(ending) and not n.startswith(("adapter_", "consolidated"))))

    for index, single, ending in _STANDARD:
        if single in top:  # an index beside it is of an earlier save: transformers does not look at it
            return (single,)
        shards = tuple(name for name in others(ending) if _SHARD.fullmatch(name))
        if shards:
            return shards
        if index in top and others(ending):
            return others(ending)
    return others(".safetensors")


def _check_listed(files: tuple[str, ...], top: Collection[str], where: str) -> None:
    """Several files are a model only with the index that names them: without it nobody knows whether one is missing."""
    shard = _SHARD.fullmatch(files[0])
    index = INDEX if files[0].endswith(".safetensors") else BIN_INDEX
    if index not in top and (len(files) > 1 or (shard is not None and int(shard["of"]) > 1)):
        raise NotAModel(
            f"{where} has {', '.join(files[:3])}{' …' if len(files) > 3 else ''} and no {index} that names its weights "
            "files; its download is not complete"
        )


def _no_weights(top: Collection[str], where: str) -> ModelError:
    if any(name.endswith(GGUF) for name in top):
        return ModelError(f"{where} holds GGUF files only; {which_gguf(top)}")
    return NotAModel(
        f"{where} has no weights: neither {SINGLE} nor {INDEX}, and no {BIN_SINGLE}; its download is not complete, or "
        f"it is no model (it has {', '.join(sorted(top)[:8])}{' …' if len(top) > 8 else ''})"
    )


def is_adapter(names: Iterable[str]) -> bool:
    """Whether a folder or repository with these files is an adapter without a model of its own."""
    top = set(names)
    return ADAPTER_CONFIG in top and not weights_among(top)


def check_adapter_files(top: Collection[str], where: str) -> None:
    """Refuses an adapter without safe weights.

    Raises:
        UnsafeFile: its weights are a pickle.
        NotAModel: it has none.

    """
    if ADAPTER_WEIGHTS in top:
        return
    if ADAPTER_PICKLE in top:
        raise UnsafeFile(
            f"{where} is a LoRA adapter with {ADAPTER_PICKLE} only, a pickle, which is not read; load it with PEFT "
            f"where you trust it and save it again as {ADAPTER_WEIGHTS}"
        )
    raise NotAModel(
        f"{where} has {ADAPTER_CONFIG} but no {ADAPTER_WEIGHTS}; its download is not complete, or it is no adapter"
    )


def tokenizer_of_adapter(top: Collection[str]) -> set[str]:
    """The small files that an adapter brings for its base's; none when it has no tokenizer."""
    return {*top} & SUPPORT_FILES - CONFIG_FILES if TOKENIZER_FILES & {*top} else set()


# ---- in a folder ----


def names_in(folder: Path) -> set[str]:
    """Names of the files at the folder's top level."""
    return {item.name for item in folder.iterdir() if item.is_file()}


def names_with_modules(folder: Path) -> set[str]:
    """Those and, of a model of sentence-transformers, those of its modules, such as 1_Pooling/config.json."""
    top = names_in(folder)
    inside = (item.relative_to(folder).as_posix() for item in folder.glob("*/*") if item.is_file())
    return top | {name for name in inside if _OF_MODULE.fullmatch(name)} if MODULES in top else top


def is_adapter_folder(folder: Path) -> bool:
    """See `is_adapter`."""
    return folder.is_dir() and is_adapter(names_in(folder))


def check_whole(folder: Path) -> None:
    """Refuses what cannot be a whole model in Hugging Face form, before anything else is done.

    Raises:
        ModelNotFound, NotAModel, ModelError: no such folder; no config.json; a GGUF file or an adapter.

    """
    if folder.is_file() and folder.suffix == ".gguf":
        raise ModelError(f"{folder} is a GGUF file; make a folder of it: evomerge export {folder} FOLDER")
    if not folder.exists():
        raise ModelNotFound(f"no folder {folder}; give an existing model folder or a hub id such as org/name")
    if not folder.is_dir():
        raise NotAModel(f"{folder} is a file; give the folder that holds config.json, the weights and the tokenizer")
    if not (folder / CONFIG).is_file():
        if (folder / ADAPTER_CONFIG).is_file():
            raise ModelError(f"{folder} is a LoRA adapter, and the base of another cannot be one: merge it first")
        raise NotAModel(f"{folder} has no config.json; give the folder of a model in Hugging Face form")


def weight_files(folder: Path) -> WeightFiles:
    """The weights of a folder that are read, by the order in which transformers looks for them.

    model.safetensors, else all that its index names; else .bin files likewise; else what the names tell.

    Raises:
        UnsafeFile: an index that points out of the folder.
        NotAModel: no weights; a shard or the shards' index is missing.
        ModelError: GGUF files alone.

    """
    top = names_in(folder)
    for index, single, ending in _STANDARD:
        if single in top:
            return WeightFiles((single,))
        if index in top:
            placed = _read_index(folder / index, ending)
            return WeightFiles(tuple(dict.fromkeys(placed.values())), index, placed)
    files = weights_among(top)
    if not files:
        raise _no_weights(top, str(folder))
    _check_listed(files, top, str(folder))
    return WeightFiles(files)


def _read_index(path: Path, ending: str) -> dict[str, str]:
    """Tensor name → file, each of which is there."""
    placed = read_json_object(path).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise UnsafeFile(f"{path} has no weight_map, so it names no weights; {_ANEW}")
    for file in placed.values():
        if not isinstance(file, str) or not _PLAIN_NAME.fullmatch(file) or not file.endswith(ending):
            raise UnsafeFile(
                f"{path} points to {str(file)[:80]!r}, which is not a file of this folder with "
                "weights; it is not opened"
            )
    for file in dict.fromkeys(placed.values()):
        if not (path.parent / file).is_file():
            raise NotAModel(f"{path.parent} lacks {file}, which {path.name} names; its download is not complete")
    return placed


def check_index(folder: Path, weights: WeightFiles, tensors: Mapping[str, Collection[str]]) -> None:
    """Compares what the files hold (file → tensor names) with each other and with the index.

    Raises:
        UnsafeFile: two files hold the same tensor.
        NotAModel: there is no tensor at all, or a file lacks one that the index says it holds.

    """
    if not any(tensors.values()):
        raise NotAModel(f"{folder} has weights without a tensor: they were saved empty; {_ANEW}")
    where: dict[str, str] = {}
    for file, names in tensors.items():
        for name in names:
            if where.setdefault(name, file) != file:
                raise UnsafeFile(f"{folder}: {where[name]} and {file} both hold {name!r}")
    for name, file in weights.placed.items():
        if where.get(name) != file:
            raise NotAModel(f"{folder / weights.index} says that {file} holds {name!r}, but it does not")


# ---- JSON ----


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON object of a sane size.

    Raises:
        NotAModel: it is something else, or cannot be read.
        UnsafeFile: it is larger than any such file needs to be.

    """
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise UnsafeFile(f"{path} is {size} bytes; more than {MAX_JSON_BYTES} are not read")
        data = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise NotAModel(f"{path} is no JSON ({error}); {_ANEW}") from error
    except OSError as error:
        raise NotAModel(f"{path} cannot be read ({error.strerror}); make it readable for this user") from error
    if not isinstance(data, dict):
        raise NotAModel(f"{path} is no JSON object; {_ANEW}")
    return data


def read_json_or_nothing(path: Path) -> dict[str, Any]:
    """A JSON object; empty when the file is missing, too large, or something else: such files may be, without harm."""
    try:
        if path.stat().st_size > MAX_SMALL_BYTES:
            return {}
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}
