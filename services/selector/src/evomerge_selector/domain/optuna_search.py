"""CMA-ES, TPE and Gaussian processes by Optuna's ask / tell, over the weights of parameter-space merges.

`cmaes` (Hansen 2016) is continuous: it searches the genome of mergekit-evolve, weights × layer groups of one method,
the first of the spec's that has weights. `tpe` (Bergstra et al. 2011) and `gp` also choose the method.

Optuna's samplers carry state from question to question, so a strategy that is folded from the log is asked all past
questions again (`is_stateful`); they are seeded, so the answers are the same.
"""

from __future__ import annotations

import importlib.util
import warnings
from dataclasses import dataclass, field
from random import Random
from typing import Any

from evomerge_common.domain.genome import DENSITY_METHODS, PARAMETER_METHODS, RANDOM_METHODS, Genome, SearchSpace
from evomerge_common.domain.spec import SearchSpec
from evomerge_common.errors import SpecError
from evomerge_selector.domain.strategies import Individual, Proposal

MAX_WEIGHT = 1.5
SAMPLERS = ("cmaes", "tpe", "gp")


@dataclass
class OptunaSearch:
    """One study. Candidates that it did not ask for (the sources, population zero) are told where they have weights."""

    space: SearchSpace
    spec: SearchSpec
    seed: int
    is_stateful: bool = True
    _trials: dict[int, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._methods = tuple(m for m in self.space.methods if m in PARAMETER_METHODS)
        if not self._methods:
            raise SpecError(
                f"{self.spec.strategy} searches weights; add a method that has some: {', '.join(PARAMETER_METHODS)}",
                ("search", "methods"),
            )
        if self.spec.strategy == "cmaes":
            self._methods = self._methods[:1]
        floats = optuna.distributions.FloatDistribution
        self._distributions: dict[str, Any] = {
            f"w{row}_{model}": floats(0.0, MAX_WEIGHT)
            for row in range(self.space.rows)
            for model in range(len(self.space.models))
        }
        if any(m in DENSITY_METHODS for m in self._methods):
            self._distributions |= {f"d{row}": floats(0.1, 1.0) for row in range(self.space.rows)}
        if len(self._methods) > 1:
            self._distributions["method"] = optuna.distributions.CategoricalDistribution(self._methods)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some of Optuna's samplers call themselves experimental
            self._study = optuna.create_study(direction="maximize", sampler=self._sampler())

    def tell(self, individual: Individual) -> None:
        import optuna

        states = optuna.trial.TrialState
        failed = individual.fitness == float("-inf")
        trial = self._trials.pop(individual.index, None)
        if trial is not None:
            if failed:
                self._study.tell(trial, state=states.FAIL)
            else:
                self._study.tell(trial, individual.fitness)
            return
        parameters = None if failed else self._parameters(individual.genome)
        if parameters is not None:
            self._study.add_trial(
                optuna.trial.create_trial(
                    params=parameters,
                    distributions=self._distributions,
                    value=individual.fitness,
                    state=states.COMPLETE,
                )
            )

    def ask(self, index: int, rng: Random) -> Proposal:
        trial = self._study.ask(self._distributions)
        self._trials[index] = trial
        found = trial.params
        method = found.get("method", self._methods[0])
        rows = range(self.space.rows)
        genome = Genome(
            method,
            weights=tuple(
                tuple(round(found[f"w{row}_{model}"], 4) for model in range(len(self.space.models))) for row in rows
            ),
            density=tuple(round(found[f"d{row}"], 4) for row in rows) if method in DENSITY_METHODS else (),
            seed=rng.randrange(1, 2**31) if method in RANDOM_METHODS else 0,
        )
        return Proposal(genome, self.spec.strategy)

    def _parameters(self, genome: Genome) -> dict[str, Any] | None:
        """A genome as Optuna's parameters; None when it has none of this study's form."""
        if genome.method not in self._methods or len(genome.weights) != self.space.rows or genome.ingredients:
            return None
        found: dict[str, Any] = {
            f"w{row}_{model}": min(MAX_WEIGHT, weight)
            for row, weights in enumerate(genome.weights)
            for model, weight in enumerate(weights)
        }
        if "d0" in self._distributions:
            found |= {f"d{row}": value for row, value in enumerate(genome.density or (1.0,) * self.space.rows)}
        if "method" in self._distributions:
            found["method"] = genome.method
        return found

    def _sampler(self) -> Any:
        import optuna

        if self.spec.strategy == "cmaes":
            return optuna.samplers.CmaEsSampler(seed=self.seed, n_startup_trials=1, sigma0=0.3)
        if self.spec.strategy == "tpe":
            return optuna.samplers.TPESampler(seed=self.seed, multivariate=True, n_startup_trials=1)
        missing = [name for name in ("scipy", "torch") if importlib.util.find_spec(name) is None]
        if missing:
            raise SpecError(
                f"strategy gp needs {' and '.join(missing)} beside the selector: "
                "pip install 'evomerge-selector[gp]'; or use tpe or cmaes",
                ("search", "strategy"),
            )
        return optuna.samplers.GPSampler(seed=self.seed, n_startup_trials=1, deterministic_objective=True)
