"""From a strategy's name to the strategy."""

from __future__ import annotations

from collections.abc import Callable

from evomerge_common.domain.genome import SearchSpace
from evomerge_common.domain.spec import SearchSpec
from evomerge_common.errors import SpecError, did_you_mean
from evomerge_selector.domain.optuna_search import SAMPLERS, OptunaSearch
from evomerge_selector.domain.strategies import MapElitesSearch, ParetoSearch, RandomSearch, Strategy, TournamentSearch


def make_strategy(space: SearchSpace, spec: SearchSpec, *, seed: int) -> Strategy:
    """The strategy that the spec names.

    Raises:
        SpecError: it names none, or one that this space or machine has no means for.

    """
    kinds: dict[str, Callable[[], Strategy]] = {
        "tournament": lambda: TournamentSearch(space, spec),
        "nsga2": lambda: ParetoSearch(space, spec),
        "map_elites": lambda: MapElitesSearch(space, spec, sources=len(space.models)),
        "random": lambda: RandomSearch(space, spec),
        **{name: lambda: OptunaSearch(space, spec, seed) for name in SAMPLERS},
    }
    if spec.strategy not in kinds:
        raise SpecError(
            f"unknown strategy {spec.strategy!r}; {did_you_mean(spec.strategy, kinds)}", ("search", "strategy")
        )
    return kinds[spec.strategy]()
