"""A folder with config.json and weights, as Hugging Face libraries write it."""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from evomerge_common.errors import ModelError, ModelNotFound, NotAModel, UnsafeFile
from evomerge_merging.io.dtypes import ElementType, element_type
from evomerge_merging.io.safetensors_file import SafetensorsFile, TensorInfo

if TYPE_CHECKING:
    import torch
else:
    from evomerge_merging.torch_later import torch

MAX_JSON_BYTES = 64_000_000
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
BIN_SINGLE, BIN_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"


class TensorStore(Protocol):
    """Tensors by name, readable by several threads at once."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...
    def tensor(self, name: str) -> torch.Tensor:
        """The whole tensor as stored."""
        ...

    def block(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Elements [start, stop) of the flattened tensor as stored."""
        ...

    def rows(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        """A copy of some rows, in the order asked for, as stored."""
        ...

    def close(self) -> None: ...


def raw_elements(store: TensorStore, name: str, start: int, stop: int) -> tuple[NDArray[np.uint8], ElementType]:
    """The bytes of elements [start, stop), and their type: without torch where the store simply reads a file."""
    read = getattr(store, "raw", None)
    if read is not None:
        return read(name, start, stop), store.tensors[name].dtype
    values = store.block(name, start, stop).contiguous()
    return values.view(torch.uint8).numpy(), element_type(values.dtype)


def place_in_file(store: TensorStore, name: str) -> tuple[int, int] | None:
    """Where the tensor lies as stored: a file's descriptor and a byte; None where it is not simply read from a file."""
    find = getattr(store, "place", None)
    return None if find is None else find(name)


class MemoryStore:
    """Tensors that are in memory: a state dict, or a .bin file."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._data = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        self.tensors: Mapping[str, TensorInfo] = {
            name: TensorInfo(name, tuple(t.shape), element_type(t.dtype), 0, t.numel() * t.element_size())
            for name, t in self._data.items()
        }

    def tensor(self, name: str) -> torch.Tensor:
        return self._data[name]

    def block(self, name: str, start: int, stop: int) -> torch.Tensor:
        return self._data[name].reshape(-1)[start:stop]

    def rows(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        return self._data[name][rows]

    def close(self) -> None:
        self._data = {}


class ShardedStore:
    """Several files as one."""

    def __init__(self, files: list[TensorStore]) -> None:
        self._files = files
        self._of = {name: file for file in files for name in file.tensors}
        self.tensors: Mapping[str, TensorInfo] = {name: file.tensors[name] for name, file in self._of.items()}

    def tensor(self, name: str) -> torch.Tensor:
        return self._of[name].tensor(name)

    def block(self, name: str, start: int, stop: int) -> torch.Tensor:
        return self._of[name].block(name, start, stop)

    def raw(self, name: str, start: int, stop: int) -> NDArray[np.uint8]:
        return raw_elements(self._of[name], name, start, stop)[0]

    def place(self, name: str) -> tuple[int, int] | None:
        return place_in_file(self._of[name], name)

    def rows(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        return self._of[name].rows(name, rows)

    def close(self) -> None:
        for file in self._files:
            file.close()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a sane size.

    Raises:
        NotAModel: it is something else.

    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise NotAModel(f"{path} is larger than any such file needs to be ({MAX_JSON_BYTES} bytes)")
        data = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise NotAModel(f"{path} is not JSON: {error}") from error
    except OSError as error:
        raise NotAModel(f"{path} cannot be read: {error.strerror}") from error
    if not isinstance(data, dict):
        raise NotAModel(f"{path} holds no JSON object")
    return data


def check_folder(folder: Path) -> None:
    """Refuses what cannot be a model before anything else is done.

    Raises:
        ModelNotFound, NotAModel, ModelError: no such folder; no config.json; a GGUF file or an adapter.

    """
    if folder.is_file() and folder.suffix == ".gguf":
        raise ModelError(f"{folder} is a GGUF file; make a folder of it: evomerge export {folder} FOLDER")
    if not folder.exists():
        raise ModelNotFound(f"no folder {folder}; give the folder of a model, with config.json in it")
    if not folder.is_dir():
        raise NotAModel(f"{folder} is a file; give the folder of a model, with config.json in it")
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise ModelError(f"{folder} is a LoRA adapter, and the base of another cannot be one: merge it first")
        raise NotAModel(f"{folder} has no config.json; give the folder of a model in Hugging Face form")


def open_weights(folder: Path) -> TensorStore:
    """The weights of a model folder: safetensors first, else .bin with torch's restricted unpickler.

    Raises:
        NotAModel, UnsafeFile: no weights; a file that lies or would run code.

    """
    for single, index, load in ((SINGLE, INDEX, SafetensorsFile), (BIN_SINGLE, BIN_INDEX, _load_bin)):
        if (folder / index).is_file():
            return _sharded(folder, folder / index, load)
        if (folder / single).is_file():
            return load(folder / single)
    others = sorted(p.name for p in folder.glob("*.safetensors"))
    if len(others) == 1:
        return SafetensorsFile(folder / others[0])
    if list(folder.glob("*.gguf")):
        raise ModelError(f"{folder} holds GGUF weights; give the path of one of its files, not the folder")
    raise NotAModel(f"{folder} has neither {SINGLE} nor {INDEX}; its download is not complete, or it is no model")


def _sharded(folder: Path, index: Path, load: Any) -> TensorStore:
    entries = read_json(index).get("weight_map")
    if not isinstance(entries, dict) or not entries:
        raise NotAModel(f"{index} has no weight_map")
    for name in entries.values():
        if not isinstance(name, str) or not name or name != Path(name).name or name in {".", ".."} or "\\" in name:
            raise UnsafeFile(f"{index} names {name!r}, which is not a file of this folder")
    files: list[TensorStore] = []
    where: dict[str, str] = {}
    try:
        for name in dict.fromkeys(entries.values()):
            if not (folder / name).is_file():
                raise NotAModel(f"{folder} lacks {name}, which {index.name} names; its download is not complete")
            files.append(load(folder / name))
            for tensor in files[-1].tensors:
                if where.setdefault(tensor, name) != name:
                    raise UnsafeFile(f"{folder}: {where[tensor]} and {name} both hold {tensor!r}")
        for tensor, name in entries.items():
            if where.get(tensor) != name:
                raise NotAModel(f"{index} says that {name} holds {tensor!r}, but it does not")
    except BaseException:
        for file in files:
            file.close()
        raise
    return ShardedStore(files)


def _load_bin(path: Path) -> TensorStore:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, KeyError, AttributeError) as error:
        raise UnsafeFile(
            f"{path} is not a plain file of tensors, and is not read, since reading it could run code; "
            "save the model again as safetensors"
        ) from error
    if not isinstance(data, dict) or not all(
        isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in data.items()
    ):
        raise UnsafeFile(f"{path} holds something other than tensors by name; save the model again as safetensors")
    return MemoryStore(data)
