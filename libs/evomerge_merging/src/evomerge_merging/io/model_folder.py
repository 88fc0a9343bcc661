"""A folder with config.json and weights, as Hugging Face libraries write it."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from evomerge_common.errors import UnsafeFile
from evomerge_merging.io.dtypes import element_type
from evomerge_merging.io.safetensors_file import SafetensorsFile
from evomerge_models.dtypes import ElementType
from evomerge_models.files import check_index, weight_files
from evomerge_models.headers import TensorInfo

if TYPE_CHECKING:
    import torch
else:
    from evomerge_merging.torch_later import torch


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


class RenamedStore:
    """A store's tensors under other names; `names`: new → its own."""

    def __init__(self, store: TensorStore, names: Mapping[str, str]) -> None:
        self._store, self._names = store, names
        self.tensors: Mapping[str, TensorInfo] = {
            name: replace(store.tensors[own], name=name) for name, own in names.items()
        }

    def tensor(self, name: str) -> torch.Tensor:
        return self._store.tensor(self._names[name])

    def block(self, name: str, start: int, stop: int) -> torch.Tensor:
        return self._store.block(self._names[name], start, stop)

    def raw(self, name: str, start: int, stop: int) -> NDArray[np.uint8]:
        return raw_elements(self._store, self._names[name], start, stop)[0]

    def place(self, name: str) -> tuple[int, int] | None:
        return place_in_file(self._store, self._names[name])

    def rows(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        return self._store.rows(self._names[name], rows)

    def close(self) -> None:
        self._store.close()


def open_weights(folder: Path) -> TensorStore:
    """The weights of a model folder: safetensors first, else .bin with torch's restricted unpickler.

    Raises:
        NotAModel, UnsafeFile: no weights; a file that lies or would run code.

    """
    weights = weight_files(folder)
    load = SafetensorsFile if weights.are_safetensors else _load_bin
    files: dict[str, TensorStore] = {}
    try:
        for name in weights.files:
            files[name] = load(folder / name)
        check_index(folder, weights, {name: file.tensors for name, file in files.items()})
    except BaseException:
        for file in files.values():
            file.close()
        raise
    return files[weights.files[0]] if not weights.index else ShardedStore(list(files.values()))


def _load_bin(path: Path) -> TensorStore:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # torch before 1.6 wrote no zip archive, which alone can be mapped.
            data = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
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
