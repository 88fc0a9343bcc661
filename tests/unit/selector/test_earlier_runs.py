"""A search that begins with the results of earlier runs."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evomerge_common.domain.earlier import earlier_candidates
from evomerge_common.domain.messages import EarlierCandidate, RunStarted
from evomerge_common.domain.spec import RunRequest
from evomerge_common.domain.suite import Suite
from evomerge_common.errors import InvalidInput
from evomerge_common.runtime.ports_factory import memory_ports
from evomerge_selector.domain.run import Phase
from evomerge_selector.fake_workers import workers
from evomerge_selector.runs import Runs
from helpers.simulation import SUITE, Simulation, answer, make_spec

SMALL: dict[str, Any] = {"evaluations": 30, "population": 8}
FIRST = make_spec(seed=1, **SMALL)


@pytest.fixture(scope="module")
def first() -> Simulation:
    return Simulation(FIRST, workers=3, order=1)


@pytest.fixture(scope="module")
def known(first: Simulation) -> list[EarlierCandidate]:
    return earlier_candidates(first.events, make_spec(seed=2, **SMALL), "")


def test_the_best_candidates_are_taken_and_no_sources(first: Simulation, known: list[EarlierCandidate]) -> None:
    sources = {digest for _, digest, operator in first.proposals if operator == "source"}
    assert len(known) == 30 - len(sources)
    assert not sources & {one.recipe_digest for one in known}
    assert [one.fitness for one in known] == sorted((one.fitness for one in known), reverse=True)


@pytest.mark.parametrize("strategy", ["tournament", "nsga2", "map_elites", "cmaes"])
def test_known_results_begin_a_search_whatever_the_order(strategy: str, known: list[EarlierCandidate]) -> None:
    spec = make_spec(seed=2, strategy=strategy, **SMALL)
    calm = Simulation(spec, workers=1, order=0, earlier=tuple(known))
    wild = Simulation(spec, workers=6, order=5, replay_every=5, earlier=tuple(known))
    assert wild.proposals == calm.proposals
    assert wild.events[-1] == calm.events[-1]
    operators = [operator for _, _, operator in calm.proposals]
    assert operators[:6].count("earlier") == 1  # the best one, right after the sources: it is scored here, too
    again = {one.recipe_digest for one in known} & {digest for _, digest, _ in calm.proposals}
    assert again == {known[0].recipe_digest}
    assert (calm.run.champion.fitness or 0.0) >= known[0].fitness


def test_results_of_other_models_are_left_out(known: list[EarlierCandidate]) -> None:
    spec = make_spec(seed=2, **SMALL)
    others = tuple(replace(one, recipe_digest="0" * 64) for one in known)  # as if the models had changed since
    assert (
        Simulation(spec, workers=1, order=0, earlier=others).proposals == Simulation(spec, workers=1, order=0).proposals
    )
    two = Simulation(make_spec(models=2, seed=2, **SMALL), workers=1, order=0, earlier=tuple(known))
    assert two.run.phase is Phase.FINISHED  # genomes of three models do not fit two


def test_another_suite_or_spec_is_refused(first: Simulation) -> None:
    with pytest.raises(InvalidInput, match="another suite"):
        earlier_candidates(first.events, FIRST, "other")
    with pytest.raises(InvalidInput, match="more than its seed"):
        earlier_candidates(first.events, make_spec(models=2), "")


async def test_a_run_names_earlier_ones_and_its_log_has_them(tmp_path: Path) -> None:
    ports, suite = memory_ports(tmp_path), Suite.from_dict(SUITE)
    stop, runs = asyncio.Event(), Runs(ports)
    task = asyncio.create_task(runs.adopt(stop))
    async with workers(ports, answer):
        one = await runs.start(RunRequest(FIRST, suite), "one")
        while (await runs.find(one)).phase is not Phase.FINISHED:
            await asyncio.sleep(0.02)
        two = await runs.start(RunRequest(make_spec(seed=2, warm_start=[one], **SMALL), suite), "two")
        with pytest.raises(InvalidInput, match="no such run"):
            await runs.start(RunRequest(make_spec(seed=2, warm_start=["run-0"], **SMALL), suite), "three")
    stop.set()
    await task
    started = [e.event.payload async for e in ports.log.read(two) if isinstance(e.event.payload, RunStarted)]
    assert {e.run_id for e in started[0].earlier} == {one}
