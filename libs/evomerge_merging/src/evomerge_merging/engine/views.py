"""The two views of a tensor that methods may be shown: by torch, or by the native kernels where they can read it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from evomerge_merging.engine.kernels import Reader
from evomerge_merging.methods.view import Block
from evomerge_merging.numerics.folds import Sums
from evomerge_merging.numerics.ranks import RankMask, keep_by_rank, word_limits
from evomerge_merging.numerics.rows import row_length, row_ranges, total
from evomerge_merging.numerics.selection import Bits, Cut, Keep, cuts

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    from evomerge_merging.torch_later import torch

Read = Callable[[int, int], "tuple[list[Tensor], Tensor | None]"]


@dataclass(frozen=True)
class TorchView:
    """A tensor of any sources, nested merges too; see `methods.View`, whose definition this is."""

    shape: tuple[int, ...]
    _pieces: Callable[[], Iterator[tuple[int, int]]]
    _read: Read
    _block: Callable[[int, int], Block]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def pieces(self) -> Iterator[tuple[int, int]]:
        """See `methods.View.pieces`."""
        return self._pieces()

    def read(self, start: int, stop: int) -> tuple[list[Tensor], Tensor | None]:
        """See `methods.View.read`."""
        return self._read(start, stop)

    def changes(self, start: int, stop: int) -> list[Tensor]:
        """See `methods.View.changes`."""
        tensors, base = self._read(start, stop)
        return [tensor - base for tensor in tensors] if base is not None else tensors

    def block(self, start: int, stop: int) -> Block:
        """See `methods.View.block`."""
        return self._block(start, stop)

    def inner_products(self) -> tuple[float, float, float]:
        """See `methods.View.inner_products`."""
        sums = Sums("aa", "bb", "ab")
        for start, stop in self.pieces():
            (other,), base = self._read(start, stop)
            assert base is not None
            sums.add(aa=base * base, bb=other * other, ab=base * other)
        return sums["aa"], sums["bb"], sums["ab"]

    def magnitude_cuts(self, counts: Sequence[int]) -> list[Cut]:
        """See `methods.View.magnitude_cuts`."""

        def magnitudes(start: int, stop: int) -> list[Tensor]:
            return _repeated(self._magnitudes(start, stop), len(counts))

        return cuts(magnitudes, self.pieces(), self.size, counts)

    def magnitude_sums(self, keeps: Sequence[Keep | None]) -> dict[int, tuple[float, float]]:
        """See `methods.View.magnitude_sums`."""
        sums = {i: Sums("all", "kept") for i, keep in enumerate(keeps) if keep is not None}
        for start, stop in self.pieces():
            magnitudes = self._magnitudes(start, stop)
            for i, each in sums.items():
                keep = keeps[i]
                assert keep is not None
                each.add(all=magnitudes[i])
                each.add(kept=keep.apply(magnitudes[i], start))
        return {i: (each["all"], each["kept"]) for i, each in sums.items()}

    def masks_by_rank(self, wanted: Mapping[int, tuple[float, float]]) -> dict[int, RankMask]:
        """See `methods.View.masks_by_rank`."""
        row = row_length(self.shape)
        drawn = {i: _Drawn() for i in wanted}
        for start, stop in row_ranges(self.shape) if wanted else ():
            found, block = self._magnitudes(start, stop), self._block(start, stop)
            for i, (density, epsilon) in wanted.items():
                magnitudes = found[i].reshape(-1, row)
                kept = keep_by_rank(magnitudes, block.words(i, 16), density, epsilon)
                drawn[i].add(kept, total(magnitudes), total(magnitudes.reshape(-1) * torch.from_numpy(kept)))
        return {i: each.mask() for i, each in drawn.items()}

    def _magnitudes(self, start: int, stop: int) -> list[Tensor]:
        """Those of the changes; they may be written into."""
        tensors, base = self._read(start, stop)
        return [tensor.abs() if base is None else (tensor - base).abs_() for tensor in tensors]


@dataclass(frozen=True)
class KernelView:
    """A tensor of sources that the kernels can read; what they have no function for is `view`'s.

    Its methods raise NotFinite where a source has NaN or infinity.
    """

    view: TorchView
    reader: Reader

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.view.size

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        return self.view.shape

    def pieces(self) -> Iterator[tuple[int, int]]:
        """See `methods.View.pieces`."""
        return self.view.pieces()

    def read(self, start: int, stop: int) -> tuple[list[Tensor], Tensor | None]:
        """See `methods.View.read`."""
        return self.view.read(start, stop)

    def changes(self, start: int, stop: int) -> list[Tensor]:
        """See `methods.View.changes`."""
        return self.view.changes(start, stop)

    def block(self, start: int, stop: int) -> Block:
        """See `methods.View.block`."""
        return self.view.block(start, stop)

    def inner_products(self) -> tuple[float, float, float]:
        """See `methods.View.inner_products`."""
        sums = Sums("aa", "bb", "ab")
        for start, stop in self.reader.long_pieces(self.size):
            sums.add_cells(*self.reader.inner_products(start, stop).T.tolist())
        return sums["aa"], sums["bb"], sums["ab"]

    def magnitude_cuts(self, counts: Sequence[int]) -> list[Cut]:
        """See `methods.View.magnitude_cuts`."""
        each = len(counts) // self.reader.inputs

        def magnitudes(start: int, stop: int) -> list[Any]:
            return _repeated(self.reader.magnitudes(start, stop), len(counts))

        def scan(
            start: int, stop: int, which: Sequence[int], low: Sequence[float], high: Sequence[float]
        ) -> tuple[Any, list[Any]]:
            return self.reader.scan(start, stop, [i // each for i in which], low, high)

        return cuts(magnitudes, self.pieces(), self.size, counts, scan)

    def magnitude_sums(self, keeps: Sequence[Keep | None]) -> dict[int, tuple[float, float]]:
        """See `methods.View.magnitude_sums`."""
        sums = {i: Sums("all", "kept") for i, keep in enumerate(keeps) if keep is not None}
        for start, stop in self.reader.long_pieces(self.size) if sums else ():
            cells = self.reader.thinned_sums(start, stop, keeps)
            for i, each in sums.items():
                each.add_cells(*cells[:, i].T.tolist())
        return {i: (each["all"], each["kept"]) for i, each in sums.items()}

    def masks_by_rank(self, wanted: Mapping[int, tuple[float, float]]) -> dict[int, RankMask]:
        """See `methods.View.masks_by_rank`."""
        row = row_length(self.shape)
        drawn = {i: _Drawn() for i in wanted}
        masks = self.block(0, 0).masks
        asked = [(i, masks[i], *word_limits(d, e if row > 1 else 0.0)) for i, (d, e) in wanted.items()]
        for start, stop in row_ranges(self.shape) if wanted else ():
            for each, found in zip(drawn.values(), self.reader.rank_flags(start, stop, row, asked), strict=True):
                each.add(*found)
        return {i: each.mask() for i, each in drawn.items()}


def _repeated(values: Sequence[Any], count: int) -> list[Any]:
    """Each as often as it takes to make `count` of them."""
    return [value for value in values for _ in range(count // len(values))]


class _Drawn:
    """A mask by rank that comes range by range."""

    def __init__(self) -> None:
        self._bits: list[np.ndarray[Any, Any]] = []
        self._whole: list[float] = []
        self._kept: list[float] = []

    def add(self, flags: np.ndarray[Any, Any], whole: float, kept: float) -> None:
        """Adds a range of whole rows: what is kept, and the sums of magnitudes, all and kept."""
        self._bits.append(np.packbits(flags))
        self._whole.append(whole)
        self._kept.append(kept)

    def mask(self) -> RankMask:
        bits = Bits(np.concatenate([*self._bits, np.empty(0, np.uint8)]))
        return RankMask(bits, math.fsum(self._whole), math.fsum(self._kept))
