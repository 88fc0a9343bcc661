"""What a strategy is: told results in order of proposal, asked for the next genome, asked for the champion.

A strategy is deterministic: what it answers depends on what it was told and on the `random.Random` that comes with
the call, which the run seeds with (run seed, place in the sequence).

Names and traits have their table in `evomerge_common.domain.strategies`; `strategy_class` finds what it names.
"""

from __future__ import annotations

import importlib
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from evomerge_common.domain.genome import Genome
from evomerge_common.domain.pareto import Point
from evomerge_common.domain.search_space import SearchSpace
from evomerge_common.domain.spec import SearchSpec
from evomerge_common.domain.strategies import STRATEGIES
from evomerge_common.errors import SpecError, did_you_mean
from evomerge_selector.domain.candidate import Candidate


@dataclass(frozen=True)
class ScoredCandidate:
    """A scored genome; of a candidate that failed, `fitness` is −inf and `scores` (one a task) is empty.

    Where the run has constraints, `violation` says how far the scores are below the bounds, and `fitness` is lower by a
    penalty for it: so strategies that know nothing of constraints keep away, too.

    `error`: standard error of the fitness where it is an estimate, of one that a race has stopped; else 0.
    """

    digest: str
    genome: Genome
    fitness: float
    index: int
    scores: Point = ()
    violation: float = 0.0
    error: float = 0.0

    @property
    def rank(self) -> tuple[float, float, int]:
        """Returns the sort key, best first; the earlier proposal wins a tie.

        Feasible ones go before the others, and those by what they violate (Deb, An efficient constraint handling
        method for genetic algorithms, 2000).
        """
        return (self.violation, -self.fitness, self.index)

    @classmethod
    def unread(cls, genome_json: str, **fields: Any) -> ScoredCandidate:
        """Makes one whose genome is read when it is asked for: of a long log few ever are."""
        made = object.__new__(cls)
        vars(made).update({"scores": (), "violation": 0.0, "error": 0.0, **fields, "_genome_json": genome_json})
        return made

    def __getattr__(self, name: str) -> Any:
        """Reads the genome where it has not been; Python asks here for what an object does not have."""
        text = vars(self).get("_genome_json")
        if name != "genome" or text is None:
            raise AttributeError(name)
        genome = vars(self)["genome"] = Genome.from_json(text)
        return genome

    @property
    def mixes_models(self) -> bool:
        """Tells whether its genome is weights of the run's models alone: no path, and no merge of merges."""
        if "genome" in vars(self):
            return bool(self.genome.weights) and not self.genome.ingredients
        text = vars(self)["_genome_json"]
        return '"weights":' in text and '"ingredients":' not in text


@dataclass(frozen=True)
class Proposal:
    """A genome with how it came about; `parents` are recipe digests."""

    genome: Genome
    operator: str
    parents: tuple[str, ...] = ()


class Strategy(ABC):
    """One search. It is made once for each run and process, from nothing but what `__init__` is given.

    Attributes:
        is_stateful: whether `ask` changes what it answers next; then, after a fold of the log, the proposer asks again
            for every past proposal before it asks for a new one.

    """

    is_stateful = False

    def __init__(self, space: SearchSpace, spec: SearchSpec, *, seed: int = 0) -> None:
        """Takes the space to search, the spec's section `search`, and the run's seed.

        Raises:
            SpecError: it has no means on this space.

        """
        self.space = space
        self.spec = spec
        self.seed = seed

    @abstractmethod
    def tell(self, candidate: ScoredCandidate) -> None:
        """Learns a result. Called by `tell_all` before `ask`, once for each candidate, in order of proposal.

        Candidates that the strategy did not propose (sources, initial population) are told, too, and failed ones.
        """

    def tell_all(self, candidates: Sequence[ScoredCandidate]) -> None:
        """Learns results in a row: the same as `tell` for each. Called by the proposer; of a log that was folded they
        are as many as it has, and a strategy that forgets most of them may pass over those.
        """
        for one in candidates:
            self.tell(one)

    @abstractmethod
    def ask(self, index: int, rng: Random) -> Proposal:
        """Answers with the next genome. Called by the proposer for each candidate after the first generation.

        Args:
            index: place of the candidate in the order of proposal, from 0.
            rng: seeded for this place; the only randomness that may be used.

        """

    @staticmethod
    def champion(candidates: Sequence[Candidate]) -> int:
        """Answers which of these is the champion, as an index. Called by the run when it ends, or its state is asked.

        The strategy may not have been made then: the rule looks at the candidates alone.

        Args:
            candidates: those that were scored on all items, in order of proposal; at least one.

        """
        return max(range(len(candidates)), key=lambda i: candidates[i].fitness or 0.0)  # of equals the first


def strategy_class(name: str) -> type[Strategy]:
    """Loads the class of the strategy that a spec names.

    Raises:
        SpecError: there is none of that name.

    """
    if name not in STRATEGIES:
        raise SpecError(f"unknown strategy {name!r}; {did_you_mean(name, STRATEGIES)}", ("search", "strategy"))
    module, _, kind = STRATEGIES[name].made_by.partition(":")
    found: type[Strategy] = getattr(importlib.import_module(module), kind)
    return found


def make_strategy(space: SearchSpace, spec: SearchSpec, *, seed: int) -> Strategy:
    """Makes the strategy that the spec names.

    Raises:
        SpecError: it names none, or one that this space or machine has no means for.

    """
    made_by = strategy_class(spec.strategy)
    traits = STRATEGIES[spec.strategy]
    missing = [name for name in traits.needs if importlib.util.find_spec(name) is None]
    if missing:
        raise SpecError(
            f"strategy {spec.strategy} needs {' and '.join(missing)} beside the selector: "
            f"pip install 'evomerge-selector[{traits.extra}]'; or use one that needs nothing more: "
            f"{', '.join(other for other, its in STRATEGIES.items() if not its.needs)}",
            ("search", "strategy"),
        )
    return made_by(space, spec, seed=seed)
