"""Methods that weigh by what calibration texts told of each model: Fisher-weighted averaging and RegMean.

The statistics are measured beforehand, one safetensors file for each model (parameter `statistics`, a path), under the
names of the model's own tensors. A tensor that some file lacks is averaged by weight alone.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge_common.errors import RecipeError, ShapeMismatch
from evomerge_merging.io.safetensors_file import SafetensorsFile
from evomerge_merging.methods.forms import shares, weighted_sum
from evomerge_merging.methods.registry import PerModel, merge_method
from evomerge_merging.methods.view import Block

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    from evomerge_merging.torch_later import torch

_SMALLEST = 1e-30


@functools.lru_cache(maxsize=64)
def _open(path: str, modified: int, size: int) -> SafetensorsFile:
    return SafetensorsFile(Path(path))


def _file(path: str) -> SafetensorsFile:
    """Raises RecipeError if there is no such file, UnsafeFile if its header lies."""
    try:
        state = Path(path).stat()
        return _open(path, state.st_mtime_ns, state.st_size)
    except OSError as error:
        problem = f"statistics {path!r} cannot be read ({error.strerror}): give a safetensors file"
        raise RecipeError(problem, ("parameters", "statistics")) from None


def _check(*, statistics: Sequence[str], weight: Sequence[float], **_: Any) -> None:
    for path in statistics:
        _file(path)
    if abs(sum(weight)) < 1e-8:
        raise RecipeError("the weights add up to zero: change one", ("parameters", "weight"))


def _found(
    statistics: Sequence[str], names: Sequence[str], shape: tuple[int, ...] | None, size: int
) -> list[SafetensorsFile] | None:
    """The models' files, None if one lacks the tensor; `shape` (or at least `size`) is what it must have there."""
    files = [_file(path) for path in statistics]
    if any(name not in file.tensors for file, name in zip(files, names, strict=True)):
        return None
    for file, name in zip(files, names, strict=True):
        info = file.tensors[name]
        if (info.shape != shape if shape else info.numel != size) or not info.dtype.is_floating_point:
            wanted = f"floats of shape {list(shape)}" if shape else f"{size:,} floats"
            raise ShapeMismatch(f"{file.path}: {name} is {info.dtype} {list(info.shape)}, and must be {wanted}")
    return files


@merge_method("fisher", check=_check)
def fisher(
    tensors: Sequence[Tensor], block: Block, *, statistics: PerModel[str], weight: PerModel[float] = (1.0,)
) -> Tensor:
    """Average of the models, each element weighted by its Fisher information (Matena & Raffel 2022, arXiv:2111.09832).

    A statistics file holds the diagonal of the Fisher information matrix: the mean square of the log-likelihood's
    gradient, in each tensor's own shape, not negative. Where all are zero the weights alone count.
    """
    plain = weighted_sum(tensors, shares(weight, normalize=True))
    files = _found(statistics, block.names, None, block.size)
    if files is None:
        return plain
    total, divisor = torch.zeros_like(plain), torch.zeros_like(plain)
    for i, tensor in enumerate(tensors):
        share = files[i].block(block.names[i], block.start, block.stop).to(tensor.dtype).mul(weight[i])
        total.add_(share * tensor)
        divisor.add_(share)
    return torch.where(divisor.abs() > _SMALLEST, total / divisor, plain)


@merge_method("regmean", whole=True, check=_check)
def regmean(
    tensors: Sequence[Tensor],
    block: Block,
    *,
    statistics: PerModel[str],
    weight: PerModel[float] = (1.0,),
    alpha: float = 0.9,
) -> Tensor:
    """Linear layers that come closest to each model's outputs on its own inputs (Jin et al. 2022, arXiv:2212.09849).

    A statistics file holds, under the names of weights (out × in) of linear layers, the inner products X' X of the
    layer's inputs (in × in); their elements off the diagonal are multiplied by `alpha`. W = sum(W_i G_i) (sum G_i)^-1.
    Everything else is averaged. Layers that store their weights as in × out (GPT-2's) have no place here.
    """
    plain = weighted_sum(tensors, shares(weight, normalize=True))
    columns = tensors[0].shape[-1] if tensors[0].dim() == 2 else 0
    files = _found(statistics, block.names, (columns, columns), 0) if columns else None
    if files is None:
        return plain
    products = torch.zeros(columns, columns, dtype=torch.float64)
    outputs = torch.zeros(tensors[0].shape, dtype=torch.float64)
    for i, tensor in enumerate(tensors):
        inner = files[i].block(block.names[i], 0, columns * columns).reshape(columns, columns).double()
        diagonal = inner.diagonal()
        # A trace of the identity: inputs that no text excited leave the weights' average, not a singular system.
        inner = inner * alpha + torch.diag(diagonal * (1.0 - alpha) + 1e-6 * diagonal.mean() + _SMALLEST)
        products += inner * weight[i]
        outputs += tensor.double() @ inner * weight[i]
    return torch.linalg.solve(products, outputs, left=False).to(tensors[0].dtype)
