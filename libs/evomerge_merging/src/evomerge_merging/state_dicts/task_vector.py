"""Task vectors as values: what a fine-tuned model changed of its base (Ilharco et al. 2022, arXiv:2212.04089)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from evomerge_common.errors import ShapeMismatch
from evomerge_common.runtime.files import replacing
from evomerge_merging.io.dtypes import element_type
from evomerge_merging.io.model_folder import open_weights
from evomerge_merging.io.safetensors_file import SafetensorsFile
from evomerge_merging.io.writer import SafetensorsWriter
from evomerge_models.files import check_whole

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    from evomerge_merging.torch_later import torch

StateDict = Mapping[str, "Tensor"]


class TaskVector(Mapping[str, "Tensor"]):
    """Differences by tensor name, in float32 (float64 for such). Adds, subtracts, scales; nothing is changed in place.

    A tensor that only one of two vectors has counts as zero in the other.
    """

    def __init__(self, deltas: StateDict) -> None:
        self._deltas = {name: _wide(delta) for name, delta in deltas.items() if delta.dtype.is_floating_point}

    @classmethod
    def between(cls, base: StateDict | Path | str, finetuned: StateDict | Path | str) -> TaskVector:
        """What `finetuned` changed of `base`; each a state dict or a model folder. Integer tensors are left out.

        Raises:
            ShapeMismatch: their tensors do not fit each other.
            ModelError: a folder that is no model.

        """
        first, second = _state(base), _state(finetuned)
        floats = [name for name, tensor in first.items() if tensor.dtype.is_floating_point]
        for name in floats:
            if name not in second:
                raise ShapeMismatch(f"the fine-tuned model has no tensor {name!r}, which the base has")
            _same_shape(name, first[name], second[name])
        return cls({name: _wide(second[name]) - _wide(first[name]) for name in floats})

    def __getitem__(self, name: str) -> Tensor:
        return self._deltas[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._deltas)

    def __len__(self) -> int:
        return len(self._deltas)

    def __add__(self, other: TaskVector) -> TaskVector:
        for name in self._deltas.keys() & other._deltas.keys():
            _same_shape(name, self[name], other[name])
        both = {name: self[name] + other[name] if name in other else self[name] for name in self}
        return TaskVector({**both, **{name: other[name] for name in other if name not in self}})

    def __sub__(self, other: TaskVector) -> TaskVector:
        return self + -other

    def __neg__(self) -> TaskVector:
        """Forgetting rather than learning."""
        return self * -1.0

    def __mul__(self, factor: float) -> TaskVector:
        return TaskVector({name: delta * factor for name, delta in self.items()})

    __rmul__ = __mul__

    def apply_to(self, base: StateDict | Path | str, scale: float = 1.0) -> dict[str, Tensor]:
        """The base plus `scale` times this vector, in the base's element types; what the vector lacks is unchanged.

        Raises:
            ShapeMismatch: a tensor that the base lacks, or of another shape.

        """
        state = _state(base)
        result = dict(state)
        for name, delta in self.items():
            if name not in state:
                raise ShapeMismatch(f"the model has no tensor {name!r}, which the task vector changes")
            _same_shape(name, state[name], delta)
            result[name] = (_wide(state[name]) + delta * scale).to(state[name].dtype)
        return result

    def norm(self) -> float:
        """Euclidean length."""
        return float(sum(float((delta.double() ** 2).sum()) for delta in self.values()) ** 0.5)

    def save(self, path: Path | str) -> None:
        """Writes a safetensors file, atomically."""
        specs = [(name, tuple(delta.shape), element_type(delta.dtype)) for name, delta in self.items()]
        with replacing(Path(path)) as fresh:
            writer = SafetensorsWriter(fresh, specs, {"format": "pt", "kind": "task_vector"})
            try:
                for name, delta in self.items():
                    writer.write(name, 0, delta.contiguous())
            finally:
                writer.close()

    @classmethod
    def load(cls, path: Path | str) -> TaskVector:
        """Reads what `save` wrote.

        Raises:
            UnsafeFile: the file lies.

        """
        with SafetensorsFile(Path(path)) as file:
            return cls({name: file.tensor(name).clone() for name in file.tensors})


def _wide(tensor: Tensor) -> Tensor:
    return tensor.detach() if tensor.dtype == torch.float64 else tensor.detach().to(torch.float32)


def _same_shape(name: str, one: Tensor, other: Tensor) -> None:
    if one.shape != other.shape:
        raise ShapeMismatch(f"tensor {name!r} is {list(one.shape)} in one and {list(other.shape)} in the other")


def _state(model: StateDict | Path | str) -> StateDict:
    if isinstance(model, Mapping):
        return model
    check_whole(Path(model))
    store = open_weights(Path(model))
    return {name: store.tensor(name) for name in store.tensors}
