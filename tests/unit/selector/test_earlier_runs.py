"""A search that begins with the results of earlier runs."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evomerge_common.domain.earlier import ALONE, EarlierRun, earlier_candidates
from evomerge_common.domain.messages import CandidateEvaluated, EarlierCandidate, RunStarted
from evomerge_common.domain.spec import RunRequest, RunSpec
from evomerge_common.domain.suite import Suite
from evomerge_common.errors import InvalidInput, SpecError
from evomerge_common.runtime.ports_factory import memory_ports
from evomerge_selector.domain.run import Phase
from evomerge_selector.fake_workers import workers
from evomerge_selector.runs import Runs
from helpers.simulation import SUITE, Simulation, answer, make_spec

SMALL: dict[str, Any] = {"evaluations": 30, "population": 8}
FIRST, SECOND = make_spec(seed=1, **SMALL), make_spec(seed=2, **SMALL)
ASKED = Suite.from_dict(SUITE)


def earlier_run(run: Simulation) -> EarlierRun:
    """The run as if it had been scored on the suite."""
    started = run.events[0]
    assert isinstance(started.payload, RunStarted)
    events = [replace(started, payload=replace(started.payload, suite_digest=ASKED.digest)), *run.events[1:]]
    return EarlierRun("the first run", events, ASKED)


@pytest.fixture(scope="module")
def first() -> Simulation:
    return Simulation(FIRST, workers=3, order=1)


@pytest.fixture(scope="module")
def known(first: Simulation) -> list[EarlierCandidate]:
    return earlier_candidates([earlier_run(first)], SECOND, ASKED)


def test_the_best_candidates_are_taken_and_no_sources(first: Simulation, known: list[EarlierCandidate]) -> None:
    sources = {digest for _, digest, operator in first.proposals if operator == "source"}
    assert len(known) == 30 - len(sources)
    assert not sources & {one.recipe_digest for one in known}
    assert [one.fitness for one in known] == sorted((one.fitness for one in known), reverse=True)
    assert all(len(one.scores) == 3 for one in known)


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
    others = tuple(replace(one, recipe_digest="0" * 64) for one in known)  # as if the models had changed since
    cold = Simulation(SECOND, workers=1, order=0)
    assert Simulation(SECOND, workers=1, order=0, earlier=others).proposals == cold.proposals
    two = Simulation(make_spec(models=2, seed=2, **SMALL), workers=1, order=0, earlier=tuple(known))
    assert two.run.phase is Phase.FINISHED  # genomes of three models do not fit two


def test_methods_that_the_search_may_not_draw_are_left_out(known: list[EarlierCandidate]) -> None:
    spec = make_spec(seed=2, methods=["linear", "slerp"], **SMALL)
    warm = Simulation(spec, workers=1, order=0, earlier=tuple(known))
    assert {one.genome.method for one in warm.run.candidates} <= {"linear", "slerp"}


def test_other_models_are_refused(first: Simulation) -> None:
    with pytest.raises(InvalidInput, match="the first run, which has other models"):
        earlier_candidates([earlier_run(first)], make_spec(models=2), ASKED)
    earlier_candidates([earlier_run(first)], make_spec(seed=9, strategy="cmaes"), ASKED)  # searched otherwise


# ---- which scores count ----


def test_the_split_follows_from_the_suite_and_never_from_the_seed_of_a_run() -> None:
    task = ASKED.tasks[0]
    held_out = [item.text for item in ASKED.items(task, "holdout")]
    assert ASKED.held_out() == set(held_out)
    assert not ASKED.searches_with(ASKED.held_out())
    other = Suite.from_dict({**SUITE, "seed": 1})
    assert other.digest != ASKED.digest  # so no score of another split is taken for one of this
    assert ASKED.searches_with(other.held_out())


def test_of_another_suite_genomes_come_alone_and_are_scored_here(first: Simulation) -> None:
    larger = {"tasks": [*SUITE["tasks"], {**SUITE["tasks"][0], "name": "b", "weight": 2.0}]}
    found = earlier_candidates([earlier_run(first)], SECOND, Suite.from_dict(larger))
    assert len(found) == ALONE
    assert not any(one.scores or one.fitness for one in found)
    warm = Simulation(SECOND, workers=1, order=0, earlier=tuple(found))
    wild = Simulation(SECOND, workers=5, order=3, replay_every=7, earlier=tuple(found))
    assert wild.proposals == warm.proposals
    begun = [digest for _, digest, operator in warm.proposals if operator == "earlier"]
    assert begun == [one.recipe_digest for one in found]


def test_nothing_is_taken_that_was_found_on_items_which_are_held_out_now(first: Simulation) -> None:
    for changes in ({"seed": 1}, {"holdout": 0.5}):
        with pytest.raises(InvalidInput, match="items that this run holds out"):
            earlier_candidates([earlier_run(first)], SECOND, Suite.from_dict({**SUITE, **changes}))
    with pytest.raises(InvalidInput, match="out of reach"):
        earlier_candidates([replace(earlier_run(first), suite=None)], SECOND, Suite.from_dict({**SUITE, "name": "b"}))


def test_scores_of_another_dtype_do_not_count() -> None:
    run = Simulation(make_spec(seed=1, **SMALL), workers=3, order=1, dtypes=("float32", "bfloat16"))
    own = run.run.dtype
    found = earlier_candidates([earlier_run(run)], SECOND, ASKED)
    assert {one.dtype for one in found} == {own}
    scored = {one.proposed.recipe_digest: one.fitness for one in run.run.candidates}
    assert all(one.fitness == scored[one.recipe_digest] for one in found)  # not what came in the other one
    # A search that leaves the dtype open compares with them, so it scores in theirs.
    warm = Simulation(SECOND, workers=3, order=2, dtypes=("float32", "bfloat16"), earlier=tuple(found))
    assert warm.run.dtype == own
    other = "bfloat16" if own == "float32" else "float32"
    strict = replace(SECOND, scoring_dtype=other)
    assert not any(one.scores for one in earlier_candidates([earlier_run(run)], strict, ASKED))


def test_bounds_hold_for_what_earlier_runs_found(known: list[EarlierCandidate]) -> None:
    data = {**SECOND.to_dict(), "constraints": {"t0": {"not_below": 0.3}}}
    calm, wild = (
        Simulation(RunSpec.from_dict(data), workers=n, order=n, items=True, earlier=tuple(known)) for n in (1, 5)
    )
    assert wild.proposals == calm.proposals


# ---- at the selector ----


async def test_a_run_names_earlier_ones_and_its_log_has_them(tmp_path: Path) -> None:
    ports = memory_ports(tmp_path)
    stop, runs = asyncio.Event(), Runs(ports)
    task = asyncio.create_task(runs.adopt(stop))

    async def begun(run_id: str) -> set[str]:
        started = [e.event.payload async for e in ports.log.read(run_id) if isinstance(e.event.payload, RunStarted)]
        return {e.run_id for e in started[0].earlier}

    async with workers(ports, answer):
        one = await runs.start(RunRequest(FIRST, ASKED), "one")
        while (await runs.find(one)).phase is not Phase.FINISHED:
            await asyncio.sleep(0.02)
        two = await runs.start(RunRequest(make_spec(seed=2, warm_start=[one], **SMALL), ASKED), "two")
        auto = RunRequest(make_spec(seed=3, warm_start="auto", **SMALL), ASKED)
        three = await runs.start(auto, "three")
        assert await runs.start(auto, "three") == three  # there are more runs by now, and it stays as it began
        other = RunRequest(make_spec(models=2, warm_start="auto", **SMALL), ASKED)
        four = await runs.start(other, "four")
        with pytest.raises(InvalidInput, match="no such run"):
            await runs.start(RunRequest(make_spec(seed=2, warm_start=["run-0"], **SMALL), ASKED), "five")
    stop.set()
    await task
    assert await begun(two) == {one}
    assert one in await begun(three)
    assert await begun(four) == set()


def test_the_spec_says_auto_off_or_which() -> None:
    assert make_spec(warm_start="off") == make_spec(warm_start=False) == make_spec()
    for written in ("auto", ["run-1", "run-2"]):
        spec = make_spec(warm_start=written)
        assert spec.to_dict()["search"]["warm_start"] == written
        assert RunSpec.from_json(spec.to_json()) == spec
    with pytest.raises(SpecError, match="must be auto, off, or a list"):
        make_spec(warm_start="run-1")


def test_a_result_that_comes_twice_counts_once(first: Simulation, known: list[EarlierCandidate]) -> None:
    twice = [one for event in first.events for one in ([event] * (1 + isinstance(event.payload, CandidateEvaluated)))]
    again = replace(earlier_run(first), events=[*earlier_run(first).events[:1], *twice[1:]])
    assert earlier_candidates([again, again], SECOND, ASKED) == known
