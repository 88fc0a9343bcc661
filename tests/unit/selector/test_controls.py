"""Null candidates: scored beside the champion, outside of the search."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from evomerge_common.domain.controls import NO_CONTROLS, ControlsSpec
from evomerge_common.domain.messages import CandidateEvaluated, CandidateProposed, Control, Model, SearchEnded
from evomerge_common.domain.recipe import Recipe
from evomerge_common.domain.spec import RunSpec
from evomerge_common.errors import SpecError
from evomerge_selector.domain.controls import controls
from evomerge_selector.domain.proposer import search_space
from evomerge_selector.domain.run import Phase
from helpers.simulation import Simulation, adapters_spec, make_spec

CONTROLS = ControlsSpec()


def ended(simulation: Simulation) -> SearchEnded:
    return next(e.payload for e in simulation.events if isinstance(e.payload, SearchEnded))


def results(simulation: Simulation) -> set[tuple[str, str]]:
    """(recipe digest, split) of what was scored on all items."""
    found = [e.payload for e in simulation.events if isinstance(e.payload, CandidateEvaluated)]
    whole = {(one.recipe_digest, one.split) for one in found if not one.partial}
    return whole | {(one.recipe_digest, "search") for one in simulation.raced if not one.stopped}


@pytest.mark.parametrize("racing", [False, True])
@pytest.mark.parametrize(("workers", "order", "replay"), [(1, 0, 0), (2, 5, 5), (8, 3, 0)])
def test_the_search_is_the_same_with_controls(racing: bool, workers: int, order: int, replay: int) -> None:
    plain = make_spec(evaluations=24, population=8, racing=racing)
    without = Simulation(plain, workers=1, order=0, items=True)
    spec = replace(plain, controls=CONTROLS)
    simulation = Simulation(spec, workers=workers, order=order, replay_every=replay, items=True)
    assert simulation.proposals == without.proposals
    assert simulation.events[-1].payload == without.events[-1].payload  # RunFinished
    assert simulation.run.phase is Phase.FINISHED
    found = ended(simulation)
    assert replace(found, controls=()) == ended(without)
    assert [one.kind for one in found.controls] == ["permuted"] * 2 + ["noised"] * 2 + ["uniform"]
    assert len({one.recipe_digest for one in found.controls}) == 5
    scored = results(simulation)
    assert {(one.recipe_digest, split) for one in found.controls for split in ("search", "holdout")} <= scored
    assert not {one.recipe_digest for one in found.controls[:4]} & {digest for _, digest, _ in simulation.proposals}


def test_a_control_that_cannot_be_scored_holds_up_no_run() -> None:
    spec = replace(make_spec(evaluations=24, population=8), controls=ControlsSpec(permuted=30, noised=30))
    simulation = Simulation(spec, workers=3, order=1, fail=frozenset(range(20)))
    assert simulation.run.phase is Phase.FINISHED
    drawn = [int(one.recipe_digest[:4], 16) % 50 < 20 for one in ended(simulation).controls]
    assert 10 < sum(drawn) < 50


def models_of(spec: RunSpec) -> dict[str, Model]:
    return {name: Model(reference=name, digest=name, architecture="llama", num_layers=6) for name in spec.sources}


def recipes(spec: RunSpec, champion: str = "candidate", layers: int = 6) -> dict[str, Recipe]:
    """Kind → recipe of the first control, for a champion that is a merge, a stack of layers, or the best source."""
    space = search_space(spec, models_of(spec))
    made = {
        "candidate": space.recipe(space.uniform("ties", weight=0.5, density=0.4)),
        "uniform": space.recipe(space.uniform("linear", weight=1.0)),
        "stack": Recipe.from_dict(
            {
                "method": "dfs",
                "slices": [
                    {"inputs": [{"model": {"source": one, "digest": one}, "layer_range": [0, layers // 2]}]}
                    for one in spec.models[:2]
                ],
            }
        ),
        "source": space.source(space.models[1]),
    }

    def proposed(name: str) -> CandidateProposed:
        operator = "source" if name == "source" else "blend"
        return CandidateProposed(recipe_digest=made[name].digest, recipe_json=made[name].to_json(), operator=operator)

    found: dict[str, Control] = {}
    for one in controls(replace(spec, controls=CONTROLS), space, proposed(champion), proposed("source")):
        found.setdefault(one.kind, one)
    return {kind: Recipe.from_json(one.recipe_json) for kind, one in found.items()} | {"champion": made[champion]}


def model(recipe: Recipe) -> Any:
    return recipe.slices[0].inputs[0].model


def test_controls_are_made_of_the_champions_change() -> None:
    found = recipes(make_spec())
    assert (found["permuted"].method, str(found["permuted"].base)) == ("permute_delta", "org/base")
    assert model(found["permuted"]) == found["champion"]
    assert (found["noised"].method, str(found["noised"].base)) == ("noise_delta", "org/m1")
    assert model(found["noised"]) == found["champion"]
    assert found["uniform"].method == "linear"


def test_another_change_stands_in_where_the_champions_does_not_fit() -> None:
    source = recipes(make_spec(), "source")
    assert str(model(source["permuted"])) == "org/m1"
    assert str(model(source["noised"])) == "org/base"
    deeper = recipes(make_spec(), "stack", layers=8)
    assert str(model(deeper["permuted"])) == "org/m1"
    assert model(recipes(make_spec(), "stack")["permuted"]).method == "dfs"
    without_base = replace(make_spec(models=2), base="")
    assert str(model(recipes(without_base, "uniform")["permuted"])) == "org/m1"
    assert model(recipes(without_base, "uniform")["noised"]).method == "linear"


def test_builds_and_instructions_are_told_by_the_control_itself() -> None:
    spec = replace(make_spec(), preserve_instruction=True)
    models = models_of(spec)
    models["org/m2"] = replace(models["org/m2"], num_layers=4)
    space = search_space(spec, models)
    recipe = replace(space.recipe(space.uniform("ties", weight=0.5)), preserve_instruction=True)
    champion = CandidateProposed(recipe_digest=recipe.digest, recipe_json=recipe.to_json())
    source = CandidateProposed(recipe_json=space.source(space.models[0]).to_json(), operator="source")
    for one in controls(replace(spec, controls=CONTROLS), space, champion, source):
        made = Recipe.from_json(one.recipe_json)
        assert made.preserve_instruction
        assert made.cross_domain == recipe.cross_domain
        nested = [item for item in made.inputs() if isinstance(item, Recipe)]
        assert all(item.cross_domain is None and item.preserve_instruction is None for item in nested)


def test_adapters_have_controls_too() -> None:
    spec = replace(adapters_spec("org/base", "org/base"), controls=CONTROLS)
    simulation = Simulation(spec, workers=2, order=0)
    assert simulation.run.phase is Phase.FINISHED
    assert len(ended(simulation).controls) == 5


def test_the_spec_says_how_many() -> None:
    def read(value: Any) -> ControlsSpec:
        return RunSpec.from_dict({"models": ["a", "b"], "controls": value}).controls

    assert RunSpec.from_dict({"models": ["a", "b"]}).controls == read(False) == read(0) == NO_CONTROLS
    assert read(True) == CONTROLS
    assert read(5) == ControlsSpec(permuted=5, noised=5, uniform=1)
    assert read({"noised": 0}) == ControlsSpec(permuted=2, noised=0, uniform=1)
    for wrong in ({"noise": 1}, "yes", -1, {"uniform": 2}):
        with pytest.raises(SpecError, match="controls"):
            read(wrong)
    spec = replace(make_spec(), controls=CONTROLS)
    assert RunSpec.from_json(spec.to_json()) == spec
    assert "controls" not in make_spec().to_dict()
