"""A strategy is an object with traits: found by its name, with a champion rule of its own."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import evomerge_selector.domain
from evomerge_common.domain.spec import RunSpec
from evomerge_common.domain.strategies import STRATEGIES, StrategyTraits
from evomerge_common.errors import SpecError
from evomerge_selector.domain.run import Phase
from evomerge_selector.domain.strategy import Strategy, strategy_class
from helpers.simulation import Simulation, make_spec

HILL_CLIMBER = '''
"""Hill climbing, with the weakest candidate as champion: a rule that no other strategy has."""

from evomerge_selector.domain.operators import mutate, random_genome
from evomerge_selector.domain.strategy import Proposal, Strategy


class HillClimber(Strategy):
    best = None

    def tell(self, candidate):
        if self.best is None or candidate.rank < self.best.rank:
            self.best = candidate

    def ask(self, index, rng):
        if self.best is None:
            return Proposal(random_genome(self.space, rng), "random")
        return Proposal(mutate(self.best.genome, self.space, rng), "step", (self.best.digest,))

    @staticmethod
    def champion(candidates):
        return min(range(len(candidates)), key=lambda i: candidates[i].fitness)
'''


def test_a_strategy_is_a_file_and_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is the class, the line is in the table of names and traits: nothing else knows of it."""
    (tmp_path / "hill_climber.py").write_text(HILL_CLIMBER)
    monkeypatch.syspath_prepend(tmp_path)
    line = StrategyTraits(made_by="hill_climber:HillClimber", summary="steps uphill", several_objectives=True)
    monkeypatch.setitem(STRATEGIES, "hill_climber", line)

    run = Simulation(make_spec(strategy="hill_climber", evaluations=30, population=8), workers=3, order=1).run
    assert run.phase is Phase.FINISHED
    assert {one.proposed.operator for one in run.candidates} >= {"source", "step"}
    assert run.ended is not None
    weakest = min(run.candidates, key=lambda one: one.fitness or 0.0)
    assert run.ended.champion_digest == weakest.proposed.recipe_digest
    with pytest.raises(SpecError, match="hill_climber has several"):
        make_spec(strategy="hill_climber", racing=True)


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_of_the_table_is_there(name: str) -> None:
    assert issubclass(strategy_class(name), Strategy)
    assert isinstance(make_spec(strategy=name), RunSpec)


def test_an_unknown_strategy_is_refused_with_the_nearest() -> None:
    with pytest.raises(SpecError, match="did you mean 'cmaes'"):
        strategy_class("cma")


def test_the_domain_names_no_strategy_and_imports_no_optuna() -> None:
    """What depends on the strategy is in its object: its name is nowhere else (`random` is an operator, too)."""
    for file in Path(evomerge_selector.domain.__file__).parent.glob("*.py"):
        tree = ast.parse(file.read_text())
        texts = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
        assert not {one for one in texts if isinstance(one, str)} & (set(STRATEGIES) - {"random"}), file
        names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not any(name.startswith("optuna") for name in names), file
