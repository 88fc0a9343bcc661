"""Methods on task vectors: what a model changed of its base.

All are one scheme: thin each task vector out (by magnitude, at random, by rank, or not), weigh, perhaps keep only what
agrees with the elected sign, add up, and add the result to the base, times `lambda`. `FAMILY` says which method does
what. Parameters that a method does not use but that recipes of this family carry everywhere (`density` of
task_arithmetic, `int8_mask`) are accepted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from evomerge_common.domain.methods import traits_of
from evomerge_common.errors import RecipeError
from evomerge_merging.methods.forms import EPSILON, TaskVectorSum
from evomerge_merging.methods.registry import Parameter, add_method
from evomerge_merging.methods.view import Block, View
from evomerge_merging.numerics.selection import KEEP_NONE, Band, Drawn, Keep


@dataclass(frozen=True)
class Thinned:
    """What is kept of each task vector (None: all of it), and what makes up for what is not."""

    keeps: Sequence[Keep | None]
    factors: Sequence[float]


def _thinned(view: View, keeps: Sequence[Keep | None], *, rescale: bool) -> Thinned:
    """With `rescale`, the factors give each task vector its L1 norm back (on average 1 / density at random)."""
    sums = view.magnitude_sums(keeps) if rescale and any(keep is not None for keep in keeps) else {}
    return Thinned(keeps, [_factor(*sums[i]) if i in sums else 1.0 for i in range(len(keeps))])


def _factor(whole: float, kept: float) -> float:
    return whole / kept if min(whole, kept) > EPSILON else 1.0


# ---- ways to thin out, each from the whole tensor; a density of 1 keeps all ----


def _by_magnitude(view: View, *, density: Sequence[float], rescale: bool, **_: Any) -> Thinned:
    """Keeps the `int(density * size)` largest magnitudes of each task vector, exactly."""
    keeps: list[Keep | None] = [None] * len(density)
    if any(share < 1.0 for share in density):
        cuts = view.magnitude_cuts([int(min(share, 1.0) * view.size) for share in density])
        keeps = [cut if share < 1.0 else None for cut, share in zip(cuts, density, strict=True)]
    return _thinned(view, keeps, rescale=rescale)


def _at_random(view: View, *, density: Sequence[float], rescale: bool, **_: Any) -> Thinned:
    """Drops each element with the same probability; masks are drawn again wherever they are needed."""
    masks = view.block(0, 0).masks
    keeps = [Drawn(masks[i], max(0.0, share)) if share < 1.0 else None for i, share in enumerate(density)]
    return _thinned(view, keeps, rescale=rescale)


def _middle(view: View, *, density: Sequence[float], gamma: Sequence[float], rescale: bool, **_: Any) -> Thinned:
    """Leaves out the `int(gamma * size)` largest magnitudes, then keeps the `int(density * size)` largest of the rest.

    Where that leaves too few, fewer of the largest are left out: the density holds.
    """
    keeps: list[Keep | None] = [None] * len(density)
    if any(share < 1.0 for share in density):
        counts = []
        for share, outliers in zip(density, gamma, strict=True):
            kept = int(min(share, 1.0) * view.size)
            dropped = max(0, min(int(outliers * view.size), view.size - kept))
            counts += [dropped + kept, dropped]
        cuts = view.magnitude_cuts(counts)
        for i, share in enumerate(density):
            keeps[i] = Band(cuts[2 * i], cuts[2 * i + 1]) if share < 1.0 else None
    return _thinned(view, keeps, rescale=rescale)


def _by_rank(view: View, *, density: Sequence[float], epsilon: Sequence[float], rescale: bool, **_: Any) -> Thinned:
    """Draws what is kept, small changes less often than large ones of their row.

    One pass, whose outcome is held as a bit an element, because ranks cost more than all the rest.
    """
    wanted = {i: (share, epsilon[i]) for i, share in enumerate(density) if 0.0 < share < 1.0}
    masks = view.masks_by_rank(wanted)
    rest = [None if share >= 1.0 else KEEP_NONE for share in density]
    keeps: list[Keep | None] = [masks[i].keep if i in masks else rest[i] for i in range(len(density))]
    factors = [_factor(masks[i].whole, masks[i].part) if rescale and i in masks else 1.0 for i in range(len(density))]
    return Thinned(keeps, factors)


def _check_epsilon(*, density: Sequence[float], epsilon: Sequence[float], **_: Any) -> None:
    for share, spread in zip(density, epsilon, strict=True):
        if 0.0 < share < 1.0 and not (share - abs(spread) > 0.0 and share + abs(spread) < 1.0):
            raise RecipeError(
                f"density - epsilon and density + epsilon must lie between 0 and 1, and with density {share:g} and "
                f"epsilon {spread:g} they do not: lower epsilon below {min(share, 1.0 - share):g}",
                ("parameters", "epsilon"),
            )


@dataclass(frozen=True)
class Thinning:
    """A way to thin task vectors out.

    Attributes:
        statistics: finds out what is kept, from the whole tensor; None: all is.
        parameter: a parameter of its own, of each model.
        check: refuses parameters that cannot go together, when planning.

    """

    statistics: Callable[..., Thinned] | None
    parameter: Parameter | None = None
    check: Callable[..., None] | None = None


NOT = Thinning(None)
BY_MAGNITUDE = Thinning(_by_magnitude)
AT_RANDOM = Thinning(_at_random)
MIDDLE = Thinning(_middle, Parameter("gamma", float, per_model=True, required=False, default=0.01))
"""`gamma` is the share of largest magnitudes left out, `density` the share kept."""
BY_RANK = Thinning(
    _by_rank, Parameter("epsilon", float, per_model=True, required=False, default=0.15), check=_check_epsilon
)
"""An element is kept with a probability from density - epsilon (its row's smallest magnitude) to density + epsilon."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """A method of the family: how it thins out, whether it elects signs, its defaults, and what it says of itself."""

    name: str
    thinning: Thinning
    elect: bool
    rescale: bool = False
    summary: str


FAMILY = (
    Member(
        name="task_arithmetic",
        thinning=NOT,
        elect=False,
        summary="The base plus the weighted sum of the task vectors (Ilharco et al. 2022, arXiv:2212.04089).",
    ),
    Member(
        name="ties",
        thinning=BY_MAGNITUDE,
        elect=True,
        summary="Trim task vectors by magnitude, elect a sign, and average what agrees "
        "(Yadav et al. 2023, arXiv:2306.01708).",
    ),
    Member(
        name="dare_linear",
        thinning=AT_RANDOM,
        elect=False,
        rescale=True,
        summary="Drop elements of task vectors at random, rescale the rest, add them up "
        "(Yu et al. 2023, arXiv:2311.03099).",
    ),
    Member(
        name="dare_ties",
        thinning=AT_RANDOM,
        elect=True,
        rescale=True,
        summary="Drop elements of task vectors at random, rescale, then elect signs as TIES does.",
    ),
    Member(
        name="breadcrumbs",
        thinning=MIDDLE,
        elect=False,
        summary="Drop both the smallest and the largest changes, add up the rest "
        "(Davari & Belilovsky 2023, arXiv:2312.06795).",
    ),
    Member(
        name="breadcrumbs_ties",
        thinning=MIDDLE,
        elect=True,
        summary="Drop both the smallest and the largest changes, then elect signs as TIES does.",
    ),
    Member(
        name="della",
        thinning=BY_RANK,
        elect=True,
        rescale=True,
        summary="Drop changes at random, small ones rather than large, rescale, elect signs "
        "(Deep et al. 2024, arXiv:2406.11617).",
    ),
    Member(
        name="della_linear",
        thinning=BY_RANK,
        elect=False,
        rescale=True,
        summary="Drop changes at random, small ones rather than large, rescale the rest and add them up.",
    ),
)


def _parameters(member: Member) -> list[Parameter]:
    own = [member.thinning.parameter] if member.thinning.parameter else []
    return [
        Parameter("weight", float, per_model=True, required=True),
        Parameter("density", float, per_model=True, required=False, default=1.0),
        *own,
        Parameter("normalize", bool, per_model=False, required=False, default=traits_of(member.name).normalizes),
        Parameter("rescale", bool, per_model=False, required=False, default=member.rescale),
        Parameter("int8_mask", bool, per_model=False, required=False, default=False),
        Parameter("lambda", float, per_model=False, required=False, default=1.0),
    ]


def _function(member: Member) -> Callable[..., TaskVectorSum]:
    def merge(block: Block, *, weight: Sequence[float], normalize: bool, lambda_: float, **_: Any) -> TaskVectorSum:
        thinned: Thinned = block.statistics or Thinned([None] * len(weight), [1.0] * len(weight))
        factors = [share * factor for share, factor in zip(weight, thinned.factors, strict=True)]
        return TaskVectorSum(thinned.keeps, factors, weight, member.elect, normalize, lambda_)

    return merge


for _member in FAMILY:
    add_method(
        _member.name,
        _function(_member),
        positional=["block"],
        parameters=_parameters(_member),
        summary=_member.summary,
        statistics=_member.thinning.statistics,
        check=_member.thinning.check,
    )
