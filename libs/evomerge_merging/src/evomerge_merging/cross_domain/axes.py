"""How an axis of one model's tensors becomes the axis of another's.

A map is a matrix M [there, here] with orthonormal columns or rows, in whatever form is cheapest. `take` gives
x → Mᵀx along the first dimension; `shared` gives x → MᵀMx, the share of the target's own axis that the source reaches;
`whole` says that this is all of it. So the target's own values fill what a narrower source cannot say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    from evomerge_merging.torch_later import torch


class AxisMap(Protocol):
    """A map from one model's axis to another's; `along` calls it. Tensors are float32 with the axis first."""

    @property
    def whole(self) -> bool:
        """Tells whether every element of the target's axis comes from the source."""
        ...

    def take(self, values: Tensor) -> Tensor:
        """Brings a tensor's first axis from the source's to the target's."""
        ...

    def shared(self, values: Tensor) -> Tensor:
        """Marks the target's elements that the source has."""
        ...

    def take_gains(self, gains: Tensor, own: Tensor) -> Tensor:
        """Brings a norm's factors, a diagonal matrix, to the target's axis: of its image under the map the diagonal."""
        ...


@dataclass(frozen=True)
class Same:
    """The axes are one and the same."""

    whole: bool = True

    def take(self, values: Tensor) -> Tensor:
        return values

    def shared(self, values: Tensor) -> Tensor:
        return values

    def take_gains(self, gains: Tensor, own: Tensor) -> Tensor:
        return gains


@dataclass(frozen=True)
class Pick:
    """Element i is element `index[i]` of the other axis; -1: of none."""

    index: Tensor

    @property
    def whole(self) -> bool:
        return bool((self.index >= 0).all())

    def take(self, values: Tensor) -> Tensor:
        found = values[self.index.clamp(min=0)]
        found[self.index < 0] = 0.0
        return found

    def shared(self, values: Tensor) -> Tensor:
        found = values.clone()
        found[self.index < 0] = 0.0
        return found

    def take_gains(self, gains: Tensor, own: Tensor) -> Tensor:
        return self.take(gains) + (own - self.shared(own))


@dataclass(frozen=True)
class Rotate:
    """A matrix [there, here] with orthonormal columns (there ≥ here) or rows.

    Attributes:
        swelling: by how much what is mapped has a larger root mean square; factors of norms make up for it.

    """

    matrix: Tensor
    swelling: float = 1.0

    @property
    def whole(self) -> bool:
        there, here = self.matrix.shape
        return bool(there >= here)

    def take(self, values: Tensor) -> Tensor:
        return torch.tensordot(self.matrix, values, dims=([0], [0]))

    def shared(self, values: Tensor) -> Tensor:
        return values if self.whole else self.take(torch.tensordot(self.matrix, values, dims=([1], [0])))

    def take_gains(self, gains: Tensor, own: Tensor) -> Tensor:
        weights = self.matrix.square()
        return self.swelling * (weights.T @ gains) + (1.0 - weights.sum(0)) * own


@dataclass(frozen=True)
class Heads:
    """Heads in another order, each with its own matrix.

    Attributes:
        order: head of the other model, or -1 for none.
        matrices: [heads here, head size there, head size here].
        scale: of the result: attention divides by the root of the head size.

    """

    order: Tensor
    matrices: Tensor
    scale: float = 1.0

    @property
    def whole(self) -> bool:
        _, there, here = self.matrices.shape
        return there >= here and bool((self.order >= 0).all())

    def take(self, values: Tensor) -> Tensor:
        there = self.matrices.shape[1]
        shaped = values.reshape(-1, there, *([1] if values.dim() == 1 else [values.shape[1]]))
        picked = shaped[self.order.clamp(min=0)]
        found = torch.bmm(self.matrices.transpose(1, 2), picked)
        found[self.order < 0] = 0.0
        return (found * self.scale if self.scale != 1.0 else found).reshape(-1, *values.shape[1:])

    def shared(self, values: Tensor) -> Tensor:
        here = self.matrices.shape[2]
        shaped = values.reshape(-1, here, *([1] if values.dim() == 1 else [values.shape[1]]))
        found = shaped.clone()
        if self.matrices.shape[1] < here:
            found = torch.bmm(self.matrices.transpose(1, 2), torch.bmm(self.matrices, shaped))
        found[self.order < 0] = 0.0
        return found.reshape(values.shape)

    def take_gains(self, gains: Tensor, own: Tensor) -> Tensor:  # pragma: no cover - norms have no axis of heads
        raise NotImplementedError


def leading(there: int, here: int) -> AxisMap:
    """Takes the first elements as they are; those that the other axis does not have, none."""
    if there == here:
        return Same()
    index = torch.arange(here)
    return Pick(torch.where(index < there, index, torch.full_like(index, -1)))


def adapted(values: Tensor, own: Tensor, maps: tuple[AxisMap, ...], *, fill: bool) -> Tensor:
    """Brings a source's tensor on the target's axes.

    Args:
        values: the source's.
        own: the target's.
        maps: of each axis.
        fill: put the target's own values where the source says nothing (else zeros).

    """
    result = along(values, maps, lambda one, x: one.take(x))
    if not fill or all(one.whole for one in maps):
        return result
    return result + (own - along(own, maps, lambda one, x: one.shared(x)))


def along(values: Tensor, maps: tuple[AxisMap, ...], use: Callable[[AxisMap, Tensor], Tensor]) -> Tensor:
    """Applies a map to each axis."""
    for dimension, one in enumerate(maps):
        if not isinstance(one, Same):
            values = use(one, values.transpose(0, dimension)).transpose(0, dimension)
    return values
