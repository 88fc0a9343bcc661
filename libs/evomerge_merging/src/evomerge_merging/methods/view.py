"""What a method is shown of a tensor: a `View` of the whole of it beforehand, then a `Block` for each piece."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from evomerge_merging.numerics.random_words import MaskKey, words

if TYPE_CHECKING:
    from torch import Tensor

    from evomerge_merging.numerics.ranks import RankMask
    from evomerge_merging.numerics.selection import Cut, Keep


@dataclass(frozen=True)
class Block:
    """Where a piece lies.

    Attributes:
        start, stop: elements of the flattened tensor.
        size: number of elements of the whole tensor.
        statistics: what the method's statistics function returned, else None.
        names: the tensor's name in each input.
        masks: key of each input's random words.

    """

    start: int
    stop: int
    size: int
    masks: tuple[MaskKey, ...]
    statistics: Any = None
    names: tuple[str, ...] = ()

    def words(self, i: int, bits: Literal[16, 32] = 32) -> Tensor:
        """Draws an int32 for each element (with 16 bits an int16, in half the time), uniform over all values.

        It depends on nothing but the recipe's seed, the i-th input's identity, the tensor's name and each element's
        place.
        """
        return words(self.masks[i], self.start, self.stop, bits)


class View(Protocol):
    """One tensor of all sources, read piece by piece: what a method's statistics function is called with.

    The engine calls that function once a tensor, before any piece is merged. A *change* is what an input changed of the
    base, where the method has one, else the input itself. Sums and cuts come out the same whatever the pieces; native
    kernels or torch are behind them, and no method has to know which.
    """

    @property
    def size(self) -> int:
        """Number of elements."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        ...

    def pieces(self) -> Iterator[tuple[int, int]]:
        """Gives consecutive ranges of elements that cover the tensor; each but the last a multiple of `CELL`."""
        ...

    def read(self, start: int, stop: int) -> tuple[list[Tensor], Tensor | None]:
        """Reads the inputs and the base at these elements, flat, float32 (float64 where a source is).

        They must not be written into.
        """
        ...

    def changes(self, start: int, stop: int) -> list[Tensor]:
        """Reads the changes at these elements; they must not be written into."""
        ...

    def block(self, start: int, stop: int) -> Block:
        """Gives the block of these elements, without statistics."""
        ...

    def inner_products(self) -> tuple[float, float, float]:
        """Sums up base × base, input × input and base × input, of the one input."""
        ...

    def magnitude_cuts(self, counts: Sequence[int]) -> list[Cut]:
        """Finds the cuts that keep the `counts[i]` largest magnitudes of changes, exactly.

        Args:
            counts: as many for each input as for any other, one input's after another's.

        """
        ...

    def magnitude_sums(self, keeps: Sequence[Keep | None]) -> dict[int, tuple[float, float]]:
        """Sums up the magnitudes of each input's change, of all elements and of the kept ones.

        Args:
            keeps: what is kept of each input's change; None leaves that input out.

        """
        ...

    def masks_by_rank(self, wanted: Mapping[int, tuple[float, float]]) -> dict[int, RankMask]:
        """Draws for these inputs what is kept, row by row (the last dimension; a tensor of one dimension is one row).

        Args:
            wanted: input → density and epsilon: see `numerics.ranks.keep_by_rank`.

        """
        ...
