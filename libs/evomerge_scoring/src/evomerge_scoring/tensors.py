"""A candidate's tensors, each read or made when it is needed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from safetensors import safe_open

from evomerge_models.describe import describe_model

if TYPE_CHECKING:
    import torch

    from evomerge_merging import Plan
    from evomerge_merging.engine.plan import OutputTensor
    from evomerge_merging.io.model_folder import TensorStore


class Source(Protocol):
    """One tensor that is to come; `shape` is known before it is read."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def read(self) -> torch.Tensor:
        """The tensor, in the dtype that it is stored in; may be called more than once."""
        ...


class Maker:
    """Makes tensors of a merge plan: into memory that waits for them, or all that change at once."""

    def __init__(self, plan: Plan, unchanged: frozenset[str], threads: int) -> None:
        self._plan, self._unchanged, self._threads = plan, unchanged, threads
        self._tensors: dict[str, torch.Tensor] = {}

    def put(self, targets: dict[str, torch.Tensor]) -> None:
        """Merges straight into these tensors, by name."""
        from evomerge_merging import merge_into

        merge_into(self._plan, targets, threads=self._threads)

    def tensor(self, name: str) -> torch.Tensor:
        """One of the merge's tensors; the first call makes all that change."""
        from evomerge_merging import merge_in_memory

        if not self._tensors:
            self._tensors = merge_in_memory(self._plan, threads=self._threads, without=self._unchanged)
        return self._tensors[name]


class MadeTensor:
    """A tensor of a merge plan."""

    def __init__(self, maker: Maker, tensor: OutputTensor) -> None:
        self.maker = maker
        self._name, self.shape = tensor.name, tensor.shape

    def read(self) -> torch.Tensor:
        """See `Source`."""
        return self.maker.tensor(self._name)


class StoredTensor:
    """A tensor in an open store."""

    def __init__(self, store: TensorStore, name: str) -> None:
        self._store, self._name = store, name
        self.shape = store.tensors[name].shape

    def read(self) -> torch.Tensor:
        """See `Source`."""
        return self._store.tensor(self._name)


class MappedTensor:
    """A tensor in a memory-mapped file."""

    def __init__(self, file: Any, name: str) -> None:
        self._file, self._name = file, name
        self.shape = tuple(file.get_slice(name).get_shape())

    def read(self) -> torch.Tensor:
        """See `Source`."""
        tensor: torch.Tensor = self._file.get_tensor(self._name)
        return tensor


class HeldTensor:
    """A tensor in memory."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor
        self.shape = tuple(tensor.shape)

    def read(self) -> torch.Tensor:
        """See `Source`."""
        return self._tensor


@dataclass(frozen=True)
class Weights:
    """All tensors of a candidate.

    Attributes:
        sources: by name; None: only transformers can read them (.bin files).
        folder: where transformers finds them for a fresh load; None: it gets them from `sources`.
        origin: the identity of the files that the `unchanged` tensors are of; "": none is known.
        unchanged: names of tensors that are as those files have them.

    """

    sources: Mapping[str, Source] | None
    folder: Path | None = None
    origin: str = ""
    unchanged: frozenset[str] = frozenset()

    @property
    def parameters(self) -> int:
        """Numbers in all tensors together; 0 where that is not known."""
        return sum(math.prod(source.shape) for source in (self.sources or {}).values())

    @property
    def changed(self) -> frozenset[str]:
        """Names of tensors that are not those of `origin`."""
        return frozenset(self.sources or ()) - self.unchanged


def folder_weights(folder: Path) -> Weights:
    """Those of a model folder, which is checked first.

    Raises:
        ModelError: it is missing, no model, or unsafe.

    """
    files = weight_files(folder)
    if not files:
        return Weights(None, folder)
    sources = dict(_mapped(files))
    return Weights(sources, folder, _identity(files), frozenset(sources))


def plan_weights(plan: Plan, threads: int) -> Weights:
    """Those of a merge plan; of adapters over one base, most are the base's own."""
    found = plan.kept()
    root, unchanged = found if found is not None else (None, frozenset[str]())
    maker = Maker(plan, unchanged, threads)
    sources: dict[str, Source] = {}
    for tensor in plan.tensors:
        if root is not None and tensor.name in unchanged:
            sources[tensor.name] = StoredTensor(root.store, tensor.name)
        else:
            sources[tensor.name] = MadeTensor(maker, tensor)
    return Weights(sources, None, _identity(weight_files(root.folder)) if root else "", unchanged)


def held_weights(tensors: Mapping[str, torch.Tensor]) -> Weights:
    """Tensors in memory."""
    return Weights({name: HeldTensor(tensor) for name, tensor in tensors.items()})


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, after checking it; empty for .bin weights."""
    return [folder / name for name in describe_model(folder).files if name.endswith(".safetensors")]


def _mapped(files: Iterable[Path]) -> Iterator[tuple[str, MappedTensor]]:
    for path in files:
        file: Any = safe_open(path, framework="pt", device="cpu")
        names: list[str] = file.keys()
        yield from ((name, MappedTensor(file, name)) for name in names)


def _identity(files: Iterable[Path]) -> str:
    """What tells these weights from others, and from their own earlier state; "" where there are none."""
    stats = [(str(path.resolve()), path.stat()) for path in files]
    return repr([(name, stat.st_size, stat.st_mtime_ns, stat.st_ino) for name, stat in stats]) if stats else ""
