"""The strategies of a search: their names and traits, in one table. Lists of their names derive from it.

A new strategy is a class (see `evomerge_selector.domain.strategy`) in a file of its own, and a line here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class StrategyTraits:
    """What can be known of a strategy without running it.

    Attributes:
        made_by: "module:class" of what does it; loaded by the selector alone, when a run asks for it.
        summary: what it does, for people who choose.
        several_objectives: it compares candidates by every task, not by one fitness; so it cannot race them.
        needs: packages that it uses beside those of the selector.
        extra: of the selector's package, which brings them.

    """

    made_by: str
    summary: str
    several_objectives: bool = False
    needs: tuple[str, ...] = ()
    extra: str = ""


_DOMAIN, _OPTUNA = "evomerge_selector.domain.strategies", "evomerge_selector.optuna_search"

STRATEGIES: dict[str, StrategyTraits] = {
    "tournament": StrategyTraits(
        made_by=f"{_DOMAIN}.tournament:EvolutionaryTournament",
        summary="evolution by tournament selection",
    ),
    "nsga2": StrategyTraits(
        made_by=f"{_DOMAIN}.nsga2:ParetoSearch",
        summary="every task an objective of its own",
        several_objectives=True,
    ),
    "map_elites": StrategyTraits(
        made_by=f"{_DOMAIN}.map_elites:MapElitesSearch",
        summary="the best of every skill",
        several_objectives=True,
    ),
    "cmaes": StrategyTraits(made_by=f"{_OPTUNA}:CmaEs", summary="CMA-ES over the weights of one method"),
    "tpe": StrategyTraits(made_by=f"{_OPTUNA}:ParzenTrees", summary="tree-structured Parzen estimators"),
    "gp": StrategyTraits(
        made_by=f"{_OPTUNA}:GaussianProcess",
        summary="Gaussian process",
        needs=("scipy", "torch"),
        extra="gp",
    ),
    "random": StrategyTraits(made_by=f"{_DOMAIN}.random:RandomSearch", summary="independent draws: the yardstick"),
}
"""By the name that a spec has for it."""
