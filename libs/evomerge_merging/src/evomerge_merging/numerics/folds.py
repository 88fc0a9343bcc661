"""Sums over a tensor that come out the same bit for bit, however it is cut into pieces."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
else:
    from evomerge_merging.torch_later import torch


CELL = 16_384
"""Pieces begin at multiples of this many elements. Each cell is summed by itself, in float32 (float64 for such), and
cells are added exactly (math.fsum), so neither the pieces' length nor their order shows."""


def cell_sums(values: torch.Tensor) -> list[float]:
    """Returns the sum of each cell of a flat tensor that begins at a cell's beginning."""
    full = values.numel() // CELL
    sums: list[float] = []
    if full:
        # Each cell by itself as one row: the order of additions inside a row depends on its length alone.
        sums = values[: full * CELL].view(full, CELL).sum(dim=1).tolist()
    if values.numel() % CELL:
        sums.append(values[full * CELL :].sum().item())
    return sums


class Sums:
    """Named sums over all pieces of a tensor."""

    def __init__(self, *names: str) -> None:
        self._parts: dict[str, list[float]] = {name: [] for name in names}

    def add(self, **values: torch.Tensor) -> None:
        """Adds a piece's elements to the sums; a piece begins at a multiple of CELL."""
        for name, tensor in values.items():
            self._parts[name].extend(cell_sums(tensor))

    def add_cells(self, *values: Iterable[float]) -> None:
        """Adds the sums of whole cells, in the order of the names."""
        for parts, sums in zip(self._parts.values(), values, strict=True):
            parts.extend(sums)

    def __getitem__(self, name: str) -> float:
        return math.fsum(self._parts[name])
