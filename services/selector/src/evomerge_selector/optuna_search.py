"""CMA-ES, TPE and Gaussian processes by Optuna's ask / tell, over the weights of parameter-space merges.

They live beside the domain, which imports the standard library alone. Optuna's samplers carry state from proposal to
proposal, so a strategy that is folded from the log is asked again for all past ones (`is_stateful`); they are seeded,
so the answers are the same.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from random import Random
from typing import Any

from evomerge_common.domain.genome import Genome
from evomerge_common.domain.methods import searchable_methods, traits_of
from evomerge_common.domain.search_space import SearchSpace
from evomerge_common.domain.spec import SearchSpec
from evomerge_common.errors import SpecError
from evomerge_selector.domain.strategy import Proposal, ScoredCandidate, Strategy

MAX_WEIGHT = 1.5


class OptunaSearch(Strategy):
    """One study. Candidates that it did not ask for (sources, initial population) are told where they have weights."""

    is_stateful = True

    def __init__(self, space: SearchSpace, spec: SearchSpec, *, seed: int = 0) -> None:
        """Opens the study.

        Raises:
            SpecError: no method of the space has weights.

        """
        import optuna

        super().__init__(space, spec, seed=seed)
        self._trials: dict[int, Any] = {}
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._methods = self._usable(tuple(m for m in space.methods if traits_of(m).weights))
        if not self._methods:
            known = ", ".join(m for m in searchable_methods() if traits_of(m).weights)
            raise SpecError(
                f"{spec.strategy} searches weights; add a method that has some: {known}", ("search", "methods")
            )
        floats = optuna.distributions.FloatDistribution
        self._distributions: dict[str, Any] = {
            f"w{row}_{model}": floats(0.0, MAX_WEIGHT)
            for row in range(self.space.rows)
            for model in range(len(self.space.models))
        }
        if any(traits_of(m).density for m in self._methods):
            self._distributions |= {f"d{row}": floats(0.1, 1.0) for row in range(self.space.rows)}
        if len(self._methods) > 1:
            self._distributions["method"] = optuna.distributions.CategoricalDistribution(self._methods)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some of Optuna's samplers call themselves experimental
            self._study = optuna.create_study(direction="maximize", sampler=self._sampler(optuna.samplers))

    @abstractmethod
    def _sampler(self, samplers: Any) -> Any:
        """Makes the sampler, one of the module `optuna.samplers`. Called once, when the study is opened."""

    def _usable(self, methods: tuple[str, ...]) -> tuple[str, ...]:
        """Picks the methods that are searched, of those with weights. Called once, when the study is opened."""
        return methods

    def tell(self, candidate: ScoredCandidate) -> None:
        """Closes the trial that proposed it, or adds one where its genome has this study's form."""
        import optuna

        states = optuna.trial.TrialState
        failed = candidate.fitness == float("-inf")
        trial = self._trials.pop(candidate.index, None)
        if trial is not None:
            if failed:
                self._study.tell(trial, state=states.FAIL)
            else:
                self._study.tell(trial, candidate.fitness)
            return
        parameters = None if failed else self._parameters(candidate.genome)
        if parameters is not None:
            self._study.add_trial(
                optuna.trial.create_trial(
                    params=parameters,
                    distributions=self._distributions,
                    value=candidate.fitness,
                    state=states.COMPLETE,
                )
            )

    def ask(self, index: int, rng: Random) -> Proposal:
        """Answers with the sampler's next point, as a genome."""
        trial = self._study.ask(self._distributions)
        self._trials[index] = trial
        found = trial.params
        method = found.get("method", self._methods[0])
        traits = traits_of(method)
        rows = range(self.space.rows)
        genome = Genome(
            method,
            weights=tuple(
                tuple(round(found[f"w{row}_{model}"], 4) for model in range(len(self.space.models))) for row in rows
            ),
            density=tuple(round(found[f"d{row}"], 4) for row in rows) if traits.density else (),
            seed=rng.randrange(1, 2**31) if traits.random else 0,
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


class CmaEs(OptunaSearch):
    """CMA-ES (Hansen 2016) over mergekit-evolve's genome: weights × layer groups of one method, the first with any."""

    def _usable(self, methods: tuple[str, ...]) -> tuple[str, ...]:
        return methods[:1]

    def _sampler(self, samplers: Any) -> Any:
        return samplers.CmaEsSampler(seed=self.seed, n_startup_trials=1, sigma0=0.3)


class ParzenTrees(OptunaSearch):
    """Tree-structured Parzen estimators (Bergstra et al. 2011), which choose the method, too."""

    def _sampler(self, samplers: Any) -> Any:
        return samplers.TPESampler(seed=self.seed, multivariate=True, n_startup_trials=1)


class GaussianProcess(OptunaSearch):
    """Bayesian optimisation by a Gaussian process, which chooses the method, too."""

    def _sampler(self, samplers: Any) -> Any:
        return samplers.GPSampler(seed=self.seed, n_startup_trials=1, deterministic_objective=True)
