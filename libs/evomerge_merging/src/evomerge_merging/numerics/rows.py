"""Rows of a tensor that is read piece by piece: what methods need that measure each filter by itself."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    from evomerge_merging.torch_later import torch

_AT_ONCE = 1 << 18


def row_length(shape: tuple[int, ...]) -> int:
    """Counts the elements of a row: the last dimension's; a tensor of one dimension is one row."""
    return max(1, shape[-1]) if shape else 1


def row_ranges(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Yields ranges of whole rows that cover the tensor: the same whatever the pieces, so sums over them are too."""
    yield from ranges_of(math.prod(shape), row_length(shape))


def ranges_of(size: int, row: int) -> Iterator[tuple[int, int]]:
    """Yields ranges of a multiple of eight times `row` elements, each about a piece long."""
    step = max(8, _AT_ONCE // row // 8 * 8) * row
    for start in range(0, size, step):
        yield start, min(start + step, size)


def along_rows(values: Tensor, row: int, start: int, stop: int) -> Tensor:
    """Returns the elements [start, stop) of a tensor that has `values[i]` throughout its i-th row."""
    first, last = start // row, -(-stop // row)
    if last - first == 1:
        return values[first]
    spread = values[first:last, None].expand(-1, row).reshape(-1)
    return spread[start - first * row : stop - first * row]


def along_columns(values: Tensor, start: int, stop: int) -> Tensor:
    """Returns the elements [start, stop) of a tensor whose every row is `values`."""
    row = len(values)
    skip = start % row
    return values.repeat(math.ceil((skip + stop - start) / row))[skip : skip + stop - start]


def total(values: Tensor) -> float:
    """Sums in float64, for ranges that are always the same."""
    return float(values.sum(dtype=torch.float64).item())
