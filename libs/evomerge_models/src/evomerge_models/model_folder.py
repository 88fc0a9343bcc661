"""What a model folder holds, from names and headers alone: no weights are read and nothing is unpickled.

A usable folder has config.json, weights (safetensors; PyTorch's .bin only where there are none) and a tokenizer, all
at its top level; or it is a LoRA adapter, or stands for a base with one (`lora_folder`).
Of everything else in it (other frameworks' weights, ONNX, Python code) nothing is read or fetched.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge_common.errors import ModelError, ModelNotFound, NotAModel, UnsafeFile
from evomerge_models.quantised import check_plain

__all__ = [
    "ModelDescription",
    "Selection",
    "check_model_folder",
    "describe_model",
    "read_json_object",
    "read_safetensors_header",
    "select_files",
    "tensor_shapes",
    "weights_among",
]

MAX_HEADER_BYTES = 100 * 1000 * 1000  # the limit of the safetensors format itself
MAX_JSON_BYTES = 50 * 1000 * 1000  # an index of a model with a million tensors is about this large

SUPPORT_FILES = frozenset(
    {
        "config.json", "generation_config.json",
        "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
        "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt", "merges.txt",
        "chat_template.jinja", "chat_template.json",
    }
)  # fmt: skip
TOKENIZER_FILES = frozenset(
    {"tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt"}
)
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", ("adapter_model.safetensors", "adapter_model.bin")
SAFETENSORS_INDEX, BIN_INDEX = "model.safetensors.index.json", "pytorch_model.bin.index.json"
_SHARD = re.compile(r"(model|pytorch_model)-\d+-of-\d+\.(safetensors|bin)")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


@dataclass(frozen=True)
class Selection:
    """The files of a folder or repository that make its model; names at the top level, sorted."""

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
class ModelDescription:
    """What config and headers tell.

    Attributes:
        architecture: such as LlamaForCausalLM; "" for an adapter without its base.
        num_layers: hidden layers; 0 where the config does not say.
        parameters: elements of all stored tensors; 0 for .bin weights, which are not opened to count them.
        bytes: of the selected files.
        files: their names, sorted.

    """

    architecture: str
    num_layers: int
    parameters: int
    bytes: int
    files: tuple[str, ...]


def select_files(names: Iterable[str], where: str) -> Selection:
    """Chooses what to take from the names of a folder or repository (`where`: how to call it in an error).

    Raises:
        ModelError: GGUF files alone, which are not read yet.
        NotAModel: config, weights or tokenizer are missing.
        UnsafeFile: an adapter whose weights are a pickle.

    """
    top = {name for name in names if "/" not in name and _PLAIN_NAME.fullmatch(name)}
    weights = weights_among(top)
    if ADAPTER_CONFIG in top and not weights:
        return _select_adapter(top, where)
    if ("config.json" not in top or not weights) and any(name.endswith(".gguf") for name in top):
        raise ModelError(f"{where} holds GGUF files only; give the path of one of them")
    found = f"it has {', '.join(sorted(top)[:8])}{' …' if len(top) > 8 else ''}" if top else "it is empty"
    if "config.json" not in top:
        raise NotAModel(f"{where} has no config.json, so it is no model folder ({found}); give the folder that has it")
    if not weights:
        raise NotAModel(f"{where} has no weights: no .safetensors, no pytorch_model.bin ({found})")
    if not top & TOKENIZER_FILES:
        raise NotAModel(f"{where} has no tokenizer (tokenizer.json, tokenizer.model, vocab.json or vocab.txt); {found}")
    indexes = {SAFETENSORS_INDEX if weights[0].endswith(".safetensors") else BIN_INDEX} & top
    return Selection(tuple(sorted(top & SUPPORT_FILES | indexes)), weights)


def _select_adapter(top: set[str], where: str) -> Selection:
    safe, pickled = ADAPTER_WEIGHTS
    if safe not in top:
        if pickled in top:
            raise UnsafeFile(
                f"{where} is a LoRA adapter with {pickled} only, a pickle, which is not read; load it with PEFT where "
                f"you trust it and save it again as {safe}"
            )
        raise NotAModel(
            f"{where} has {ADAPTER_CONFIG} but no {safe}; its download is not complete, or it is no adapter"
        )
    support = top & SUPPORT_FILES - {"config.json", "generation_config.json"} if top & TOKENIZER_FILES else set()
    return Selection(tuple(sorted(support | {ADAPTER_CONFIG})), (safe,))


def weights_among(top: set[str]) -> tuple[str, ...]:
    """The weights of a model among a folder's file names; an adapter's are none.

    Safetensors before .bin; the standard names before others (a `consolidated` copy would double the download).
    """
    for index, single, ending in (
        (SAFETENSORS_INDEX, "model.safetensors", ".safetensors"),
        (BIN_INDEX, "pytorch_model.bin", ".bin"),
    ):
        shards = tuple(sorted(n for n in top if _SHARD.fullmatch(n) and n.endswith(ending)))
        if single in top and not (index in top and shards):
            return (single,)
        if shards:
            return shards
        if ending == ".safetensors":
            others = sorted(n for n in top if n.endswith(ending) and not n.startswith(("adapter_", "consolidated")))
            if others:
                return tuple(others)
    return ()


def check_model_folder(path: Path) -> None:
    """Refuses a folder that cannot be merged or scored; takes milliseconds whatever the model's size.

    Raises:
        ModelNotFound: there is no such folder.
        NotAModel: config, weights, a shard or the tokenizer is missing.
        UnsafeFile: a header or an index that lies or points out of the folder.
        QuantisedModel: codes and scales in place of weights.
        ModelError: an adapter that is not applied; GGUF, which is not read yet.

    """
    describe_model(path)


def describe_model(path: Path) -> ModelDescription:
    """Checks a folder as `check_model_folder` does and tells what it holds.

    Raises:
        ModelError: see `check_model_folder`.

    """
    if not path.exists():
        raise ModelNotFound(f"no folder {path}; give an existing model folder or a hub id such as org/name")
    if path.suffix == ".gguf" and path.is_file():
        from evomerge_models.gguf.describe import describe_gguf  # numpy: not for services that meet no GGUF

        return describe_gguf(path)
    if path.is_file():
        raise NotAModel(f"{path} is a file; give the folder that holds config.json, the weights and the tokenizer")
    from evomerge_models import lora_folder

    if pair := lora_folder.read_pair(path):
        return lora_folder.describe_pair(*pair)
    chosen = select_files((item.name for item in path.iterdir() if item.is_file()), str(path))
    if chosen.is_adapter:
        size = sum((path / name).stat().st_size for name in chosen.files)
        return ModelDescription("", 0, lora_folder.read_adapter(path).parameters, size, chosen.files)
    config = read_json_object(path / "config.json")
    for index in {SAFETENSORS_INDEX, BIN_INDEX} & set(chosen.support):
        _check_index(path / index)
    tensors: dict[str, dict[str, Any]] = {}
    for name in chosen.weights:
        if name.endswith(".safetensors"):
            tensors |= read_safetensors_header(path / name)
    check_plain(config, {name: entry["dtype"] for name, entry in tensors.items()}, str(path))
    return ModelDescription(
        architecture=_architecture(config),
        num_layers=_num_layers(config),
        parameters=sum(math.prod(entry["shape"]) for entry in tensors.values()),
        bytes=sum((path / name).stat().st_size for name in chosen.files),
        files=chosen.files,
    )


def _architecture(config: dict[str, Any]) -> str:
    names = config.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else str(config.get("model_type", ""))


def _num_layers(config: dict[str, Any]) -> int:
    """Models of several modalities keep it in their text part."""
    for source in (config, config.get("text_config")):
        for key in ("num_hidden_layers", "n_layer", "n_layers", "num_layers"):
            if isinstance(source, dict) and isinstance(source.get(key), int):
                return int(source[key])
    return 0


def read_safetensors_header(path: Path) -> dict[str, dict[str, Any]]:
    """Tensor name → {"dtype", "shape", "data_offsets"}, each checked against the file's size.

    Raises:
        UnsafeFile: not a safetensors file, or its header does not fit the file (cut short, or made to deceive).

    """

    def refuse(why: str) -> UnsafeFile:
        return UnsafeFile(f"{path}: {why}; the file is cut short, damaged or made to deceive: fetch it again")

    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
        if not 2 <= length <= min(size - 8, MAX_HEADER_BYTES):
            raise refuse(f"its header claims {length} bytes of a file of {size}")
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError) as error:
            raise refuse(f"its header is no JSON ({error})") from error
    if not isinstance(header, dict):
        raise refuse("its header is no JSON object")
    header.pop("__metadata__", None)
    spans = []
    for name, entry in header.items():
        try:
            bits, shape = _BITS[entry["dtype"]], entry["shape"]
            begin, end = entry["data_offsets"]
        except (KeyError, TypeError, ValueError) as error:
            raise refuse(f"the header's entry of {name!r} cannot be read ({error!r})") from error
        if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in (*shape, begin, end)):
            raise refuse(f"{name!r} has a shape or offset that is no number of at least zero")
        if end > size - 8 - length or (end - begin) * 8 != math.prod(shape) * bits:
            raise refuse(
                f"{name!r} claims bytes {begin} to {end} for shape {shape} in {size - 8 - length} bytes of data"
            )
        spans.append((begin, end))
    spans.sort()
    if any(first[1] > second[0] for first, second in itertools.pairwise(spans)):
        raise refuse("two tensors overlap")
    return header


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Tensor name → shape, from the safetensors headers; empty for .bin weights, which are not opened."""
    if folder.suffix == ".gguf" and folder.is_file():
        from evomerge_models.gguf.describe import gguf_tensor_shapes  # numpy: not for services that meet no GGUF

        return gguf_tensor_shapes(folder)
    chosen = select_files((item.name for item in folder.iterdir() if item.is_file()), str(folder))
    return {
        name: tuple(entry["shape"])
        for file in chosen.weights
        if file.endswith(".safetensors")
        for name, entry in read_safetensors_header(folder / file).items()
    }


def _check_index(path: Path) -> None:
    weight_map = read_json_object(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UnsafeFile(f"{path} has no weight_map; fetch the model again")
    for file in sorted({str(value) for value in weight_map.values()}):
        if not _PLAIN_NAME.fullmatch(file) or not file.endswith((".safetensors", ".bin")):
            raise UnsafeFile(f"{path} points to {file!r}, which is no weights file of this folder; it is not opened")
        if not (path.parent / file).is_file():
            raise NotAModel(f"{path.parent} lacks {file}, which its index names; fetch the model again")


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON object of a sane size.

    Raises:
        NotAModel, UnsafeFile: it is something else, or larger than any such file needs to be.

    """
    if path.stat().st_size > MAX_JSON_BYTES:
        raise UnsafeFile(f"{path} is {path.stat().st_size} bytes; more than {MAX_JSON_BYTES} are not read")
    try:
        data = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise NotAModel(f"{path} is no JSON ({error}); fetch the model again") from error
    if not isinstance(data, dict):
        raise NotAModel(f"{path} is no JSON object; fetch the model again")
    return data
