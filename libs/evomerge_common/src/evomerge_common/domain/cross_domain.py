"""How sources that are built otherwise than a recipe's target are fitted to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from evomerge_common.domain.fields import Fields
from evomerge_common.domain.reference import ModelReference
from evomerge_common.errors import RecipeError, SpecError

CROSS_STRATEGIES = ("full", "embedding_only", "adapter")
CROSS_WIDTHS = ("align", "truncate", "pad")
CROSS_KEYS = ("strategy", "width", "weight")


@dataclass(frozen=True)
class CrossDomain:
    """How sources that are built otherwise than the target are fitted to it before anything is merged.

    Attributes:
        strategy: full: all that has the same role; embedding_only: embeddings and heads, token by token; adapter: only
            tensors that fit as they are.
        width: align: by an orthogonal map; truncate: the leading dimensions, elsewhere the target's own values; pad:
            the leading dimensions, elsewhere zeros.
        weight: share of the source in what it is fitted into, 0 … 1.
        target: whose build the result has; None: the base, else the first source.

    """

    strategy: str = "full"
    width: str = "align"
    weight: float = 1.0
    target: ModelReference | None = None


def read_cross_domain(
    data: Any,
    path: tuple[str | int, ...],
    error: type[SpecError] = RecipeError,
    *,
    keys: tuple[str, ...] = (*CROSS_KEYS, "target"),
) -> CrossDomain:
    """Reads {strategy, width, weight, target}; a word alone is a strategy.

    Raises:
        RecipeError (or `error`): an unknown key or word, a weight out of range.

    """
    if isinstance(data, str):
        data = {"strategy": data}
    own = Fields.of(data, keys, path, error)
    target = own.data.get("target")
    if target is not None and (not isinstance(target, str) or not target.strip()):
        raise own.wrong(f"must be a model, not {target!r}", "target")
    return CrossDomain(
        own.word("strategy", CROSS_STRATEGIES, CROSS_STRATEGIES[0]),
        own.word("width", CROSS_WIDTHS, CROSS_WIDTHS[0]),
        own.number("weight", 1.0, low=0.0, high=1.0),
        None if target is None else ModelReference.parse(target),
    )


def cross_domain_to_dict(one: CrossDomain) -> dict[str, Any]:
    """Writes what `read_cross_domain` reads, without the target; never empty: saying it differs from silence."""
    data: dict[str, Any] = {"strategy": one.strategy}
    if one.width != "align":
        data["width"] = one.width
    if one.weight != 1.0:
        data["weight"] = one.weight
    return data
