"""The state machine: same spec, same proposals, same champion, whatever happens around it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random
from statistics import median
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from evomerge_common.domain.cross_domain import CrossDomain
from evomerge_common.domain.genome import Genome
from evomerge_common.domain.messages import (
    ArtifactExported,
    CandidateEvaluated,
    CandidateFailed,
    CandidateMerged,
    CandidateProposed,
    Decision,
    DownloadJob,
    ErrorInfo,
    EvaluateJob,
    Event,
    Job,
    JobPostponed,
    Result,
    RunFailed,
    RunFinished,
    RunPaused,
    RunResumed,
    RunStarted,
    SearchEnded,
)
from evomerge_common.domain.pareto import front, hypervolume, knee
from evomerge_common.domain.recipe import Recipe
from evomerge_common.domain.reference import ModelReference
from evomerge_common.domain.search_space import SearchSpace
from evomerge_common.domain.spec import RunRequest, RunSpec
from evomerge_common.domain.strategies import STRATEGIES
from evomerge_common.errors import SpecError
from evomerge_selector.domain.run import Phase, Run
from evomerge_selector.domain.strategies.map_elites import MapElitesSearch
from evomerge_selector.domain.strategies.tournament import EvolutionaryTournament
from evomerge_selector.domain.strategy import ScoredCandidate
from helpers import simulation as playing
from helpers.simulation import SUITE, Simulation, adapters_spec, make_spec

SCHEDULES = ("steady", "generational")
SPACE = SearchSpace((ModelReference("a"), ModelReference("b"), ModelReference("c")), None, 6, 4, ("linear",))


def hold_against_calm(spec: RunSpec, *, workers: int, order: int, replay: int) -> Simulation:
    """A run amid disorder against one that nothing disturbs; the latter, for more questions."""
    calm = Simulation(spec, workers=1, order=0, items=True)
    wild = Simulation(spec, workers=workers, order=order, replay_every=replay, items=True)
    assert wild.raced == calm.raced
    assert wild.proposals == calm.proposals
    assert wild.events[-1] == calm.events[-1]  # RunFinished: the champion's digest and fitness
    assert wild.run.phase is Phase.FINISHED
    return calm


@pytest.mark.parametrize("racing", [False, True])
@settings(max_examples=4, deadline=None)
@given(workers=st.integers(1, 8), order=st.integers(0, 10_000), replay=st.sampled_from([0, 17]))
@example(workers=8, order=1, replay=1)
def test_all_scores_of_a_run_are_of_one_dtype(racing: bool, workers: int, order: int, replay: int) -> None:
    """Workers whose "auto" differs follow the first score: the same run as if all of them were of that kind."""
    spec, both = make_spec(evaluations=24, population=8, racing=racing), ("float32", "bfloat16")
    mixed = Simulation(spec, workers=workers, order=order, replay_every=replay, items=racing, dtypes=both)
    assert mixed.run.dtype in both
    asked = replace(spec, scoring_dtype=mixed.run.dtype)
    alike = Simulation(asked, workers=1, order=0, items=racing, dtypes=both)
    assert mixed.proposals == alike.proposals
    assert mixed.raced == alike.raced
    assert mixed.events[-1] == alike.events[-1]
    other = Simulation(spec, workers=1, order=0, items=racing, dtypes=tuple({*both} - {mixed.run.dtype}))
    assert other.events[-1] != alike.events[-1], "the two dtypes do not differ, and nothing was tested"


@pytest.mark.parametrize("strategy", [s for s in STRATEGIES if s != "gp"])
@pytest.mark.parametrize("schedule", SCHEDULES)
@settings(max_examples=2, deadline=None)
@given(workers=st.integers(1, 8), order=st.integers(0, 10_000), replay=st.sampled_from([0, 3, 17]))
@example(workers=1, order=1, replay=0)
@example(workers=2, order=2, replay=0)
@example(workers=8, order=3, replay=1)  # killed at each event
def test_order_workers_and_crashes_change_nothing(
    schedule: str, strategy: str, workers: int, order: int, replay: int
) -> None:
    racing = not STRATEGIES[strategy].several_objectives
    niche = 0.1 if schedule == "generational" else 0.0
    budget = 15 if racing else 30  # what a race saves goes into more candidates
    spec = make_spec(schedule=schedule, strategy=strategy, evaluations=budget, population=8, racing=racing, niche=niche)
    calm = hold_against_calm(spec, workers=workers, order=order, replay=replay)
    assert any(told.stopped for told in calm.raced) == racing


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_order_workers_and_crashes_change_nothing_for_gp(schedule: str) -> None:
    """Small: each question takes a tenth of a second and more, and after a kill all are put again."""
    spec = make_spec(schedule=schedule, strategy="gp", evaluations=10, population=8, methods=["linear", "ties"])
    calm = hold_against_calm(spec, workers=8, order=3, replay=1)
    assert [operator for _, _, operator in calm.proposals[8:]] == ["gp"] * 2


@settings(max_examples=8, deadline=None)
@given(order=st.integers(0, 10_000), patience=st.integers(3, 12))
def test_an_early_stop_does_not_depend_on_the_order_of_results(order: int, patience: int) -> None:
    spec = make_spec(evaluations=60, population=8, patience=patience)
    ends = []
    for simulation in (Simulation(spec, workers=1, order=0), Simulation(spec, workers=6, order=order)):
        ends.append(next(e.payload for e in simulation.events if isinstance(e.payload, SearchEnded)))
    assert ends[0] == ends[1]
    assert ends[0].reason in {"patience", "budget"}


def test_failed_candidates_are_the_worst_and_the_run_goes_on() -> None:
    simulation = Simulation(make_spec(evaluations=40, population=8), workers=3, order=1, fail=frozenset(range(15)))
    failed = {e.payload.recipe_digest for e in simulation.events if isinstance(e.payload, CandidateFailed)}
    assert len(failed) >= 5
    assert simulation.champion not in failed
    assert simulation.run.failed == len(failed)
    assert isinstance(simulation.events[-1].payload, RunFinished)


@pytest.mark.parametrize("racing", [False, True])
@pytest.mark.parametrize(("workers", "replay"), [(1, 0), (4, 0), (4, 1)])
def test_a_run_whose_sources_are_all_refused_fails_at_once(
    workers: int, replay: int, racing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = ErrorInfo(type="SuiteError", message="it cannot be asked that")

    def answer(job: Job, **options: Any) -> Result:
        payload = job.payload
        if isinstance(payload, EvaluateJob):
            return CandidateFailed(
                job_id=job.job_id, kind="evaluate", recipe_digest=payload.recipe_digest, split="search", error=refused
            )
        return answered(job, **options)

    answered = playing.answer
    monkeypatch.setattr(playing, "answer", answer)
    spec = make_spec(evaluations=60, population=8, racing=racing)
    played = Simulation(spec, workers=workers, order=3, replay_every=replay, items=racing)
    end = played.events[-1].payload
    assert isinstance(end, RunFailed)
    assert end.error.type == "SuiteError"
    assert end.error.message == "none of the source models can be scored; the first said: it cannot be asked that"
    assert len({e.payload.recipe_digest for e in played.events if isinstance(e.payload, CandidateFailed)}) <= 14


@pytest.mark.parametrize("racing", [False, True])
@pytest.mark.parametrize("replay", [0, 1])
def test_a_full_disk_pauses_the_run_and_changes_neither_proposals_nor_champion(replay: int, racing: bool) -> None:
    """Downloads, merges, scores and export alike: the job stays to be done, however often it is postponed."""
    spec = make_spec(evaluations=12 if racing else 30, population=8, racing=racing)
    calm = Simulation(spec, workers=1, order=0, items=True)
    kinds: set[str] = set()
    for order in range(3):
        full = Simulation(spec, workers=4, order=order, replay_every=replay, items=True, full=0.3)
        paused = [event.payload for event in full.events if isinstance(event.payload, RunPaused)]
        assert len(paused) > 5
        assert {one.lack.type for one in paused} == {"DiskFull"}
        kinds |= {one.reason.partition(": ")[0] for one in paused}
        assert all("needs 9 bytes" in one.reason for one in paused)
        assert full.run.failed == 0
        assert full.proposals == calm.proposals
        assert full.events[-1] == calm.events[-1]
    assert kinds >= {"download", "merge", "evaluate"}


def test_no_room_resumes_what_a_person_has_paused() -> None:
    def event(payload: Decision | Result) -> Event:
        return Event(run_id="r", payload=payload)

    lack = ErrorInfo(type="DiskFull", message="full")
    run = Run("r")
    run.apply(event(RunStarted(spec_json=make_spec().to_json())))
    job, other = run.jobs()[:2]
    run.apply(event(JobPostponed(job_id=job.job_id, kind=job.kind, error=lack)))
    assert run.next_decision() == RunPaused(reason="download: full", lack=lack)
    run.apply(event(RunPaused(reason="download: full", lack=lack)))
    assert (run.paused, run.lack, run.jobs(), run.next_decision()) == (True, lack, [], None)
    run.apply(event(RunPaused(reason="asked")))
    run.apply(event(JobPostponed(job_id=other.job_id, kind=other.kind, error=lack)))
    assert (run.paused, run.lack, run.next_decision()) == (True, None, None)
    run.apply(event(RunResumed(reason="asked")))
    assert [one.attempt for one in run.jobs()[:2]] == [1, 1]
    run.apply(event(JobPostponed(job_id=job.job_id, kind=job.kind, error=lack)))
    assert run.next_decision() is None, "what came twice is of an attempt that is over"


def test_a_run_whose_candidates_all_fail_says_so() -> None:
    simulation = Simulation(make_spec(evaluations=12), workers=2, order=1, fail=frozenset(range(50)))
    last = simulation.events[-1].payload
    assert isinstance(last, RunFailed)
    assert "NaN" in last.error.message


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_evolution_beats_random_search_on_the_same_budget(schedule: str) -> None:
    """Medians over five seeds: one seed of either may be lucky."""

    def best(strategy: str, seed: int) -> float:
        spec = make_spec(seed=seed, strategy=strategy, schedule=schedule, evaluations=90, population=12)
        return Simulation(spec, workers=2, order=3).run.champion.fitness or 0.0

    found = median(best("tournament", seed) for seed in range(5))
    assert found > median(best("random", seed) for seed in range(5))
    zero = make_spec(evaluations=16, population=12)
    assert found > (Simulation(zero, workers=1, order=0).run.champion.fitness or 0.0)


def test_the_initial_population_is_sources_average_and_classic_merges() -> None:
    simulation = Simulation(make_spec(evaluations=16), workers=1, order=0)
    operators = [operator for _, _, operator in simulation.proposals]
    assert operators[:5] == ["source", "source", "source", "source", "average"]
    assert operators.count("classic") == min(8, 16 - 8)


def test_objectives_give_a_front_that_grows_and_its_knee_as_champion() -> None:
    spec = make_spec(strategy="nsga2", evaluations=120, population=16)
    found = Simulation(spec, workers=3, order=1).run
    points = [one.scores for one in found.candidates if one.scores]
    volumes = [hypervolume(points[:count], (0.0, 0.0, 0.0)) for count in (16, 40, 80, len(points))]
    assert volumes == sorted(volumes)
    assert volumes[-1] > volumes[0]
    ended = found.ended
    assert ended is not None
    scored = [one for one in found.candidates if one.scores]
    assert ended.champion_digest == scored[knee(points)].proposed.recipe_digest
    assert scored.index(next(o for o in scored if o.proposed.recipe_digest == ended.champion_digest)) in front(points)


def test_map_elites_keeps_the_best_of_every_skill_cell() -> None:
    spec = make_spec(strategy="map_elites", evaluations=100, population=16)
    search = MapElitesSearch(SPACE, spec.search)
    simulation = Simulation(spec, workers=2, order=0).run
    for one in simulation.candidates:
        search.tell(
            ScoredCandidate(one.proposed.recipe_digest, one.genome, one.fitness or 0.0, one.proposed.index, one.scores)
        )
    assert len(search.cells) >= 4
    assert all(one.scores for one in search.pool)


def test_classic_breeding_makes_six_mutants_and_merges_two_triples() -> None:
    spec = make_spec(evaluations=48, population=8, breeding="classic", schedule="generational")
    simulation = Simulation(spec, workers=2, order=5)
    later = [operator for index, _, operator in simulation.proposals if index >= 24]
    assert later.count("breed") == 6
    assert later.count("mutation") == 18


def test_those_who_are_alike_share_their_chance_to_become_parents() -> None:
    def parents(niche: float) -> Counter[str]:
        search = EvolutionaryTournament(SPACE, make_spec(niche=niche, population=8).search)
        for i in range(8):  # seven of one kind, all fitter, and a loner
            row = (0.1, 0.9, 0.9) if i == 7 else (0.5 + 0.001 * i, 0.5, 0.5)
            genome = Genome("linear", weights=(row,) * SPACE.rows)
            search.tell(ScoredCandidate(f"{i}", genome, 0.9 - 0.01 * i, i))
        rng = Random(1)
        return Counter(search._parent(rng).digest for _ in range(2000))

    alone, shared = parents(0.0), parents(0.1)
    assert alone["7"] < 20
    assert shared["7"] > 200
    assert shared["0"] > shared["6"], "within a niche the fitter one still wins"


def test_nothing_is_proposed_twice_and_parents_are_known() -> None:
    simulation = Simulation(make_spec(evaluations=80, methods=["frankenmerge"]), workers=4, order=2)
    digests = [digest for _, digest, _ in simulation.proposals]
    assert len(set(digests)) == len(digests)
    for candidate in simulation.run.candidates:
        assert set(candidate.proposed.parents) <= set(digests)
        assert Recipe.from_json(candidate.proposed.recipe_json).digest == candidate.proposed.recipe_digest


def test_a_space_that_is_exhausted_ends_the_search() -> None:
    class Tiny(Simulation):
        pass

    spec = make_spec(models=2, evaluations=200, population=4, methods=["frankenmerge"])
    ended = next(e.payload for e in Tiny(spec, workers=1, order=0).events if isinstance(e.payload, SearchEnded))
    assert ended.reason in {"exhausted", "budget"}


def test_target_ends_the_search_early() -> None:
    simulation = Simulation(make_spec(evaluations=200, target=0.8), workers=2, order=0)
    ended = next(e.payload for e in simulation.events if isinstance(e.payload, SearchEnded))
    assert ended.reason == "target"
    assert ended.evaluated < 200


def test_champion_and_sources_are_proven_on_the_holdout_only_after_the_search() -> None:
    simulation = Simulation(make_spec(evaluations=20), workers=2, order=0)
    end = next(i for i, e in enumerate(simulation.events) if isinstance(e.payload, SearchEnded))
    holdout = [
        (i, e.payload.recipe_digest)
        for i, e in enumerate(simulation.events)
        if isinstance(e.payload, CandidateEvaluated) and e.payload.split == "holdout"
    ]
    assert all(i > end for i, _ in holdout)
    assert {digest for _, digest in holdout} == {simulation.champion} | {d for _, d, o in simulation.proposals[:4]}


def test_models_of_different_depth_are_fitted_to_the_base() -> None:
    from helpers.simulation import answer

    run = Run("r")
    spec = make_spec()
    run.apply(Event(run_id="r", payload=RunStarted(spec_json=spec.to_json())))
    for i, job in enumerate(run.jobs()):
        run.apply(Event(run_id="r", payload=answer(job, layers=6 + (i == 1))))
    base = ModelReference("org/base", digest="org/base")
    found = set()
    while (decision := run.next_decision()) is not None and len(run.candidates) < 20:
        if isinstance(decision, CandidateProposed):
            recipe = Recipe.from_json(decision.recipe_json)
            assert recipe.cross_domain == (None if decision.operator == "source" else CrossDomain(target=base))
            found.add(decision.operator)
        run.apply(Event(run_id="r", payload=decision))
        for job in run.jobs():
            run.apply(Event(run_id="r", payload=answer(job)))
    assert {"source", "average", "classic"} <= found


def test_a_strategy_without_its_means_fails_the_run_and_says_what_to_do() -> None:
    simulation = Simulation(make_spec(strategy="cmaes", methods=["frankenmerge"]), workers=1, order=0)
    last = simulation.events[-1].payload
    assert isinstance(last, RunFailed)
    assert "add a method that has some" in last.error.message


def test_gp_without_scipy_fails_the_run_and_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    last = Simulation(make_spec(strategy="gp", evaluations=12), workers=1, order=0).events[-1].payload
    assert isinstance(last, RunFailed)
    assert "scipy and torch" in last.error.message


def test_a_source_that_cannot_be_had_fails_the_run_at_once() -> None:
    run = Run("r")
    run.apply(Event(run_id="r", payload=RunStarted(spec_json=make_spec().to_json())))
    job = run.jobs()[0]
    error = ErrorInfo(type="ModelNotFound", message="no such model")
    run.apply(Event(run_id="r", payload=CandidateFailed(job_id=job.job_id, kind="download", error=error)))
    assert run.next_decision() == RunFailed(error=error)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"serach": {}}, "did you mean 'search'"),
        ({"search": {"methods": ["tiess"]}}, "did you mean 'ties'"),
        ({"search": {"strategy": "tournment"}}, "did you mean 'tournament'"),
        ({"search": {"population": 1}}, "from 2"),
        ({"search": {"in_flight": 2.5}}, "whole number"),
        ({"models": ["one"]}, "at least two"),
        ({"models": ["a", "a"]}, "twice"),
        ({"suite": {"tasks": []}}, "at least one task"),
        ({"evaluation": {"thread": 1}}, "did you mean 'threads'"),
        ({"evaluation": {"dtype": "float16"}}, "did you mean 'bfloat16'"),
        ({"export": {"formats": ["hf", "ggfu"]}}, "did you mean 'gguf'"),
        ({"export": {"formats": ["gguf"]}}, "must have hf"),
        ({"export": {"formats": ["hf", "gguf"], "gguf_type": "q4_k"}}, "did you mean 'q4_k_"),
        ({"export": {"gguf_type": "q8_0"}}, "say `formats"),
        ({"search": {"elites": 16, "population": 16}}, "below the population"),
        ({"search": {"niche": 2}}, "from 0 to 1"),
    ],
)
def test_spec_mistakes_name_the_key_and_the_nearest_word(change: dict[str, object], words: str) -> None:
    data = {"models": ["a", "b"], "suite": SUITE, **change}
    with pytest.raises(SpecError, match=words):
        RunRequest.from_dict(data)


def test_the_dtype_of_scores_is_written_where_it_is_named() -> None:
    data: dict[str, Any] = {"models": ["org/a", "org/b"]}
    spec = RunSpec.from_dict({**data, "evaluation": {"dtype": "bfloat16"}})
    assert RunSpec.from_json(spec.to_json()) == spec
    assert '"evaluation":{"dtype":"bfloat16","threads":2}' in spec.to_json()
    auto = RunSpec.from_dict({**data, "evaluation": {"dtype": "auto"}})
    assert '"evaluation":{"threads":2}' in auto.to_json(), "the log of a run without it is what it always was"


def test_a_champion_is_handed_back_as_gguf_too_where_that_is_asked_for() -> None:
    data = {"models": ["org/a", "org/b"], "search": {"evaluations": 12, "population": 6}}
    plain = RunSpec.from_dict(data)
    spec = RunSpec.from_dict({**data, "export": {"formats": ["hf", "gguf"], "gguf_type": "q8_0"}})
    assert RunSpec.from_json(spec.to_json()) == spec
    assert RunSpec.from_dict({**data, "export": {"formats": ["gguf", "hf"]}}).gguf_type == "auto"
    assert "gguf" not in plain.to_json()
    formats = {}
    for name, one in (("plain", plain), ("both", spec)):
        run = Simulation(one, workers=3, order=1, replay_every=3)
        told = [event.payload for event in run.events if isinstance(event.payload, ArtifactExported)]
        formats[name] = {exported.format for exported in told}
        assert run.run.phase is Phase.FINISHED
        assert isinstance(run.events[-1].payload, RunFinished)
    assert formats == {"plain": {"hf"}, "both": {"hf", "gguf"}}


@pytest.mark.parametrize("replay", [0, 1])
def test_a_gguf_file_that_cannot_be_written_does_not_cost_the_run(replay: int) -> None:
    data = {"models": ["org/a", "org/b"], "search": {"evaluations": 12, "population": 6}}
    spec = RunSpec.from_dict({**data, "export": {"formats": ["hf", "gguf"]}})
    for order in range(6):
        run = Simulation(spec, workers=4, order=order, replay_every=replay, fail_exports=("gguf",))
        assert run.run.phase is Phase.FINISHED
        lost = Simulation(spec, workers=4, order=order, replay_every=replay, fail_exports=("hf",))
        assert lost.run.phase is Phase.FAILED
        assert lost.run.error is not None
        assert "cannot be written" in lost.run.error.message


def test_linear_merges_of_adapters_of_one_base_are_left_to_the_evaluator() -> None:
    """No weights travel: the recipe is enough. Other methods are merged as ever, and nothing else changes."""
    run = Simulation(adapters_spec(*["org/base"] * 3), workers=3, order=1, replay_every=5)
    methods = {
        one.proposed.recipe_digest: Recipe.from_json(one.proposed.recipe_json).method
        for one in run.run.candidates
        if one.proposed.operator != "source"
    }
    merged = {event.payload.recipe_digest for event in run.events if isinstance(event.payload, CandidateMerged)}
    assert {"linear", "task_arithmetic", "ties"} == set(methods.values())
    assert {methods[digest] for digest in merged} == {"ties"}
    assert merged == {digest for digest, method in methods.items() if method == "ties"}
    assert set(run.run.discarded) == {f"file:///{digest}" for digest in merged}
    assert run.run.phase is Phase.FINISHED


def test_adapters_of_several_bases_are_merged_as_whole_models() -> None:
    run = Simulation(adapters_spec("org/base", "org/other", methods=("linear",)), workers=3, order=1)
    made = [one for one in run.run.candidates if one.proposed.operator != "source"]
    merged = {event.payload.recipe_digest for event in run.events if isinstance(event.payload, CandidateMerged)}
    assert merged == {one.proposed.recipe_digest for one in made}


def test_an_adapter_named_alone_is_fetched_with_the_runs_base() -> None:
    run = Simulation(adapters_spec(*["org/base"] * 2), workers=1, order=1)
    state = Run("r")
    state.apply(run.events[0])
    wanted = {job.payload.reference: job.payload.base for job in state.jobs() if isinstance(job.payload, DownloadJob)}
    assert wanted == {"org/base+org/m0": "org/base", "org/base+org/m1": "org/base", "org/base": ""}


@pytest.mark.parametrize("preserve", [True, False, None])
def test_preserve_instruction_is_in_every_candidates_recipe(preserve: bool | None) -> None:
    spec = replace(make_spec(evaluations=16, population=6), preserve_instruction=preserve)
    assert RunSpec.from_json(spec.to_json()) == spec
    for one in Simulation(spec, workers=2, order=1).run.candidates:
        recipe = Recipe.from_json(one.proposed.recipe_json)
        assert recipe.preserve_instruction is (None if one.proposed.operator == "source" else preserve)
